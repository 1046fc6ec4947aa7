"""Keep a little of the disk in reserve, for what empties a queue once the disk is full.

A rename may need a block for the directory that it leads to, a packing an inode for its segment. So a queue has a file
of no use, ``.reserve``, made while there is room. Whoever finds the disk full, or a quota used up, while it takes refs
out of the queue frees half of that file and tries again, at last all of it with its inode. It is made anew once there
is room. A put may not have it: it would only fill the disk further. Beside it lie empty files, ``.reserve-1`` and so
on, which give an inode each: to consumers that join the stream, for instance.

It is a help and no promise: somebody else's file may get the blocks first.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from contextlib import suppress
from math import inf
from typing import TypeVar

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps

T = TypeVar("T")

RESERVE = ".reserve"
INODES = tuple(f"{RESERVE}-{number}" for number in range(1, 8))
BASE_BYTES = 1 << 20  # XFS grows a directory by a block only where about 65 are free
MEMORY_BASE_BYTES = 1 << 16  # where a directory takes no blocks
LIMIT_BYTES = 1 << 26
AN_ORDER = 5  # bytes of reserve a byte of it: what the names in its lines take in a directory of half-full blocks
LOOK_S = 60.0
_FIRST_COVERED_BYTES = BASE_BYTES // AN_ORDER
_PIECE_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 12
FREED_S = 0.05  # XFS gives a removed file's inode back in the background
_SHARE = 16  # of the free space, at most one part in so many
_SPARE_INODES = 64
_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_IN_MEMORY = ("tmpfs", "ramfs")
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Tell whether an error says that a disk or a quota has no block or inode left."""
    return error.errno in _FULL


def filler(ops: FileOps, size: int) -> bytes:
    """Return so many random bytes: zeros take no room on a filesystem that compresses."""
    return random.Random(ops.random()).randbytes(size)


class Reserve:
    """Make and give up the reserve in a queue's directory."""

    def __init__(self, ops: FileOps, root: Directory) -> None:
        self._ops = ops
        self._root = root
        self._covered_bytes: float = _FIRST_COVERED_BYTES
        self._look_at = ops.monotonic() + LOOK_S

    def tend_if_due(self, order_bytes: int) -> None:
        """Look after the reserve once a minute, and where the backlog has outgrown it.

        Args:
            order_bytes: how long the order is, which tells how much room the names take that will move to done/.
        """
        if order_bytes > self._covered_bytes or self._ops.monotonic() >= self._look_at:
            self.tend(order_bytes)

    def tend(self, order_bytes: int = 0) -> None:
        """Make the reserve as large as is needed, as far as there is room; an error costs the reserve only."""
        wanted = min(LIMIT_BYTES, BASE_BYTES * max(1, -(-AN_ORDER * order_bytes // BASE_BYTES)))
        self._covered_bytes = wanted // AN_ORDER if wanted < LIMIT_BYTES else inf
        self._look_at = self._ops.monotonic() + LOOK_S
        with suppress(OSError):
            in_memory = self._ops.filesystem_type(self._root.path) in _IN_MEMORY
            self._resize(MEMORY_BASE_BYTES if in_memory else wanted)

    def _resize(self, wanted: int) -> None:
        status = self._ops.status(self._root.fd, RESERVE)
        size = status.st_size if status else 0
        free, inodes = self._ops.room(self._root.fd)
        if inodes >= _SPARE_INODES:
            self._keep_inodes()
        if size < wanted and inodes >= _SPARE_INODES:
            self._grow(size, size + min(wanted - size, free // _SHARE // _BLOCK_BYTES * _BLOCK_BYTES))
        elif size > 4 * wanted:
            self._change(lambda fd: self._ops.ftruncate(fd, wanted))

    def _keep_inodes(self) -> None:
        """Make those of the empty files that are missing."""
        for name in sorted(set(INODES).difference(self._root.listing())):
            self._ops.close_read(self._ops.open(name, _FLAGS | os.O_CREAT, 0o666, dir_fd=self._root.fd))

    def _grow(self, size: int, wanted: int) -> None:
        """Write what is missing."""

        def write(fd: int) -> None:
            for offset in range(size, wanted, _PIECE_BYTES):
                self._ops.pwrite_all(fd, filler(self._ops, min(_PIECE_BYTES, wanted - offset)), offset)

        if size < wanted:
            try:
                self._change(write, os.O_CREAT)
            except OSError:
                self.give_up()  # it was to be made of room to spare, and there is none
                raise

    def _change(self, work: Callable[[int], T], flags: int = 0) -> T:
        fd = self._ops.open(RESERVE, _FLAGS | flags, 0o666, dir_fd=self._root.fd)
        try:
            return work(fd)
        finally:
            self._ops.close_written(fd)

    def give_up(self) -> bool:
        """Free half of the reserve's blocks, or one of its inodes where there is no other; False where there is none.

        RACE: of two processes that do so at once, both may free the same half: each then finds less to free.
        """
        if self._lacks_inodes() and self._give_an_inode():
            return True
        try:
            if self._change(self._halve):
                return True
        except OSError:
            pass  # there is none, or it was made by a user who let nobody else write it
        return self._give_an_inode()

    def _lacks_inodes(self) -> bool:
        """Tell whether inodes are what a full disk has none of, as far as it says; of a quota, nobody can tell."""
        with suppress(OSError):
            return self._ops.room(self._root.fd)[1] == 0
        return False

    def _give_an_inode(self) -> bool:
        """Remove one of the files, the one with the blocks as the last one."""
        for name in (*INODES, RESERVE):
            with suppress(OSError):
                if self._ops.remove(self._root.fd, name):
                    self._ops.sleep(FREED_S)
                    return True
        return False

    def _halve(self, fd: int) -> bool:
        size = self._ops.fstat(fd).st_size
        if size < 2 * _BLOCK_BYTES:
            return False
        self._ops.ftruncate(fd, size // 2)
        return True

    def retrying(self, work: Callable[[], T]) -> T:
        """Run work; where the disk is full, run it again with each part of the reserve that is given up for it."""
        while True:
            try:
                return work()
            except OSError as error:
                if not (is_full(error) and self.give_up()):
                    raise
