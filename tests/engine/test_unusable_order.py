"""An order.lock that nobody can open or read: it is replaced, or gone on without, and no call fails because of it."""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from fsqueue import FileSampleRefQueue, StaleLockWarning
from fsqueue.cli.main import cli
from fsqueue.operate.check import check_queue
from tests.support import GUARD_S, Queue, Tap, drain, ids, names_in, numbered, open_tapped, ref, refs

MOUNTS = [
    ("tmpfs", "flock"),
    ("nfs4", "flock"),
    ("fuse.anything", "flock"),
    ("fuse.anything", "lease"),
    ("nfs4", "none"),
]


class Broken:
    """Make one order file fail: whatever opens it, or whatever reads and writes it, gets this error.

    Attributes:
        replaceable: another file in its place works; else no file of that name can be made or used.
    """

    def __init__(self, path: Path, code: int, operations: tuple[str, ...], replaceable: bool) -> None:
        self._order = path / "order.lock"
        self._code = code
        self._operations = operations
        self._replaceable = replaceable
        self._inode = os.stat(self._order).st_ino

    def __call__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in self._operations and self._is_mine(args[0]):
            raise OSError(self._code, os.strerror(self._code), "order.lock")
        if not self._replaceable and name == "rename" and args[1] == "order.lock":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), "order.lock")

    def _is_mine(self, what: Any) -> bool:
        if isinstance(what, str):
            named = what == "order.lock"
            return named and (not self._replaceable or self._there() == self._inode)
        if not os.readlink(f"/proc/self/fd/{what}").startswith(str(self._order)):
            return False
        return not self._replaceable or os.fstat(what).st_ino == self._inode

    def _there(self) -> int:
        try:
            return os.stat(self._order, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return 0


def directory(order: Path) -> None:
    order.unlink()
    order.mkdir()
    (order / "somebody's").write_text("notes")


def dangling_link(order: Path) -> None:
    order.unlink()
    order.symlink_to("nowhere")


def pipe(order: Path) -> None:
    order.unlink()
    os.mkfifo(order)


ERRORS = {
    "EIO from open": (errno.EIO, ("open",)),
    "EACCES from open": (errno.EACCES, ("open",)),
    "EIO from read": (errno.EIO, ("pread", "read")),
    "EIO from read and write": (errno.EIO, ("pread", "read", "pwrite", "ftruncate")),
    "EIO from everything": (errno.EIO, ("open", "pread", "read", "pwrite", "ftruncate", "lock", "utime")),
    "EIO from lock": (errno.EIO, ("lock",)),
}
CHANGES = {"a directory": directory, "a dangling link": dangling_link, "a pipe": pipe}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StaleLockWarning)
        yield


@pytest.fixture(params=[*ERRORS, *(f"{name}, for good" for name in ERRORS), *CHANGES, "ESTALE from close"])
def breaking(request: pytest.FixtureRequest) -> Callable[[Tap, Path], None]:
    """Break the order file of the queue at a path, for those who go by a tap."""

    def breaks(tap: Tap, path: Path) -> None:
        kind, _, lasting = request.param.partition(", ")
        if kind in CHANGES:
            CHANGES[kind](path / "order.lock")
        elif kind == "ESTALE from close":
            fail_closes(tap, path / "order.lock")
        else:
            code, operations = ERRORS[kind]
            tap.before = Broken(path, code, operations, not lasting)

    return breaks


def fail_closes(tap: Tap, order: Path) -> None:
    """Close every descriptor of the order file and say ESTALE, as GlusterFS may."""
    closed: list[bool] = []

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "close":
            closed[:] = [os.readlink(f"/proc/self/fd/{args[0]}") == str(order)]

    def fail(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "close" and closed == [True]:
            raise OSError(errno.ESTALE, "injected")

    tap.before, tap.after = note, fail


@pytest.mark.parametrize("mount, lock", MOUNTS)
def test_every_call_works(
    path: Path, mount: str, lock: str, breaking: Callable[[Tap, Path], None], impatient: None
) -> None:
    """Puts, gets, settlements, looks and moves go on, and every ref is delivered, each once."""
    tap = Tap()
    tap.ops.filesystem_type = lambda path: mount
    tap.ops.sleep = lambda seconds: None
    queue = open_tapped(tap, path, durable=False, lease_timeout_s=60.0, lock=lock)
    queue.put(numbered(12))
    first = queue.get(6)
    breaking(tap, path)
    queue.put(refs("later", "s00007"))
    assert queue.ack(first[:2], step=1) == []
    assert queue.fail(first[2:3], "x", retryable=True) == [] == queue.fail(first[3:4], "x", retryable=False)
    assert queue.release(first[4:5]) == [] == queue.renew(first[5:])
    assert queue.reclaim() == 0
    assert queue.depth() == 9 and queue.in_flight() == 1 and tuple(queue.counts()) == (9, 1, 2, 1)
    again = open_tapped(tap, path, durable=False)
    one = again.get(1)
    assert len(one) == 1, "no get says that there is none"
    assert again.ack(one) == []
    got = ids(one) + drain_by(queue, 8)
    assert sorted(got) == sorted([*ids(numbered(12))[6:], "s00002", "s00004", "later"])
    assert sorted(queue.rewind(after_step=1)) == sorted(got[1:])
    assert sorted(drain_by(queue, 8)) == sorted(got[1:])
    assert queue.pack(older_than_s=0.0) is not None
    again.close()
    queue.close()
    assert names_in(path, "pending") == []


def drain_by(queue: Queue, count: int) -> list[str]:
    """Get and ack this many refs; what no line names is found by listings, which a get makes now and then."""
    found: list[str] = []
    while len(found) < count:
        batch = queue.get(3, GUARD_S)
        assert batch, "a ref is pending that no get finds"
        found += ids(batch)
        queue.ack(batch, step=2)
    return found


CALLS = {
    "init": [],
    "status": [],
    "ls": [],
    "show": ["s00001"],
    "put": ["more.jsonl"],
    "requeue": ["s00001"],
    "rewind": ["--after-step", "5"],
    "release": ["--owner", "n1", "--force"],
    "purge": ["--state", "done", "--older-than", "0"],
    "pack": ["--older-than", "0"],
    "check": [],
    "top": ["--count", "1", "--interval", "1ms"],
}


@pytest.mark.parametrize("command", CALLS)
def test_every_command_works(
    path: Path, command: str, breaking: Callable[[Tap, Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command fails: not even those that look at the file itself, which say what is wrong with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "more.jsonl").write_bytes(msgspec.json.encode(ref("more")))
    tap = Tap()
    tap.ops.sleep = lambda seconds: None
    with FileSampleRefQueue(path, durable=False, owner="n1") as queue:
        queue.put(numbered(5))
        queue.ack(queue.get(1), step=6)
        queue.fail(queue.get(1), "x", retryable=False)
        if command == "release":
            queue.get(1)
    breaking(tap, path)
    with tap.here():
        result = CliRunner().invoke(cli, [command, str(path), *CALLS[command]])
    assert result.exit_code in ((0, 1) if command == "check" else (0,)), result.output
    assert not isinstance(result.exception, OSError), result.output


def test_the_doctor_looks_at_a_queue_like_this(path: Path) -> None:
    """The doctor has files of its own, and is not put out by the queue's."""
    FileSampleRefQueue(path, durable=False).close()
    directory(path / "order.lock")
    result = CliRunner().invoke(cli, ["doctor", str(path)])
    assert result.exit_code == 0, result.output


def test_a_full_disk_without_an_order_file(path: Path) -> None:
    """Where order.lock is gone and none can be made, gets and acks need none."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False, lease_timeout_s=60.0)
    queue.put(numbered(5))
    queue.ack(queue.get(1))
    (path / "order.lock").unlink()

    def full(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[1] & os.O_CREAT:
            raise OSError(errno.ENOSPC, "injected")

    tap.before = full
    assert sorted(drain(queue)) == ids(numbered(5))[1:]


def test_repair(path: Path, breaking: Callable[[Tap, Path], None]) -> None:
    """`check --repair` ends, and leaves a queue in which nothing is missing."""
    tap = Tap()
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(numbered(5))
    breaking(tap, path)
    with tap.here():
        result = CliRunner().invoke(cli, ["check", str(path), "--repair"])
    assert not isinstance(result.exception, OSError), result.output
    tap.before = tap.after = None
    assert sorted(drain(FileSampleRefQueue(path, durable=False))) == ids(numbered(5))
    assert [found for found in check_queue(path) if found.kind != "foreign"] == []


@pytest.mark.parametrize("partition", [None, (0, 1)])
@pytest.mark.parametrize("live", [0, 3])
def test_an_order_that_names_refs_that_are_gone_and_cannot_be_written(
    path: Path, live: int, partition: tuple[int, int] | None
) -> None:
    """With a header that nobody can mend, on a full disk, it repeats itself; a get ends, and finds what is there."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(numbered(50))
    for name in names_in(path, "pending")[: 50 - live]:
        (path / "pending" / name).unlink()
    with open(path / "order.lock", "r+b") as order:
        order.write(b"x" * 64)
    operations = [0]

    def full(name: str, args: Any, kwargs: Any) -> None:
        operations[0] += 1
        assert operations[0] < 5000, "it goes round and round"
        if name == "pwrite":
            raise OSError(errno.ENOSPC, "injected")

    tap.before = full
    found = queue.get(2, partition=partition)
    tap.before = None
    assert len(found) == min(2, live)
    assert len(found + queue.get(50, 0.5)) == live
