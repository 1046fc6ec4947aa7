"""A workout of everything that reads a queue's files, watched for what no file's content may ever cause."""

from __future__ import annotations

import os
import random
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from fsqueue import FileSampleRefQueue, FsQueueError, SampleRef, operate
from fsqueue.disk import fileops
from fsqueue.disk.fileops import FileOps
from fsqueue.operate.check import check_queue, repair
from fsqueue.operate.requeue import requeue, requeue_failed
from fsqueue.operate.show import entries, show
from tests.support.implementations import make_ref
from tests.sweeps.proof.verdict import StoppedClock

T = TypeVar("T")

LEASE_S = 60.0
FAR_S = 1e6
ROUNDS = 60
GOODS = ("good-0", "good/1", "good 2")
STRANGER = "stranger.1.abcdef"
_EXECUTION = ("exec", "compile", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class")
_executed: list[str] = []
_watching = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watching and event in _EXECUTION and not _is_pythons_own():
        _executed.append(f"{event}{arguments}"[:200])


def _is_pythons_own() -> bool:
    """Tell if Python is importing a module, or evaluating a class's annotations."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name in ("get_type_hints", "get_class_annotations", "_find_and_load"):
            return True
        frame = frame.f_back
    return False


sys.addaudithook(_audit)


@contextmanager
def nothing_is_executed() -> Iterator[None]:
    """Fail where code was compiled or run, a process was started, or an object was unpickled."""
    global _watching
    _executed.clear()
    _watching = True
    try:
        yield
    finally:
        _watching = False
    assert not _executed, f"executed {_executed}"


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """Everything in a tree that a careless program could change, for comparison."""
    found: dict[str, tuple[Any, ...]] = {}
    for directory, folders, files in os.walk(root):
        for name in [*folders, *files, "."]:
            path = Path(directory, name)
            status = path.lstat()
            content = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino, content)
    return found


def confined(path: Path) -> FileOps:
    """Real file operations that insist on staying inside the queue's directory."""

    def around(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for argument in args[:2]:
            if not isinstance(argument, str):
                continue
            if any(key.endswith("dir_fd") for key in kwargs):
                assert "/" not in argument and argument != "..", f"{name} of {argument!r}"
            else:
                inside = os.path.commonpath([str(path), os.path.abspath(argument)]) == str(path)
                assert inside, f"{name} of {argument!r}, outside of {path}"
        return call(*args, **kwargs)

    return fileops.wrapped(StoppedClock(), around)


class Workout:
    """Everything that reads files, on one queue.

    Attributes:
        delivered: the ids that get returned, in order.
        errors: what was raised; anything but an `FsQueueError` is passed on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.delivered: list[str] = []
        self.errors: list[FsQueueError] = []

    def run(self) -> Workout:
        with fileops.using(confined(self.path)):
            queue = self._try(self._open)
            if queue is not None:
                self._use(queue)
                self._try(queue.close)
            self._inspect()
        return self

    def _try(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except FsQueueError as error:
            assert str(error)
            self.errors.append(error)
            return None

    def _open(self) -> FileSampleRefQueue[SampleRef]:
        now = time.time() + FAR_S
        return FileSampleRefQueue(self.path, clock=lambda: now, durable=False, max_attempts=2)

    def _use(self, queue: FileSampleRefQueue[SampleRef]) -> None:
        self._try(lambda: queue.put([make_ref("late")]))
        for _ in range(ROUNDS):
            refs = self._try(lambda: queue.get(4))
            if refs == []:
                break
            for ref in refs or ():
                self.delivered.append(ref.sample_id)
                self._settle(queue, ref)
        self._try(queue.reclaim)
        self._try(queue.counts)
        self._try(lambda: queue.get(1, partition=(1, 3)))

    def _settle(self, queue: FileSampleRefQueue[SampleRef], ref: SampleRef) -> None:
        if ref.sample_id in GOODS or ref.sample_id == "late":
            self._try(lambda: queue.ack([ref], step=3))
        else:
            self._try(lambda: queue.renew([ref]))
            self._try(lambda: queue.fail([ref], "of no use", retryable=True))

    def _inspect(self) -> None:
        path = str(self.path)
        for look in (
            lambda: check_queue(path, notes=True),
            lambda: operate.status(path),
            lambda: entries(path, ["pending", "leased", "done", "failed"], details=True),
            lambda: show(path, "victim"),
            lambda: requeue_failed(path),
            lambda: repair(path),
            lambda: requeue(path, ["victim"]),
            lambda: operate.purge(path, "failed", 0.0),
        ):
            self._try(look)


def make_queue(path: Path) -> None:
    """A queue with `GOODS` pending, and one ref, the victim, with a file in every state."""
    with FileSampleRefQueue(path, lease_timeout_s=LEASE_S, durable=False) as queue:
        victim = make_ref("victim")
        queue.put([victim])
        queue.fail(queue.get(1), "so that there is history", retryable=False)
        queue.put([victim])
        queue.ack(queue.get(1))
        queue.put([victim])
        queue.fail(queue.get(1), "once more", retryable=True)
        queue.get(1)
        queue.put([make_ref(good) for good in GOODS])
    leased = next((path / "leased").iterdir())
    leased.rename(path / "leased" / f"victim@{STRANGER}.json")
    record = next((path / "owners").iterdir())
    record.rename(path / "owners" / f"{STRANGER}.json")


def real_files(path: Path) -> list[Path]:
    """The files of a queue that are not good refs, in a stable order."""
    found = [file for file in sorted(path.rglob("*")) if file.is_file()]
    return [file for file in found if not (file.parent.name == "pending" and file.name.startswith("good"))]


_WORDS = (
    b"\n", b"\0" * 64, b'"', b"{", b"}", b"[" * 3000, b"\\ud800", b"\xff", b'\n,"_fsqueue":', b'"sample_id":"../../x"',
    b'"sample_id":7', b"1e999", b"-", b"NaN", b"18446744073709551616", b'"attempts":-1', b'"tuples":[["sample_id"]]',
    b'"__class__":"os.system"', b"#", b"@", b"cos\nsystem\n(S'touch executed'\ntR.", b"$(touch executed)",
)  # fmt: skip


def mutate(data: bytes, source: random.Random) -> bytes:
    """A few random changes, in the manner of coverage-guided fuzzers: flips, cuts, copies, words of the format."""
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(data) + 1)
        to = min(len(data), at + source.choice((1, 2, 8, 64)))
        how = source.randrange(6)
        if how == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ (1 << source.randrange(8))]) + data[at + 1 :]
        elif how == 1:
            data = data[:at] + data[to:]
        elif how == 2:
            data = data[:at]
        elif how == 3:
            data = data[:to] + data[at:to] * source.choice((1, 3)) + data[to:]
        elif how == 4:
            data = data[:at] + source.choice(_WORDS) + data[to:]
        else:
            data = data[:at] + bytes(to - at) + data[to:]
    return data


def special(kind: str, path: Path, outside: Path) -> None:
    """Put something that is no regular file of the queue's at a path, in place of what is there.

    Raises:
        PermissionError: making a device takes privileges.
    """
    if path.is_file() or path.is_symlink():
        path.unlink()
    if kind.startswith("link to "):
        path.symlink_to({"file": outside / "file", "directory": outside, "nothing": outside / "none"}[kind[8:]])
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(path.parent, os.O_RDONLY)
            try:
                listener.bind(f"/proc/self/fd/{here}/{path.name}")
            finally:
                os.close(here)
    elif kind == "directory":
        path.mkdir()
    elif kind == "full directory":
        path.mkdir()
        (path / "inside.json").write_bytes(b"{}")
    else:
        major, minor = {"zeros": (1, 5), "full device": (1, 7), "terminal": (5, 0)}[kind]
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(major, minor))
