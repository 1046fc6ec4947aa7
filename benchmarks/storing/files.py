"""Put and get of a sample's features, beside safetensors' own functions and the bare bytes."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fsqueue import SampleRef
from fsqueue.features import SharedDirFeatureStore

Row = dict[str, Any]
Way = Callable[[int], object]

_ROUND_BYTES = 64 << 20
_MOST = 64
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


@dataclass(frozen=True)
class Wanted:
    """A ratio that is aimed at: of ``way`` over ``beside``, for samples of at least ``from_bytes``."""

    way: str
    beside: str
    ratio: float
    from_bytes: int


class Spent(NamedTuple):
    """Hold what a round of a way took.

    Attributes:
        cpu_s: of all of the process's threads, and of the kernel for them: steadier where others use the machine.
    """

    wall_s: float
    cpu_s: float


TARGETS = (
    Wanted("put", "save_file", 0.7, 64 << 10),
    Wanted("put", "save_file", 0.9, 1 << 20),
    Wanted("get", "load_file", 0.95, 1 << 20),
    Wanted("get, verified", "load_file", 0.5, 1 << 20),
)


class Files:
    """Samples of one size in one directory, written and read in every way in turn.

    Each has two tensors, as a draft model's features have: hidden states and a target. What is read is summed up, or
    mapping a file would cost nothing.
    """

    def __init__(self, directory: str, sample_bytes: int, durable: bool) -> None:
        self._directory = directory
        self._durable = durable
        self.bytes = sample_bytes
        self.count = max(1, min(_MOST, _ROUND_BYTES // sample_bytes))
        self._tensors = {name: torch.randn(sample_bytes // 4, dtype=torch.bfloat16) for name in ("hidden", "target")}
        self._store = SharedDirFeatureStore(os.path.join(directory, "store"), durable=durable)
        self._read = SharedDirFeatureStore(self._store.root, mapped=False)
        self._careful = SharedDirFeatureStore(self._store.root, verify=True)
        self._refs: dict[int, SampleRef] = {}

    def writers(self) -> dict[str, Way]:
        return {"put": self._put, "save_file": self._save_file, "bare write": self._write}

    def readers(self) -> dict[str, Way]:
        return {
            "get": lambda number: self._touch(self._store.get(self._refs[number])),
            "get, not mapped": lambda number: self._touch(self._read.get(self._refs[number])),
            "get, verified": lambda number: self._touch(self._careful.get(self._refs[number])),
            "load_file": lambda number: self._touch(load_file(self._path("saved", number))),
            "bare read": self._bare_read,
        }

    def _put(self, number: int) -> None:
        stored = self._store.put(f"s{number}", self._tensors)
        self._refs[number] = stored.ref(run_id="bench", source_task_id=None, strategy="eagle3")

    def _save_file(self, number: int) -> None:
        """Save as whoever wants a whole file does: under another name first, and synced where durable."""
        path = self._path("saved", number)
        save_file(self._tensors, path + ".tmp")
        if self._durable:
            _fsync(path + ".tmp")
        os.rename(path + ".tmp", path)
        if self._durable:
            _fsync(self._directory)

    def _write(self, number: int) -> None:
        fd = os.open(self._path("bare", number), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for tensor in self._tensors.values():
                os.write(fd, memory_of(tensor))
            if self._durable:
                os.fsync(fd)
        finally:
            os.close(fd)

    def _bare_read(self, number: int) -> None:
        path = self._path("bare", number)
        buffer = torch.empty(os.path.getsize(path), dtype=torch.uint8)
        fd = os.open(path, os.O_RDONLY)
        try:
            os.preadv(fd, [memory_of(buffer)], 0)
        finally:
            os.close(fd)
        self._touch({"all": buffer})

    def _touch(self, tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            tensor.view(torch.int64).sum()

    def _path(self, kind: str, number: int) -> str:
        return os.path.join(self._directory, f"{kind}-{number}")

    def remove(self) -> None:
        """Remove what was written: each way writes new files, as a run does."""
        for number in range(self.count):
            self._store.abort(f"s{number}")
            for kind in ("saved", "bare"):
                with suppress(FileNotFoundError):
                    os.unlink(self._path(kind, number))


def measure(files: Files, rounds: int) -> list[Row]:
    """Run all ways in turn, round by round; the medians over the rounds, ratios taken within a round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    try:
        took: dict[str, list[Spent]] = {way: [] for way in (*files.writers(), *files.readers())}
        for _ in range(rounds):
            files.remove()
            for ways in (files.writers(), files.readers()):
                for name, way in ways.items():
                    took[name].append(spent_on(way, files.count))
    finally:
        torch.set_num_threads(threads)
        files.remove()
    return [_row(files, name, took) for name in took]


def spent_on(way: Way, count: int) -> Spent:
    began = time.perf_counter(), time.process_time()
    for number in range(count):
        way(number)
    return Spent(time.perf_counter() - began[0], time.process_time() - began[1])


def ratio(theirs: list[Spent], mine: list[Spent], of: str) -> float:
    """Return the median over the rounds of how much more of this, wall_s or cpu_s, theirs took."""
    return float(statistics.median(getattr(a, of) / getattr(b, of) for a, b in zip(theirs, mine, strict=True)))


def _row(files: Files, name: str, took: dict[str, list[Spent]]) -> Row:
    writes = name in files.writers()
    beside = took["save_file" if writes else "load_file"]
    return {
        "way": name,
        "bytes": files.bytes,
        "MB/s": files.count * files.bytes / statistics.median(spent.wall_s for spent in took[name]) / 1e6,
        "x safetensors": ratio(beside, took[name], "wall_s"),
        "by CPU": ratio(beside, took[name], "cpu_s"),
        "x bare": ratio(took["bare write" if writes else "bare read"], took[name], "wall_s"),
    }


def keep_freed_memory() -> None:
    """Let malloc reuse a sample's memory for the next one: whether the kernel clears it anew each time, which is a
    matter of what else was allocated, would decide the figures. glibc alone.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, 2 << 30)


def memory_of(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data


def size_shown(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 1 << 20 else f"{count >> 10} KiB"


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
