"""Measure what each file operation of a queue costs on a mount, in microseconds."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps

_CONTENT = b"x" * 600
_SAMPLES = 200
_FEWEST = 3
_LISTED = 100


@dataclass(frozen=True)
class Cost:
    """Hold microseconds a call; with fewer than 100 samples, p99_us is the slowest of them."""

    median_us: float
    p99_us: float
    samples: int


def measure_costs(
    ops: FileOps, source: Directory, target: Directory, budget_s: float, lock: bool = True
) -> dict[str, Cost]:
    """Measure each operation, one after the other, by one process.

    Args:
        source, target: two empty directories; they are empty again afterwards.
        budget_s: seconds that go into an operation at most, though a few calls are always made.
        lock: whether the lock can be measured; False where the mount has none.
    """
    bench = _Bench(ops, source, target, budget_s)
    created = bench.timed(lambda i: ops.close(ops.create(source.fd, str(i), _CONTENT)), _SAMPLES)
    count = len(created)
    steps: list[tuple[str, Callable[[int], object]]] = [
        ("stat", lambda i: ops.stat(str(i), dir_fd=source.fd, follow_symlinks=False)),
        ("open_read_close", lambda i: ops.read_file(source.fd, str(i))),
        ("utime", lambda i: ops.utime(str(i), dir_fd=source.fd, follow_symlinks=False)),
        ("rename", lambda i: ops.rename(str(i), str(i), src_dir_fd=source.fd, dst_dir_fd=target.fd)),
    ]
    times = {"create_write_close": created, **{name: bench.timed(step, count) for name, step in steps}}
    times["fsync"] = bench.fsyncs()
    times["fsync_directory"] = bench.directory_fsyncs()
    times["listdir"] = bench.listings()
    times["unlink"] = bench.unlinks()
    if lock:
        times["lock_unlock"] = bench.locks()
    return {name: _cost(seconds) for name, seconds in times.items()}


@dataclass(frozen=True)
class _Bench:
    ops: FileOps
    source: Directory
    target: Directory
    budget_s: float

    def timed(self, step: Callable[[int], object], count: int) -> list[float]:
        """Time up to count calls of ``step(i)``, in seconds; fewer when the budget is used up."""
        seconds: list[float] = []
        end = self.ops.monotonic() + self.budget_s
        for index in range(count):
            started = self.ops.monotonic()
            step(index)
            finished = self.ops.monotonic()
            seconds.append(finished - started)
            if finished > end and len(seconds) >= _FEWEST:
                break
        return seconds

    def fsyncs(self) -> list[float]:
        """Time the fsync of a file after one write, without the write."""
        fds: list[int] = []
        end = self.ops.monotonic() + self.budget_s
        try:
            while len(fds) < _FEWEST or (len(fds) < _SAMPLES // 4 and self.ops.monotonic() < end):
                fds.append(self.ops.create(self.source.fd, f"fsync{len(fds)}", _CONTENT))
            return self.timed(lambda i: self.ops.fsync(fds[i]), len(fds))
        finally:
            for index, fd in enumerate(fds):
                self.ops.close(fd)
                self.ops.remove(self.source.fd, f"fsync{index}")

    def directory_fsyncs(self) -> list[float]:
        """Time the fsync of a directory after one file was made in it."""
        seconds: list[float] = []
        end = self.ops.monotonic() + self.budget_s
        while len(seconds) < _FEWEST or (len(seconds) < _SAMPLES // 4 and self.ops.monotonic() < end):
            self.ops.close(self.ops.create(self.source.fd, "entry", _CONTENT))
            seconds += self.timed(lambda _: self.source.sync(), 1)
            self.ops.remove(self.source.fd, "entry")
        return seconds

    def listings(self) -> list[float]:
        """Time listings of a directory of `_LISTED` files, or fewer on a slow mount, opened anew each time."""
        names: list[str] = []
        end = self.ops.monotonic() + self.budget_s
        try:
            while len(names) < _LISTED and self.ops.monotonic() < end:
                names.append(f"listed{len(names)}")
                self.ops.close(self.ops.create(self.source.fd, names[-1], b""))
            return self.timed(lambda _: self.source.listing(), _SAMPLES)
        finally:
            for name in names:
                self.ops.remove(self.source.fd, name)

    def unlinks(self) -> list[float]:
        """Time the unlinks of what the renames have left, and empty both directories."""
        names = self.target.listing()
        seconds = self.timed(lambda i: self.ops.unlink(names[i], dir_fd=self.target.fd), len(names))
        for directory in (self.source, self.target):
            for name in directory.listing():
                self.ops.remove(directory.fd, name)
        return seconds

    def locks(self) -> list[float]:
        """Time a lock that nobody else wants, on a descriptor that is kept open."""
        fd = self.ops.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=self.source.fd)

        def cycle(_: int) -> None:
            self.ops.lock(fd)
            self.ops.unlock(fd)

        try:
            return self.timed(cycle, _SAMPLES)
        finally:
            self.ops.close(fd)
            self.ops.remove(self.source.fd, "lock")


def _cost(seconds: list[float]) -> Cost:
    ordered = sorted(seconds)
    slowest = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return Cost(round(statistics.median(ordered) * 1e6, 1), round(slowest * 1e6, 1), len(ordered))
