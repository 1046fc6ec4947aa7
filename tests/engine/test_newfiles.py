"""New files of a batch on a slow shared mount, created in several directories at once."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsqueue import QueueIOError
from fsqueue.engine.layout import MORE_TMP
from fsqueue.engine.owners import describe_self
from fsqueue.operate.check import check_queue, repair
from tests.support import Queue, Tap, assert_clean, folder_of, ids, names_in, numbered, open_tapped, refs

OWNER = "gone.4711.abcdef"


def opened(path: Path, mount: str = "nfs4", **arguments: Any) -> tuple[Tap, Queue, Counter[str]]:
    """A handle whose creates are counted by directory."""
    tap, created = Tap(), Counter[str]()
    tap.ops.filesystem_type = lambda path: mount
    real = tap.ops.open
    tap.ops.open = lambda path, flags, *rest, **named: real(path, flags & ~os.O_DIRECT, *rest, **named)
    queue = open_tapped(tap, path, durable=False, **arguments)

    def note(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if name == "open" and args[1] & os.O_CREAT and (fd := named.get("dir_fd")) is not None:
            created[folder_of(fd)] += 1

    tap.before = note
    return tap, queue, created


def dead_record(path: Path) -> None:
    """Write the record of an owner whose process is gone."""
    record = msgspec.structs.replace(describe_self(OWNER, time.time(), None), pid_start_time="1")
    (path / "owners" / f"{OWNER}.json").write_bytes(msgspec.json.encode(record))


def left_in(path: Path) -> list[str]:
    return [name for folder in ("tmp", *MORE_TMP) if (path / folder).exists() for name in names_in(path, folder)]


def test_a_batch_is_spread_over_directories(path: Path) -> None:
    """As many files in each; all come into the queue in their order, and nothing is left."""
    _, queue, created = opened(path, io_threads=4)
    queue.put(refs("first"))  # it writes type.json too
    queue.ack(queue.get(1))
    created.clear()
    assert queue.put(numbered(8)).added == 8
    assert {folder: created[folder] for folder in ("tmp", *MORE_TMP)} == dict.fromkeys(("tmp", *MORE_TMP), 2)
    assert ids(queue.get(8)) == ids(numbered(8))
    assert left_in(path) == []
    queue.close()
    assert_clean(path)


def test_creates_in_different_directories_are_under_way_at_once(path: Path) -> None:
    """Each of four goes on only once all four have begun, each in a directory of its own."""
    tap, queue, _ = opened(path, io_threads=4)
    queue.put(refs("first", "second"))
    meeting, there = threading.Barrier(4), []

    def meet(name: str, args: Any, named: dict[str, Any]) -> None:
        if name == "open" and args[1] & os.O_TRUNC:
            there.append(folder_of(named["dir_fd"]))
            meeting.wait(60.0)

    tap.before = meet
    queue.put(numbered(4))
    tap.before = None
    assert sorted(there) == sorted(("tmp", *MORE_TMP))
    queue.close()


@pytest.mark.parametrize(
    ("mount", "arguments"), [("ext4", {"io_threads": 4}), ("nfs4", {"io_threads": 1}), ("nfs4", {})]
)
def test_elsewhere_tmp_is_enough(path: Path, mount: str, arguments: dict[str, Any]) -> None:
    """On a local disk, with one thread, and for a first batch, of which nobody knows whether it takes long."""
    _, queue, created = opened(path, mount, **arguments)
    queue.put(numbered(8))
    assert created["tmp"] >= 8 and not any((path / folder).exists() for folder in MORE_TMP)
    queue.close()


def test_a_batch_after_a_slow_one_is_spread(path: Path) -> None:
    """So are the next ones, until one of which the first took no time."""
    tap, queue, created = opened(path)
    now, step = [0.0], [0.003]

    def monotonic() -> float:
        now[0] += step[0]
        return now[0]

    tap.ops.monotonic = monotonic
    for wanted in (False, True):
        created.clear()
        queue.put(numbered(8, f"{wanted}-"))
        assert bool(created[MORE_TMP[0]]) == wanted
    step[0] = 1e-6
    for batch in range(20):
        created.clear()
        queue.put(numbered(8, f"quick-{batch}-"))
        assert created[MORE_TMP[0]] or batch > 10
    assert not created[MORE_TMP[0]]
    queue.close()


def test_a_disk_that_fills_up_leaves_nothing_in_any(path: Path) -> None:
    tap, queue, _ = opened(path, io_threads=4)
    writes = Counter[str]()

    def fail(name: str, args: Any, named: Any) -> None:
        writes[name] += 1
        if name == "write" and writes[name] == 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    queue.put(refs("first"))
    tap.before = fail
    with pytest.raises(QueueIOError, match="No space left"):
        queue.put(numbered(8))
    tap.before = None
    assert left_in(path) == [] and queue.depth() == 1
    queue.close()


def test_where_another_user_lets_nobody_write_the_others_do(path: Path) -> None:
    """Of directories that were made with another umask, and one that is a file, none is used."""
    tap, queue, created = opened(path, io_threads=4)
    real = tap.ops.access
    denied = path / MORE_TMP[0]
    denied.mkdir()
    (path / MORE_TMP[1]).touch()
    tap.ops.access = lambda name, mode, **named: (
        not (mode & os.W_OK and folder_of(named["dir_fd"]) == denied.name) and real(name, mode, **named)
    )
    queue.put(refs("first"))
    created.clear()
    queue.put(numbered(8))
    assert (created["tmp"], created[MORE_TMP[2]], created[MORE_TMP[0]]) == (4, 4, 0)
    assert queue.depth() == 9
    queue.close()


def test_directories_that_somebody_removes_are_made_again(path: Path) -> None:
    """The put that meets it fails, leaving nothing, and the next one works."""
    _, queue, _ = opened(path, io_threads=4)
    queue.put(numbered(4))
    for folder in MORE_TMP:
        (path / folder).rmdir()
    with pytest.raises(QueueIOError, match="No such file"):
        queue.put(numbered(4, "again"))
    assert queue.put(numbered(4, "again")).added == 4
    assert left_in(path) == []
    queue.close()
    assert_clean(path)


def test_what_the_dead_have_left_there_goes_with_their_records(path: Path) -> None:
    """A get removes it, and so does a repair."""
    _, queue, _ = opened(path, io_threads=4)
    queue.put(numbered(4))
    for serial in range(2):
        dead_record(path)
        left = path / MORE_TMP[serial] / f"{OWNER}.{serial}"
        left.touch()
        if serial:
            assert [each.kind for each in check_queue(path, notes=True)] == ["leftover", "owner-gone"]
            repair(path)
        else:
            queue.get(1)
        assert not left.exists()
    queue.close()
