"""Lend memory for tensors, and use it again once they are gone.

malloc would keep much of what is freed: where threads load batches of 16 MiB and the trainer drops them, the process
grew to nine times what was alive, since each thread has an arena and freed blocks lie between others. Memory from the
kernel, on the other hand, is cleared page by page, which takes longer than to read a file into it.
"""

from __future__ import annotations

import math
import mmap
import weakref
from contextlib import suppress

import torch
from torch import Tensor

_LEAST_BYTES = 1 << 20
_WASTE = 8


class Buffers:
    """Lends memory to any number of threads, also after a fork.

    It has as much from the kernel as was lent at some time at once, at most.

    Args:
        most_free: bytes that are kept while nobody uses them; None: any number.
    """

    def __init__(self, most_free: int | None = None) -> None:
        self._most_free = most_free
        # RACE: no lock, since memory comes back from destructors, which run anywhere: each change is one list method.
        self._free: list[mmap.mmap] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return a tensor of the host's with any content; small ones are malloc's."""
        count = math.prod(shape) * dtype.itemsize
        if count < _LEAST_BYTES:
            return torch.empty(shape, dtype=dtype)
        memory = self._fitting(count) or self._new(count)
        lent = memoryview(memory)[:count]
        weakref.finalize(lent, self._take_back, memory).atexit = False
        return torch.frombuffer(lent, dtype=dtype).view(shape)

    def _fitting(self, count: int) -> mmap.mmap | None:
        """Take free memory that is hardly larger than that."""
        for memory in tuple(self._free):
            if count <= len(memory) <= count + count // _WASTE:
                with suppress(ValueError):  # another thread was first
                    self._free.remove(memory)
                    return memory
        return None

    def _new(self, count: int) -> mmap.mmap:
        """Have memory from the kernel, which first gets back as much of what is free."""
        given = 0
        with suppress(IndexError):
            while given < count:
                given += len(self._free.pop(0))
        memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):  # clearing it takes half of the time so, where the system has it
            memory.madvise(mmap.MADV_HUGEPAGE)
        return memory

    def _take_back(self, memory: mmap.mmap) -> None:
        if self._most_free is None or sum(map(len, tuple(self._free))) + len(memory) <= self._most_free:
            self._free.append(memory)
