"""Do in a peer process what a trainer or a rollout worker does, and look at files as one does.

Peers are sent this source (`learn`), so that they need nothing but fsqueue itself.
"""

from __future__ import annotations

import atexit
import os
import platform
import signal
import socket
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

import fsqueue
from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.disk.mounts import mount_of
from fsqueue.errors import LockUnsupportedError
from fsqueue.operate.doctor.probes import create_new
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import SampleRef

_GET_WAIT_S = 0.2
_FAIL_EVERY = 7
_RELEASE_EVERY = 11

Queue = FileSampleRefQueue[SampleRef]

ops = fileops.current()


def hello(directory: str) -> dict[str, Any]:
    """Say who the peer is, and what it sees under the directory."""
    mount = mount_of(directory)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "fsqueue": fsqueue.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "filesystem": mount.type if mount else None,
        "source": mount.source if mount else None,
        "mount_point": mount.point if mount else None,
        "mount_options": list(mount.options) if mount else [],
        "present": os.path.isdir(directory),
        "time": ops.time(),
    }


def make(directory: str, name: str) -> None:
    """Create a file in the way that put does: elsewhere, then renamed to its place."""
    unfinished = f".{name}.{os.getpid()}"
    with closing(Directory(ops, directory)) as folder:
        ops.close(ops.create(folder.fd, unfinished, b"x"))
        ops.rename(unfinished, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)


def rename(directory: str, name: str, new_name: str) -> bool:
    """Rename a file; False where it is not there."""
    with closing(Directory(ops, directory)) as folder:
        try:
            ops.rename(name, new_name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)
        except FileNotFoundError:
            return False
        return True


def touch(directory: str, name: str) -> dict[str, float]:
    """Stamp a file and read the stamp back; with it, what this host's clock says."""
    before = ops.time()
    ops.utime(os.path.join(directory, name))
    host_s = (before + ops.time()) / 2
    stamp_ns = status(directory, name, fresh=True) or 0
    return {"stamp_ns": stamp_ns, "skew_s": stamp_ns / 1e9 - host_s}


def status(directory: str, name: str, fresh: bool) -> int | None:
    """Return a file's mtime in ns, None where it seems not to exist; fresh: by open and fstat instead of stat."""
    path = os.path.join(directory, name)
    try:
        if not fresh:
            return ops.stat(path).st_mtime_ns
        fd = ops.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return ops.fstat(fd).st_mtime_ns
    finally:
        ops.close(fd)


def listing(directory: str) -> list[str]:
    """List a directory that is opened anew."""
    with closing(Directory(ops, directory)) as folder:
        return folder.listing()


def sample(sample_id: str) -> SampleRef:
    return SampleRef(
        sample_id=sample_id,
        run_id="verification",
        source_task_id=None,
        feature_store_uri="file:///features",
        feature_keys={"hidden_states": f"{sample_id}.safetensors"},
        feature_specs={},
        strategy="eagle3",
    )


class QueueTasks:
    """Hold the queues that this peer has open, by their paths; each method called ``queue_...`` is a task."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}

    def queue_open(
        self, queue: str, lock: str, lease_timeout_s: float | None = None, heartbeat_s: float | None = None
    ) -> str:
        """Open a queue; returns this handle's owner."""
        self._queues[queue] = FileSampleRefQueue(
            queue, lock=lock, lease_timeout_s=lease_timeout_s, heartbeat_s=heartbeat_s
        )
        return self._queues[queue].owner

    def queue_lock_error(self, queue: str) -> str | None:
        """Say why a queue with lock="flock" cannot be opened here; None where it can."""
        try:
            FileSampleRefQueue(queue).close()
        except LockUnsupportedError as error:
            return str(error)
        return None

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
            refs = home.get(1, timeout_s=60.0)
            seconds.append(time.perf_counter() - started)
            if not refs:
                raise TimeoutError(f"round {number} of {rounds} got no answer within 60 s")
            home.ack(refs)
        return seconds

    def queue_pong(self, directory: str, key: str, there: str, back: str, rounds: int) -> None:
        """Answer queue_ping."""
        out, home = self._queues[os.path.join(directory, there)], self._queues[os.path.join(directory, back)]
        for number in range(rounds):
            refs = out.get(1, timeout_s=60.0)
            home.put([sample(f"pong-{number}")])
            out.ack(refs)

    def queue_churn(self, directory: str, key: str, queue: str, count: int, batch: int, limit_s: float) -> Any:
        """Put count refs of one's own and lease, fail, release, acknowledge whatever comes, until nothing is left.

        While a ref is leased a marker file with its id exists, made with O_EXCL: a second holder would find it.
        """
        return _Churn(self._queues[os.path.join(directory, queue)], directory, key, count, batch).run(limit_s)

    def close_all(self) -> None:
        for queue in self._queues.values():
            queue.close()


class _Churn:
    """Do one peer's share of the torture.

    Attributes:
        found: ids put and acked here, and what must not be: leases lost, refs found to be held by two.
    """

    def __init__(self, queue: Queue, directory: str, key: str, count: int, batch: int) -> None:
        self._queue = queue
        self._ops = fileops.current()
        self._markers = Directory(self._ops, os.path.join(directory, "held"))
        self._to_put = [f"{key}/{number:05d}" for number in range(count)]
        self._batch = batch
        self._seen = 0
        self.found: dict[str, Any] = {"put": [], "acked": [], "lost_leases": [], "held_by_two": [], "returned": 0}

    def run(self, limit_s: float) -> dict[str, Any]:
        deadline = self._ops.monotonic() + limit_s
        while self._ops.monotonic() < deadline:
            ids, self._to_put = self._to_put[: self._batch], self._to_put[self._batch :]
            self._queue.put([sample(sample_id) for sample_id in ids])
            self.found["put"] += ids
            refs = self._queue.get(self._batch, _GET_WAIT_S)
            if not refs and not self._to_put and self._queue.counts()[:2] == (0, 0):
                break
            self._settle(refs)
        return self.found

    def _settle(self, refs: list[SampleRef]) -> None:
        done: list[SampleRef] = []
        marked: list[str] = []
        for ref in refs:
            alone = create_new(self._ops, self._markers, _marker(ref.sample_id))
            (marked if alone else self.found["held_by_two"]).append(ref.sample_id)
        for sample_id in marked:
            self._ops.unlink(_marker(sample_id), dir_fd=self._markers.fd)
        for ref in refs:
            self._seen += 1
            if self._seen % _FAIL_EVERY == 0:
                self._give_back(self._queue.fail([ref], "verification", retryable=True))
            elif self._seen % _RELEASE_EVERY == 0:
                self._give_back(self._queue.release([ref]))
            else:
                done.append(ref)
        lost = self._queue.ack(done)
        self.found["lost_leases"] += lost
        self.found["acked"] += [ref.sample_id for ref in done if ref.sample_id not in lost]

    def _give_back(self, lost: list[str]) -> None:
        self.found["returned"] += 1
        self.found["lost_leases"] += lost


def _marker(sample_id: str) -> str:
    return sample_id.replace("/", "-")


_queues = QueueTasks()
atexit.register(_queues.close_all)
TASKS: dict[str, Callable[..., Any]] = {
    **{task.__name__: task for task in (hello, make, rename, touch, status, listing)},
    **{name: getattr(_queues, name) for name in dir(_queues) if name.startswith("queue_")},
}
