"""Shared by the tests: refs, clocks, taps on the file operations, and real processes that are always reaped."""

from __future__ import annotations

import errno
import gc
import json
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fsqueue import FeatureSpec, FileSampleRefQueue, SampleRef
from fsqueue.disk.fileops import FileOps, using, wrapped

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

GUARD_S = 60.0
"""Nothing in these tests takes this long; a wait that does is reported as a hang."""

CONTEXT = multiprocessing.get_context("spawn")
Queue = FileSampleRefQueue[SampleRef]


def ref(sample_id: str, **changes: Any) -> SampleRef:
    """A sample ref with everything filled in."""
    fields: dict[str, Any] = {
        "sample_id": sample_id,
        "run_id": "r1",
        "source_task_id": None,
        "feature_store_uri": "file:///features",
        "feature_keys": {"hidden": f"{sample_id}/hidden"},
        "feature_specs": {"hidden": FeatureSpec("hidden", (128, 576), "float32")},
        "strategy": "eagle3",
    }
    return SampleRef(**(fields | changes))


def refs(*sample_ids: str) -> list[SampleRef]:
    return [ref(sample_id) for sample_id in sample_ids]


def numbered(count: int, prefix: str = "s") -> list[SampleRef]:
    return [ref(f"{prefix}{number:05d}") for number in range(count)]


def ids(some: Iterable[SampleRef]) -> list[str]:
    return [each.sample_id for each in some]


def names_in(path: Path, state: str) -> list[str]:
    return sorted(os.listdir(path / state))


def lease_name(path: Path, stem: str, owner: str = "") -> str:
    """The name in leased/ of the one lease on a ref, of this owner's where one is given."""
    (name,) = [name for name in names_in(path, "leased") if name.startswith(f"{stem}@{owner}")]
    return name


def holders_in(path: Path) -> list[str]:
    """`<stem>@<owner>` of each name in leased/."""
    return sorted(name.removesuffix(".json").partition("+")[0] for name in os.listdir(path / "leased"))


def content(path: Path) -> Any:
    return json.loads(path.read_bytes())


def assert_clean(path: Path) -> None:
    """The checker finds every invariant of the format in place."""
    from fsqueue.operate.check import check_queue

    assert list(check_queue(path)) == []


def drain(queue: Queue) -> list[str]:
    """Get and ack until nothing is pending; returns the ids in the order of delivery."""
    found: list[str] = []
    deadline = time.monotonic() + GUARD_S
    while (batch := queue.get(64)) or queue.depth():
        assert time.monotonic() < deadline, "refs are pending that no get finds"
        found += ids(batch)
        queue.ack(batch)
    return found


class FakeClock:
    """A clock that a test moves by hand."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Tap:
    """Sees every file operation of the handles opened inside `with tap:`.

    Attributes:
        counts: how often each operation ran.
        before, after: called with (operation, args, kwargs) around each; may raise, block or act.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.before: Callable[[str, tuple[Any, ...], dict[str, Any]], None] | None = None
        self.after: Callable[[str, tuple[Any, ...], dict[str, Any]], None] | None = None
        self.ops = wrapped(FileOps(), self._around)

    def _around(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.counts[name] += 1
        if self.before is not None:
            self.before(name, args, kwargs)
        result = call(*args, **kwargs)
        if self.after is not None:
            self.after(name, args, kwargs)
        return result

    @contextmanager
    def here(self) -> Iterator[Tap]:
        with using(self.ops):
            yield self


def open_tapped(tap: Tap, path: Path, **arguments: Any) -> Queue:
    with tap.here():
        return FileSampleRefQueue(path, **arguments)


def two_handles(path: Path, clock: FakeClock, **arguments: Any) -> tuple[Queue, Queue]:
    """Open two handles as of two processes, under one clock."""
    given: dict[str, Any] = {"lease_timeout_s": 60.0, "clock": clock, "durable": False} | arguments
    return FileSampleRefQueue(path, **given), FileSampleRefQueue(path, **given)


def backdate(file: Path, by_s: float) -> None:
    """Set a file's mtime into the past, as if it had been stamped then."""
    stamped = file.stat().st_mtime - by_s
    os.utime(file, (stamped, stamped))


def fill(disk: Path, leave_bytes: int = 0) -> Path:
    """Fill a disk with one file, but for leave_bytes; returns the file."""
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        file.truncate(max(0, os.fstat(file.fileno()).st_size - leave_bytes))
    return ballast


def folder_of(fd: int) -> str:
    """The name of the directory that a descriptor is open on."""
    return os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))


def open_descriptors() -> int:
    gc.collect()  # else handles that earlier tests dropped may close theirs at any moment
    return len(os.listdir("/proc/self/fd"))


def running(pid: int) -> bool:
    """Tell if a process runs; one that died and was not reaped yet does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except FileNotFoundError:
        return False
    return stat.rpartition(b")")[2].split()[0] not in (b"Z", b"X")


def wait_until(condition: Callable[[], bool], what: str, pause_s: float = 0.005) -> None:
    """Poll until condition holds; the guard only ends a hang."""
    deadline = time.monotonic() + GUARD_S
    while not condition():
        assert time.monotonic() < deadline, f"hung while waiting for {what}"
        time.sleep(pause_s)


class Child:
    """A real process running ``target(pipe, *args)``; killed if need be, and reaped, at the end of `with`."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self.pipe, theirs = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=target, args=(theirs, *args), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def receive(self) -> Any:
        assert self.pipe.poll(GUARD_S), "the child process said nothing"
        return self.pipe.recv()

    def send(self, message: Any) -> None:
        self.pipe.send(message)

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL it, and reap it."""
        self.process.kill()
        self.join()

    def join(self) -> int:
        """Wait for its end; returns the exit code, negative for a signal."""
        self.process.join(GUARD_S)
        assert self.process.exitcode is not None, "the child process hung"
        return self.process.exitcode

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        self.process.join(GUARD_S)
        self.pipe.close()


def lease_and_obey(pipe: Connection, path: Path, count: int, arguments: dict[str, Any]) -> None:
    """A child that leases count refs, says their ids, and then does what it is told until told to end."""
    with FileSampleRefQueue(path, **arguments) as queue:
        leased = queue.get(count)
        pipe.send((queue.owner, ids(leased)))
        while (order := pipe.recv()) != "end":
            if order == "get":
                leased += (more := queue.get(count, 5.0))
                pipe.send(ids(more))
            else:
                pipe.send(getattr(queue, order)(leased))


class InThread:
    """Runs a function in a thread and hands back what it returned or raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._result: Any = None
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self) -> Any:
        self.thread.join(GUARD_S)
        assert not self.thread.is_alive(), "the thread hung"
        if self._error is not None:
            raise self._error
        return self._result


def together(barrier: threading.Barrier) -> None:
    """Meet the other thread here if it comes this way; a fix that keeps them apart must not hang the test."""
    with suppress(threading.BrokenBarrierError):
        barrier.wait(0.5)


def in_fork(work: Callable[[], None]) -> None:
    """Run work in a forked child and reap it; fails when it raised."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    deadline = time.monotonic() + GUARD_S
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0, "the forked child failed; see its traceback"
            return
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError("the forked child hung")
        time.sleep(0.002)


def locked_by_me(path: Path) -> int:
    """Hold the queue's lock as another program would; returns the descriptor that does."""
    from filelock import lock_descriptor

    fd = os.open(path / "order.lock", os.O_RDWR)
    assert lock_descriptor(fd, blocking=False)
    return fd
