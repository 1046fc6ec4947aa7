"""Samples from producers to ranks, through queue, store and loader; and the same bytes through bare files."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier
from typing import Any, cast

import torch

from fsqueue import FileSampleRefQueue, SampleRef, TrainerView
from fsqueue.features import FeatureDataLoader, SharedDirFeatureStore
from storing.files import keep_freed_memory, memory_of, size_shown

PRODUCERS = RANKS = 2
GOAL = 0.85
_PAUSE_S = 0.001
_START_S = 300.0
_HIGH = 8

Part = Callable[[str, int, int, int], None]


def _tensors(sample_bytes: int) -> dict[str, torch.Tensor]:
    return {name: torch.randn(sample_bytes // 4, dtype=torch.bfloat16) for name in ("hidden", "target")}


def produce(directory: str, number: int, samples: int, sample_bytes: int) -> None:
    """Store features and put refs, held back while too many wait, as a rollout worker does."""
    store = SharedDirFeatureStore(os.path.join(directory, "features"), durable=False)
    tensors = _tensors(sample_bytes)
    with (
        FileSampleRefQueue(os.path.join(directory, "q"), durable=False) as queue,
        queue.producer(f"rollout-{number}", expected=PRODUCERS),
    ):
        for sample in range(samples):
            stored = store.put(f"{number}-{sample}", tensors)
            ref = stored.ref(SampleRef, run_id="bench", source_task_id=None, strategy="eagle3")
            queue.put_when_below([ref], high=_HIGH)


def train(directory: str, rank: int, samples: int, sample_bytes: int) -> None:
    """Load all samples of a rank, sum them up, acknowledge and release them, as a trainer does."""
    store = SharedDirFeatureStore(os.path.join(directory, "features"), durable=False)
    count = 0
    with (
        FileSampleRefQueue(os.path.join(directory, "q"), durable=False) as queue,
        TrainerView(queue, partition=(rank, RANKS), batch=1) as view,
        _loader(store, view) as loader,
    ):
        for batch in loader:
            for tensor in batch.features[0].values():
                tensor.view(torch.int64).sum()
            store.abort(batch.ids[0])
            count += 1
    if count != samples * PRODUCERS // RANKS:
        raise AssertionError(f"rank {rank} had {count} samples")


def _loader(store: SharedDirFeatureStore, view: TrainerView[SampleRef]) -> FeatureDataLoader[SampleRef]:
    return FeatureDataLoader(store, queue=view, batch_size=1, prefetch=1, collate=lambda samples: samples)


def write(directory: str, number: int, samples: int, sample_bytes: int) -> None:
    """Write each sample's bytes into a file of its own, held back while too many wait."""
    tensors = _tensors(sample_bytes)
    for sample in range(samples):
        while sample >= _HIGH // PRODUCERS and os.path.exists(_bare(directory, number, sample - _HIGH // PRODUCERS)):
            time.sleep(_PAUSE_S)
        path = _bare(directory, number, sample)
        fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        for tensor in tensors.values():
            os.write(fd, memory_of(tensor))
        os.close(fd)
        os.rename(path + ".tmp", path)


def read(directory: str, rank: int, samples: int, sample_bytes: int) -> None:
    """Map each file of one writer once it is there, sum it up, and remove it."""
    for sample in range(samples):
        path = _bare(directory, rank, sample)
        while not os.path.exists(path):
            time.sleep(_PAUSE_S)
        content = torch.from_file(path, shared=False, size=os.path.getsize(path), dtype=torch.uint8)
        content.view(torch.int64).sum()
        os.unlink(path)


def _bare(directory: str, number: int, sample: int) -> str:
    return os.path.join(directory, f"{number}-{sample}")


def measure(directory: str, samples: int, sample_bytes: int, rounds: int) -> dict[str, Any]:
    """Run both in turn, round by round; the ratio is the median of those within a round.

    Args:
        samples: of each producer.
    """
    took: dict[str, list[float]] = {"queue": [], "bare": []}
    for number in range(rounds):
        for name, parts in (("queue", (produce, train)), ("bare", (write, read))):
            place = os.path.join(directory, f"{name}{number}")
            os.mkdir(place)
            took[name].append(_run(parts, place, samples, sample_bytes))
    moved = PRODUCERS * samples * sample_bytes
    return {
        "producers": PRODUCERS,
        "ranks": RANKS,
        "samples": PRODUCERS * samples,
        "sample": size_shown(sample_bytes),
        "MB/s": moved / statistics.median(took["queue"]) / 1e6,
        "bare MB/s": moved / statistics.median(took["bare"]) / 1e6,
        "x bare": statistics.median(bare / queue for queue, bare in zip(took["queue"], took["bare"], strict=True)),
    }


def _run(parts: tuple[Part, Part], directory: str, samples: int, sample_bytes: int) -> float:
    """Return the seconds from when all processes are ready until the last one has ended."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(PRODUCERS + RANKS + 1)
    processes = [
        context.Process(target=_when_ready, args=(ready, part, directory, number, samples, sample_bytes))
        for part, count in zip(parts, (PRODUCERS, RANKS), strict=True)
        for number in range(count)
    ]
    for process in processes:
        process.start()
    ready.wait(_START_S)  # where one has died by then, all the others end, too
    began = time.perf_counter()
    _await(processes, directory)
    return time.perf_counter() - began


def _await(processes: Sequence[BaseProcess], directory: str) -> None:
    """Wait until all have ended; where one has failed, end the others, which may wait for it for half an hour."""
    running = {process.sentinel: process for process in processes}
    while running:
        for sentinel in wait(running):
            running.pop(cast(int, sentinel)).join()
        if any(process.exitcode for process in processes):
            for process in running.values():
                process.kill()
            raise RuntimeError(f"a process failed in {directory}")


def _when_ready(ready: Barrier, part: Part, directory: str, number: int, samples: int, sample_bytes: int) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    with suppress(FileExistsError):
        os.makedirs(directory)
    ready.wait()
    part(directory, number, samples, sample_bytes)
