"""The naive protocol: the queue's order of handing out, one operation after the other, with nothing saved."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fsqueue import SampleRef
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.format.codec import Codec

_FOLDERS = ("tmp", "pending", "leased", "done")
_CURSOR_BYTES = 16


class NaiveQueue:
    """The naive protocol, for one process: create with O_EXCL, look, rename; stamp, rename, read; rename.

    Each call updates a cursor and a list of ids in a file, under that file's lock.
    """

    def __init__(self, ops: FileOps, path: str) -> None:
        self._ops = ops
        self._codec = Codec(SampleRef)
        for name in _FOLDERS:
            os.makedirs(os.path.join(path, name))
        self._folders = {name: Directory(ops, os.path.join(path, name)) for name in _FOLDERS}
        self._order = ops.open(os.path.join(path, "order"), os.O_RDWR | os.O_CREAT, 0o666)
        ops.pwrite(self._order, _cursor(0), 0)

    def put(self, refs: Sequence[SampleRef]) -> None:
        ops, tmp, pending = self._ops, self._folders["tmp"], self._folders["pending"]
        names = [ref.sample_id for ref in refs]
        for ref, name in zip(refs, names, strict=True):
            fd = ops.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=tmp.fd)
            ops.write(fd, self._codec.encode(ref))
            ops.close(fd)
        with self._locked() as size:
            leased = set(self._folders["leased"].listing())
            for name in names:
                if name not in leased and not ops.exists(pending.fd, name):
                    self._move(name, "tmp", "pending")
            ops.pwrite(self._order, "".join(f"{name}\n" for name in names).encode(), size)

    def get(self, max_refs: int) -> list[SampleRef]:
        with self._locked() as size:
            order = self._ops.pread(self._order, size, 0)
            cursor = int(order[:_CURSOR_BYTES])
            lines = order[_CURSOR_BYTES + cursor :].splitlines(keepends=True)[:max_refs]
            self._ops.pwrite(self._order, _cursor(cursor + sum(map(len, lines))), 0)
        return [self._lease(line.decode().strip()) for line in lines]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """Holds the order's lock; its size."""
        self._ops.lock(self._order)
        try:
            yield self._ops.fstat(self._order).st_size
        finally:
            self._ops.unlock(self._order)

    def _lease(self, name: str) -> SampleRef:
        self._ops.utime(name, dir_fd=self._folders["pending"].fd)
        self._move(name, "pending", "leased")
        return self._codec.decode(self._ops.read_file(self._folders["leased"].fd, name))

    def ack(self, refs: Sequence[SampleRef]) -> None:
        for ref in refs:
            self._move(ref.sample_id, "leased", "done")

    def _move(self, name: str, source: str, target: str) -> None:
        self._ops.rename(name, name, src_dir_fd=self._folders[source].fd, dst_dir_fd=self._folders[target].fd)

    def close(self) -> None:
        self._ops.close(self._order)
        for directory in self._folders.values():
            directory.close()


def _cursor(offset: int) -> bytes:
    return b"%0*d\n" % (_CURSOR_BYTES - 1, offset)
