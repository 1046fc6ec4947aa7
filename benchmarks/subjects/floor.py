"""The floor: the raw file operations that a ref takes from put to ack, and nothing else.

Names and contents are made beforehand; there is no JSON, no check, no lock, no order, no lease. No queue of one
file a ref and one rename a step can be faster, so a queue's share of this rate is what its logic leaves over.

    put   open(O_CREAT) write [fsync] close   rename tmp/ -> pending/   [fsync of pending/, once a batch]
    get   utime   rename pending/ -> leased/   open read close
    ack   rename leased/ -> done/   [fsync of done/ and leased/, once a batch]
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from subjects.subject import BULK

_DIRECTORIES = ("tmp", "pending", "leased", "done")
_READ_BYTES = 1 << 16
_FSYNC_THREADS = 16


class Names:
    """One ref's file names, one for each directory that it passes through."""

    __slots__ = ("leased", "pending", "sample_id", "tmp")

    def __init__(self, owner: str, sample_id: str, serial: int) -> None:
        self.sample_id = sample_id
        self.tmp = f"{owner}.{serial}"
        self.pending = f"{sample_id}.json"
        self.leased = f"{sample_id}@{owner}.json"


class Floor:
    """One process's use of one directory; each process leases the refs that it put itself."""

    def __init__(self, path: str, owner: str, content: bytes, durable: bool) -> None:
        self._owner = owner
        self._content = content
        self._durable = durable
        self._serial = itertools.count()
        self._pending: deque[Names] = deque()
        self._pool = ThreadPoolExecutor(_FSYNC_THREADS)
        for name in _DIRECTORIES:
            os.makedirs(os.path.join(path, name), exist_ok=True)
        self._fds = [os.open(os.path.join(path, name), os.O_RDONLY | os.O_DIRECTORY) for name in _DIRECTORIES]

    def names(self, sample_ids: list[str]) -> list[Names]:
        """What `put` takes; not part of what is timed."""
        return [Names(self._owner, sample_id, next(self._serial)) for sample_id in sample_ids]

    def oldest(self, count: int) -> list[Names]:
        """What `get` takes; not part of what is timed."""
        return [self._pending.popleft() for _ in range(min(count, len(self._pending)))]

    def put(self, batch: list[Names]) -> None:
        tmp_fd, pending_fd, content = self._fds[0], self._fds[1], self._content
        opened = []
        for names in batch:
            fd = os.open(names.tmp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666, dir_fd=tmp_fd)
            os.write(fd, content)
            if self._durable:
                opened.append(fd)
            else:
                os.close(fd)
        if self._durable:
            self._sync_and_close(opened)
        for names in batch:
            os.rename(names.tmp, names.pending, src_dir_fd=tmp_fd, dst_dir_fd=pending_fd)
        if self._durable:
            os.fsync(pending_fd)
        self._pending.extend(batch)

    def _sync_and_close(self, fds: list[int]) -> None:
        """Side by side, as the queue does: fsyncs share the disk's journal commits."""
        if len(fds) == 1:
            os.fsync(fds[0])
        else:
            list(self._pool.map(os.fsync, fds))
        for fd in fds:
            os.close(fd)

    def get(self, batch: list[Names]) -> list[Names]:
        pending_fd, leased_fd = self._fds[1], self._fds[2]
        for names in batch:
            os.utime(names.pending, dir_fd=pending_fd, follow_symlinks=False)
            os.rename(names.pending, names.leased, src_dir_fd=pending_fd, dst_dir_fd=leased_fd)
            fd = os.open(names.leased, os.O_RDONLY, dir_fd=leased_fd)
            os.read(fd, _READ_BYTES)
            os.close(fd)
        return batch

    def ack(self, batch: list[Names]) -> None:
        leased_fd, done_fd = self._fds[2], self._fds[3]
        for names in batch:
            os.rename(names.leased, names.pending, src_dir_fd=leased_fd, dst_dir_fd=done_fd)
        if self._durable:
            os.fsync(done_fd)
            os.fsync(leased_fd)

    def left(self) -> int:
        """Files in pending/ and leased/, of all processes."""
        return len(os.listdir(self._fds[1])) + len(os.listdir(self._fds[2]))

    @contextmanager
    def relaxed(self) -> Iterator[None]:
        """Without fsyncs, for filling and emptying outside of what is timed."""
        durable, self._durable = self._durable, False
        try:
            yield
        finally:
            self._durable = durable

    def close(self) -> None:
        self._pool.shutdown()
        for fd in self._fds:
            os.close(fd)


class FloorSubject:
    """The raw operations, on names and bytes that `plan` makes."""

    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self.put = floor.put
        self.get = floor.get
        self.ack = floor.ack
        self.close = floor.close

    def plan(self, sample_ids: list[str], count: int) -> tuple[list[Names], list[Names]]:
        return self._floor.names(sample_ids), self._floor.oldest(count)

    def fill(self, sample_ids: list[str]) -> None:
        with self._floor.relaxed():
            self._floor.put(self._floor.names(sample_ids))

    def drain(self) -> list[str]:
        found: list[str] = []
        while batch := self._floor.oldest(BULK):
            self._floor.ack(self._floor.get(batch))
            found.extend(names.sample_id for names in batch)
        return found

    def leftover(self) -> int:
        return self._floor.left()

    def recover(self) -> None:
        """Nothing does: there is no lease."""
