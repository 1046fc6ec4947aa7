"""Serve as one side of a verification: look at files as the queue does, and use queues as programs do."""

from __future__ import annotations

import atexit
import os
import platform
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import fsqueue
from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.disk.mounts import mount_of
from fsqueue.errors import FsQueueError
from fsqueue.operate.doctor import peer_tasks
from fsqueue.operate.doctor.sides.churn import Churn
from fsqueue.operate.doctor.sides.samples import Queue, sample
from fsqueue.queue import FileSampleRefQueue

_LOOK_S = 0.02
_APPEAR_S = 25.0
_PING_S = 60.0

ops = fileops.current()


def hello(directory: str, patience_s: float) -> dict[str, Any]:
    """Say who the peer is, and what it sees under the directory."""
    present = appears(directory, patience_s)
    mount = mount_of(directory)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "fsqueue": fsqueue.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "filesystem": mount.kind if mount else None,
        "source": mount.source if mount else None,
        "mount_point": mount.point if mount else None,
        "mount_options": list(mount.options) if mount else [],
        "present": present,
        "time": ops.time(),
    }


def appears(directory: str, patience_s: float) -> bool:
    """Tell whether a directory is there, or comes into sight in that time."""
    return _until(lambda: os.path.isdir(directory), patience_s) is not None


def make(directory: str, name: str) -> None:
    """Create a file in the way that put does: elsewhere, then renamed to its place."""
    unfinished = f".{name}.{os.getpid()}"
    with closing(Directory(ops, directory)) as folder:
        ops.close(ops.create(folder.fd, unfinished, b"x"))
        ops.rename(unfinished, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)


def know(directory: str, name: str, ways: list[str]) -> None:
    """Look at a file in some ways, so that this client remembers it."""
    for way in ways:
        _sees(directory, name, way)


def move(directory: str, name: str, target: str, new_name: str, refresh: bool) -> bool:
    """Rename a file, and tell by opening it whether its old name is gone.

    Args:
        refresh: open both directories before, which makes an NFS client ask again.
    """
    for folder in (directory, target) if refresh else ():
        Directory(ops, folder).close()
    source, destination = os.path.join(directory, name), os.path.join(target, new_name)
    try:
        ops.rename(source, destination)
    except FileNotFoundError:  # this client may still remember that there was no such name
        if _until(lambda: _sees(directory, name, "open"), _APPEAR_S) is None:
            raise
        ops.rename(source, destination)
    return not _sees(directory, name, "open")


def sees(directory: str, name: str, present: bool, way: str, patience_s: float) -> float | None:
    """Return after how many seconds a name is seen, or not seen any more; None where that takes longer."""
    return _until(lambda: _sees(directory, name, way) is present, patience_s)


def stamp(directory: str, name: str, age_s: float) -> None:
    """Set a file's mtime to a while ago; 0: to now, in the way of a heartbeat."""
    path = os.path.join(directory, name)
    if age_s:
        stamp_ns = int((ops.time() - age_s) * 1e9)
        ops.utime(path, ns=(stamp_ns, stamp_ns))
    else:
        ops.utime(path)


def stamp_seen(directory: str, name: str, way: str, age_s: float, patience_s: float) -> float | None:
    """Return after how many seconds a file's mtime is younger than that; None where that takes longer."""
    path = os.path.join(directory, name)

    def young() -> bool:
        stamp_ns = _stamp_ns(path) if way == "open" else ops.stat(path).st_mtime_ns
        return ops.time() - stamp_ns / 1e9 < age_s

    return _until(young, patience_s)


def touch(directory: str, name: str) -> dict[str, float]:
    """Stamp a file and read the stamp back; with it, what this host's clock says."""
    path = os.path.join(directory, name)
    before = ops.time()
    ops.utime(path)
    host_s = (before + ops.time()) / 2
    stamp_ns = _stamp_ns(path)
    return {"stamp_ns": stamp_ns, "skew_s": stamp_ns / 1e9 - host_s}


def _until(true: Callable[[], bool], patience_s: float) -> float | None:
    started = ops.monotonic()
    while True:
        with suppress(OSError):
            if true():
                return ops.monotonic() - started
        if ops.monotonic() - started >= patience_s:
            return None
        ops.sleep(_LOOK_S)


def _sees(directory: str, name: str, way: str) -> bool:
    path = os.path.join(directory, name)
    if way == "listing":
        with closing(Directory(ops, directory)) as folder:
            return name in folder.listing()
    try:
        if way == "stat":
            ops.stat(path)
        else:
            _stamp_ns(path)
    except OSError:
        return False
    return True


def _stamp_ns(path: str) -> int:
    fd = ops.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return ops.fstat(fd).st_mtime_ns
    finally:
        ops.close(fd)


class QueueTasks:
    """Hold the queues that this peer has open, by their paths; each method called ``queue_...`` is a task."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}

    def queue_open(
        self,
        queue: str,
        lock: str,
        lease_timeout_s: float | None = None,
        heartbeat_s: float | None = None,
        patience_s: float = 0.0,
    ) -> str:
        """Open a queue; return this handle's owner.

        Args:
            patience_s: seconds that the queue may take to come into sight of this mount as a whole.
        """
        arguments: dict[str, Any] = {"lock": lock, "lease_timeout_s": lease_timeout_s, "heartbeat_s": heartbeat_s}
        deadline = ops.monotonic() + patience_s
        while True:
            try:
                self._queues[queue] = FileSampleRefQueue(queue, **arguments)
                return self._queues[queue].owner
            except FsQueueError:
                if ops.monotonic() >= deadline:
                    raise
            ops.sleep(_LOOK_S)

    def queue_put(self, queue: str, ids: list[str]) -> None:
        self._queues[queue].put([sample(sample_id) for sample_id in ids])

    def queue_get(self, queue: str, count: int, timeout_s: float = 0.0) -> list[str]:
        return [ref.sample_id for ref in self._queues[queue].get(count, timeout_s)]

    def queue_ack(self, queue: str, ids: list[str]) -> list[str]:
        return self._queues[queue].ack([sample(sample_id) for sample_id in ids])

    def queue_counts(self, queue: str) -> list[int]:
        return list(self._queues[queue].counts())

    def queue_put_same(self, directory: str, key: str, queue: str, ids: list[str]) -> None:
        """Put ids that another peer puts at the same instant."""
        for sample_id in ids:
            self.queue_put(os.path.join(directory, queue), [sample_id])

    def queue_die(self) -> None:
        """Leave the world without a word, as a killed trainer does."""
        os.kill(os.getpid(), signal.SIGKILL)

    def queue_ping(self, directory: str, key: str, there: str, back: str, rounds: int) -> list[float]:
        """Time round trips, in seconds: a ref goes through one queue, and another one comes back through a second."""
        out, home = self._queues[os.path.join(directory, there)], self._queues[os.path.join(directory, back)]
        seconds: list[float] = []
        for number in range(rounds):
            started = time.perf_counter()
            out.put([sample(f"ping-{number}")])
            refs = home.get(1, timeout_s=_PING_S)
            seconds.append(time.perf_counter() - started)
            if not refs:
                raise TimeoutError(f"round {number} of {rounds} got no answer within {_PING_S:g} s")
            home.ack(refs)
        return seconds

    def queue_pong(self, directory: str, key: str, there: str, back: str, rounds: int) -> None:
        """Answer queue_ping."""
        out, home = self._queues[os.path.join(directory, there)], self._queues[os.path.join(directory, back)]
        for number in range(rounds):
            refs = out.get(1, timeout_s=_PING_S)
            home.put([sample(f"pong-{number}")])
            out.ack(refs)

    def queue_churn(
        self, directory: str, key: str, queue: str, count: int, batch: int, limit_s: float, stay_s: float
    ) -> dict[str, Any]:
        """Put count refs of one's own and lease, fail, release, acknowledge whatever comes, until nothing is left."""
        work = [f"{key}/{number:05d}" for number in range(count)]
        return Churn(self._queues[os.path.join(directory, queue)], work, batch, stay_s).run(limit_s)

    def close_all(self) -> None:
        for queue in self._queues.values():
            queue.close()


_queues = QueueTasks()
TASKS: dict[str, Callable[..., Any]] = {
    **peer_tasks.TASKS,
    **{task.__name__: task for task in (hello, appears, make, know, move, sees, stamp, stamp_seen, touch)},
    **{name: getattr(_queues, name) for name in dir(_queues) if name.startswith("queue_")},
}


if __name__ == "__main__":
    atexit.register(_queues.close_all)
    peer_tasks.serve(TASKS)
