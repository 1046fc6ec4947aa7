"""The loader's section of the control-plane benchmark: against a bare loop over the same files, in the same run."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from control_sections.section import Findings, Options, Row
from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.errors import install_command

GOAL = 0.8
_BATCH = 8
_WINDOW = 64
_TOKENS, _WIDTH = 1024, 2048
_PREFETCH = (0, 1, 2)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

Subject = Callable[[], int]


def loading(options: Options) -> Findings:
    """Samples a second, loaded and stacked in batches: a bare loop, the loader over a list, and over queues.

    Runs of the two take turns, and the best of each counts: on a machine with other work, what is slower than that
    is the other work.
    """
    try:
        import torch
    except ModuleNotFoundError:
        return Findings(f"loader: left out, since there is no torch here: {install_command('features')}")
    _keep_freed_memory()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compare(options, *((16, 2) if options.quick else (64, 9)))
    finally:
        torch.set_num_threads(threads)


def _keep_freed_memory() -> None:
    """Let malloc reuse a batch's memory for the next one: whether the kernel clears it anew each time, which is a
    matter of what else was allocated, would decide the figures of all subjects, by a factor of three. glibc alone.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        mallopt(_M_ARENA_MAX, 1)


def _compare(options: Options, samples: int, rounds: int) -> Findings:
    from fsqueue.features import SharedDirFeatureStore

    store = SharedDirFeatureStore(os.path.join(options.directory, "features"), durable=False)
    refs = _publish(store, samples)
    paths = [os.path.join(store.root, ref.feature_store_uri.split("/", 3)[3].partition("?")[0]) for ref in refs]
    size = refs[0].estimated_bytes
    findings = Findings(
        f"loader: {samples} samples of {size:,} bytes in batches of {_BATCH}, acked {_WINDOW} at a time"
    )
    for kind in ("list", "queue", "durable queue"):
        for prefetch in _PREFETCH:
            prepare, run = _subject(kind, prefetch, store, refs, options.directory)
            bare, loader = Best(), Best()
            for _ in range(rounds):
                prepare()
                bare.add(lambda: _bare(paths), samples, findings)
                loader.add(run, samples, findings)
            row = _row(kind, prefetch, samples, bare, loader)
            findings.rows.append(row)
            if kind != "durable queue":
                goal = f"over a {kind} with {prefetch} prefetch threads at least {GOAL} of the bare loop"
                findings.targets.append((goal, row["x bare loop"] >= GOAL))
    return findings


class Best:
    """The quickest of several runs, by the clock and by the CPU time that this process used."""

    def __init__(self) -> None:
        self.clock_s = self.cpu_s = float("inf")

    def add(self, run: Subject, samples: int, findings: Findings) -> None:
        clock_s, cpu_s = time.perf_counter(), time.process_time()
        loaded = run()
        self.cpu_s = min(self.cpu_s, time.process_time() - cpu_s)
        self.clock_s = min(self.clock_s, time.perf_counter() - clock_s)
        if loaded != samples:
            findings.faults.append(f"{loaded} of {samples} samples were loaded")


def _row(kind: str, prefetch: int, samples: int, bare: Best, loader: Best) -> Row:
    return {
        "loader over": kind,
        "prefetch": prefetch,
        "samples/s": samples / loader.clock_s,
        "bare loop/s": samples / bare.clock_s,
        "x bare loop": bare.clock_s / loader.clock_s,
        "by CPU time": bare.cpu_s / loader.cpu_s,
    }


def _publish(store: Any, samples: int) -> list[SampleRef]:
    import torch

    hidden = torch.randn(_TOKENS, _WIDTH, dtype=torch.bfloat16)
    return [
        store.put(f"s{number:05d}", {"hidden": hidden + number, "tokens": torch.arange(_TOKENS)}).ref(
            run_id="bench", source_task_id=None, strategy="eagle3"
        )
        for number in range(samples)
    ]


def _subject(
    kind: str, prefetch: int, store: Any, refs: list[SampleRef], directory: str
) -> tuple[Callable[[], object], Subject]:
    """What makes a loader's run possible, and the run."""
    from fsqueue.features import FeatureDataLoader

    if kind == "list":
        return lambda: None, lambda: _consume(FeatureDataLoader(store, refs=refs, batch_size=_BATCH, prefetch=prefetch))
    path = os.path.join(directory, kind)
    queue = FileSampleRefQueue(path, durable=kind == "durable queue", keep_done=False)
    loader: FeatureDataLoader[SampleRef] = FeatureDataLoader(
        store, queue=queue, batch_size=_BATCH, prefetch=prefetch, timeout_s=0.0, ack="deferred"
    )
    return lambda: queue.put(refs), lambda: _consume(loader)


def _bare(paths: list[str]) -> int:
    """Read and stack; what was read is let go of when the next batch is, as a training loop does."""
    import torch
    from safetensors.torch import load_file

    count = 0
    for at in range(0, len(paths), _BATCH):
        loaded = [load_file(path) for path in paths[at : at + _BATCH]]
        batch = {name: torch.stack([tensors[name] for tensors in loaded]) for name in loaded[0]}
        count += len(batch["hidden"])
    return count


def _consume(loader: Any) -> int:
    count = 0
    for batch in loader:
        count += len(batch.features["hidden"])
        if count % _WINDOW == 0:
            loader.ack(step=count // _WINDOW)
    loader.ack()
    return count
