"""A disk that is full, as its errors show it: who leases without a record, and what the reserve is given up for."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError
from fsqueue.engine.reserve import BASE_BYTES, LOOK_S, MEMORY_BASE_BYTES, RESERVE
from tests.support import (
    Queue,
    Tap,
    assert_clean,
    backdate,
    drain,
    folder_of,
    ids,
    lease_name,
    names_in,
    numbered,
    open_tapped,
    refs,
)

FULL = pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)


def refuse_new_files(tap: Tap, code: int) -> None:
    """From now on nothing can be created."""

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[1] & os.O_CREAT and args[0] != "order.lock":
            raise OSError(code, os.strerror(code), args[0])

    tap.before = refuse


def refuse_renames(tap: Tap, code: int, folder: str, times: int) -> Callable[[], int]:
    """Refuse so many renames into a directory; returns how many are left."""
    left = [times]

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and folder_of(kwargs["dst_dir_fd"]) == folder and left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code), *args[:1])

    tap.before = refuse
    return lambda: left[0]


def presence_of(queue: Queue) -> Any:
    return queue._here().engine.handle.presence


def reserved(path: Path) -> int:
    """The size of the reserve; 0 where there is none."""
    file = path / RESERVE
    return file.stat().st_size if file.exists() else 0


@FULL
def test_a_record_is_written_as_soon_as_there_is_room(path: Path, code: int) -> None:
    """Without one, refs are leased and acknowledged; the next second's get tries again."""
    FileSampleRefQueue(path, lease_timeout_s=60.0).put(numbered(30))
    tap = Tap()
    now = [1_000.0]
    tap.ops.monotonic = lambda: now[0]
    queue = open_tapped(tap, path, durable=False)
    refuse_new_files(tap, code)
    assert queue.ack(queue.get(10)) == []
    assert names_in(path, "owners") == []
    tap.before = None
    assert queue.ack(queue.get(10)) == []
    assert names_in(path, "owners") == [], "it is not tried again in the same second"
    now[0] += 1.0
    assert queue.ack(queue.get(10)) == []
    assert names_in(path, "owners") == [f"{queue.owner}.json"]
    assert reserved(path) > 0, "a record is not worth the reserve"
    queue.close()
    assert_clean(path)


@FULL
def test_leases_that_never_time_out_are_worth_the_reserve(path: Path, code: int) -> None:
    """Nothing but the record ends them once their owner is dead."""
    FileSampleRefQueue(path, lease_timeout_s=None).put(numbered(3))
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[1] & os.O_CREAT and (path / RESERVE).exists() and args[0] != "order.lock":
            raise OSError(code, os.strerror(code), args[0])

    tap.before = refuse
    assert len(queue.get(3)) == 3
    assert names_in(path, "owners") == [f"{queue.owner}.json"] and reserved(path) == 0


@FULL
def test_without_a_record_a_beat_prolongs_each_lease(path: Path, code: int) -> None:
    """Others see the leased files' own stamps; once there is room the record beats for all of them."""
    FileSampleRefQueue(path, lease_timeout_s=600.0).put(numbered(3))
    tap = Tap()
    queue = open_tapped(tap, path, durable=False, heartbeat_s=100.0)
    refuse_new_files(tap, code)
    leased = queue.get(3)
    files = [path / "leased" / lease_name(path, one.sample_id) for one in leased]
    for file in files:
        backdate(file, 700.0)
    presence_of(queue).beat()
    with FileSampleRefQueue(path, durable=False) as other:
        assert other.reclaim() == 0
    assert all(time.time() - file.stat().st_mtime < 100.0 for file in files)
    tap.before = None
    for file in files:
        backdate(file, 700.0)
    presence_of(queue).beat()
    assert names_in(path, "owners") == [f"{queue.owner}.json"]
    with FileSampleRefQueue(path, durable=False) as other:
        assert other.reclaim() == 0, "the record's stamp counts"
    assert queue.ack(leased) == []


@FULL
def test_others_go_by_a_lease_without_a_record_by_its_own_stamp(path: Path, code: int) -> None:
    FileSampleRefQueue(path, lease_timeout_s=600.0).put(numbered(2))
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    refuse_new_files(tap, code)
    assert len(queue.get(2)) == 2
    backdate(path / "leased" / lease_name(path, "s00000"), 700.0)
    with FileSampleRefQueue(path, durable=False) as other:
        assert other.reclaim() == 1
        assert ids(other.get(2)) == ["s00000"]


@FULL
@pytest.mark.parametrize("folder", ["leased", "done", "failed", "pending"])
def test_a_move_that_empties_the_queue_is_given_the_reserve(path: Path, code: int, folder: str) -> None:
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a", "b"))
    before = reserved(path)
    first = queue.get(1) if folder != "leased" else []
    left = refuse_renames(tap, code, folder, 2)
    calls: dict[str, Callable[[], object]] = {
        "leased": lambda: first.extend(queue.get(1)),
        "done": lambda: queue.ack(first),
        "failed": lambda: queue.fail(first, "broken", retryable=False),
        "pending": lambda: queue.release(first),
    }
    calls[folder]()
    assert (left(), ids(first)) == (0, ["a"])
    assert 0 < reserved(path) == before // 4
    assert "a.json" in names_in(path, folder) or folder == "leased"


@FULL
def test_what_fills_a_disk_is_not_given_the_reserve(path: Path, code: int) -> None:
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    before = reserved(path)
    refuse_renames(tap, code, "pending", 1)
    with pytest.raises(QueueIOError, match=errno.errorcode[code]):
        queue.put(refs("a"))
    assert reserved(path) == before > 0


@FULL
def test_an_ack_that_no_reserve_helps_keeps_its_lease(path: Path, code: int) -> None:
    """The error says what to do; the same ack works once there is room."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    leased = queue.get(1)
    refuse_renames(tap, code, "done", 1_000)
    with pytest.raises(QueueIOError, match="then call again"):
        queue.ack(leased)
    assert reserved(path) == 0 and queue.in_flight() == 1
    tap.before = None
    assert queue.ack(leased) == [] and queue.counts() == (0, 0, 1, 0)


def test_history_is_written_with_the_help_of_the_reserve(path: Path) -> None:
    """A write that was refused is repeated; the ref before it stays whole."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    leased = queue.get(1)
    refused: list[str] = []

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "pwrite" and b"_fsqueue" in args[1] and len(refused) < 2:
            refused.append(name)
            raise OSError(errno.ENOSPC, "injected")

    tap.before = refuse
    assert queue.fail(leased, "broken", retryable=True) == []
    assert len(refused) == 2 and queue.get(1) == refs("a")


def test_the_reserve_is_made_again_once_there_is_room(path: Path) -> None:
    """A put looks after it once a minute, a waiting consumer as well."""
    tap = Tap()
    now = [1_000.0]
    tap.ops.monotonic = lambda: now[0]
    queue = open_tapped(tap, path, durable=False)
    whole = reserved(path)
    (path / RESERVE).unlink()
    queue.put(refs("a"))
    assert reserved(path) == 0
    now[0] += LOOK_S
    queue.put(refs("b"))
    assert reserved(path) == whole
    os.truncate(path / RESERVE, 100)
    now[0] += LOOK_S
    assert len(queue.get(2)) == 2
    assert reserved(path) == whole


@pytest.mark.parametrize(("free", "inodes"), [(0, 1000), (1 << 30, 10)])
def test_the_reserve_takes_nothing_from_a_disk_that_is_nearly_full(path: Path, free: int, inodes: int) -> None:
    tap = Tap()
    tap.ops.room = lambda fd: (free, inodes)
    open_tapped(tap, path).close()
    assert reserved(path) == 0


def test_a_long_backlog_has_a_large_reserve_and_a_short_one_a_small_one(path: Path) -> None:
    """It is to hold the names that will go to done/; on a tmpfs, directories take no blocks."""
    tap = Tap()
    tap.ops.room = lambda fd: (1 << 40, 1 << 40)
    now = [1_000.0]
    tap.ops.monotonic = lambda: now[0]
    tap.ops.filesystem_type = lambda path: "ext4"
    queue = open_tapped(tap, path, durable=False)
    assert reserved(path) == BASE_BYTES
    queue.put(refs(*(f"{number:05d}".ljust(150, "x") for number in range(2_000))))
    assert 2 * BASE_BYTES <= (two := reserved(path)) < 4 * BASE_BYTES
    queue.put(refs(*(f"{number:05d}".ljust(150, "y") for number in range(4_000))))
    assert 4 * BASE_BYTES < reserved(path) < 3 * two
    while batch := queue.get(1_000):
        queue.ack(batch)
    now[0] += LOOK_S
    queue.put(refs("last"))
    assert reserved(path) == BASE_BYTES
    other = path.with_name("other")
    tap.ops.filesystem_type = lambda path: "tmpfs"
    open_tapped(tap, other).close()
    assert reserved(other) == MEMORY_BASE_BYTES


@pytest.mark.parametrize("operation", ["open", "pwrite", "close"])
def test_an_error_in_making_the_reserve_costs_the_reserve_only(path: Path, operation: str) -> None:
    tap = Tap()
    seen: list[int] = []

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[0] == RESERVE:
            seen.append(1)
        if seen and name == operation and len(seen) < 2:
            raise OSError(errno.EIO, "injected")

    tap.before = refuse
    queue = open_tapped(tap, path)
    tap.before = None
    queue.put(refs("a"))
    assert drain(queue) == ["a"]
    assert_clean(path)


def test_refs_that_the_order_has_no_room_to_name_are_found(path: Path) -> None:
    """Its header can be written where its end cannot: that is no reason to take it for whole."""
    FileSampleRefQueue(path).put(numbered(5))
    (path / "order.lock").write_bytes(b"")
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    assert ids(queue.get(1)) == ["s00000"]
    queue.release(refs("s00000"))
    (path / "order.lock").write_bytes((path / "order.lock").read_bytes()[:64])

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "pwrite" and args[2] + len(args[1]) > 64 and folder_of(args[0]) == "order.lock":
            raise OSError(errno.ENOSPC, "injected")

    tap.before = refuse
    assert sorted(drain(queue)) == ids(numbered(5))


def test_a_lock_that_is_a_file_of_its_own_is_done_without_on_a_full_disk(path: Path) -> None:
    """In mode lease every hold creates a file: a get goes on without it."""
    FileSampleRefQueue(path, lock="lease").put(numbered(3))

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "injected")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("filelock.SoftFileLease.acquire", refuse)
        with FileSampleRefQueue(path) as queue:
            leased = queue.get(3)
            assert sorted(ids(leased)) == ids(numbered(3)) and queue.ack(leased) == []
            with pytest.raises(QueueIOError, match="ENOSPC"):
                queue.put(refs("new"))
