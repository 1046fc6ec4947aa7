"""Batches through the loader, beside a bare loop over the same files; onto a GPU, where there is one."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from safetensors.torch import load_file

from fsqueue import SampleRef
from fsqueue.features import FeatureDataLoader, SharedDirFeatureStore
from storing.files import Spent, keep_freed_memory, ratio, size_shown, spent_on

THREADS = (0, 1, 2)
GOAL = 0.95
_BATCH = 4

Run = Callable[[], int]


class Batches:
    """Samples in a store, gone over in every way in turn; what a batch holds is summed up, as a trainer reads it."""

    def __init__(self, directory: str, samples: int, sample_bytes: int, device: str) -> None:
        self._store = SharedDirFeatureStore(directory, durable=False)
        self._device = device
        self.sample_bytes = sample_bytes
        tensors = {name: torch.randn(sample_bytes // 4, dtype=torch.bfloat16) for name in ("hidden", "target")}
        self._refs: list[SampleRef] = [
            self._store.put(f"s{number}", tensors).ref(run_id="bench", source_task_id=None, strategy="eagle3")
            for number in range(samples)
        ]
        self._paths = [
            os.path.join(directory, ref.feature_store_uri.split("/", 3)[3].partition("?")[0]) for ref in self._refs
        ]

    def bare(self) -> int:
        """Load and stack, and copy where that is to be done."""
        count = 0
        for at in range(0, len(self._paths), _BATCH):
            loaded = [load_file(path) for path in self._paths[at : at + _BATCH]]
            stacked = {name: torch.stack([tensors[name] for tensors in loaded]) for name in loaded[0]}
            count += self._use({name: tensor.to(self._device) for name, tensor in stacked.items()})
        return count

    def loader(self, threads: int) -> int:
        loader: FeatureDataLoader[SampleRef] = FeatureDataLoader(
            self._store,
            refs=self._refs,
            batch_size=_BATCH,
            prefetch=threads,
            prefetch_bytes=2 * max(threads, 1) * _BATCH * self.sample_bytes,
            device=self._device,
        )
        return sum(self._use(batch.features) for batch in loader)

    def _use(self, batch: dict[str, torch.Tensor]) -> int:
        for tensor in batch.values():
            tensor.view(torch.int64).sum()
        return len(batch["hidden"])


def measure(directory: str, samples: int, sample_bytes: int, rounds: int) -> list[dict[str, Any]]:
    """Run the bare loop and the loader with each number of threads in turn; the ratios are taken within a round."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = Batches(directory, samples, sample_bytes, device)
    torch_s_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_freed_memory()
    ways: dict[int | None, Run] = {None: batches.bare}
    ways |= {threads: lambda threads=threads: batches.loader(threads) for threads in THREADS}  # type: ignore[misc]
    took: dict[int | None, list[Spent]] = {way: [] for way in ways}
    try:
        for _ in range(rounds):
            for way, run in ways.items():
                took[way].append(spent_on(lambda _, run=run: _all(run(), samples), 1))  # type: ignore[misc]
    finally:
        torch.set_num_threads(torch_s_threads)
    return [_row(batches, samples, device, way, took) for way in ways]


def _row(
    batches: Batches, samples: int, device: str, way: int | None, took: dict[int | None, list[Spent]]
) -> dict[str, Any]:
    return {
        "loop": "bare" if way is None else f"loader, {way} threads",
        "sample": size_shown(batches.sample_bytes),
        "device": device,
        "MB/s": samples * batches.sample_bytes / statistics.median(spent.wall_s for spent in took[way]) / 1e6,
        "x bare": ratio(took[None], took[way], "wall_s"),
        "by CPU": ratio(took[None], took[way], "cpu_s"),
    }


def _all(loaded: int, samples: int) -> None:
    if loaded != samples:
        raise AssertionError(f"{loaded} of {samples} samples were loaded")
