"""A deep backlog: what calls cost, what a handle weighs, partitions, asking for the depth, holding the lock."""

from __future__ import annotations

import gc
import os
import time
import tracemalloc
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any

from measuring.report import STEPS
from scaling.measures import BATCH, Counted, Measure, Queue, Scale, fill, open_queue, seconds_of
from subjects.sample import sample

SHALLOW = 1_000
PARTITIONS = 64
DEPTHS_PER_S = 20


def deep(scale: Scale) -> list[Measure]:
    """The deep queue beside a shallow one, in alternating rounds."""
    paths = {count: os.path.join(scale.directory, f"{count}") for count in (SHALLOW, scale.backlog)}
    for count, path in paths.items():
        with open_queue(path) as queue:
            fill(queue, count)
    result = _flatness(paths, scale)
    weights = {count: _weight(path) for count, path in paths.items()}
    result.append(Measure(f"a handle at {scale.backlog:,} pending", weights[scale.backlog] / 1024, "KiB", 1024))
    growth = (weights[scale.backlog] - weights[SHALLOW]) / 1024
    result.append(Measure(f"the same, beyond one at {SHALLOW:,}", growth, "KiB", 16))
    counted = Counted()
    open_queue(paths[scale.backlog], counted.ops).close()
    result.append(Measure("listings to open it", counted.calls["listdir"] + counted.calls["scan_until"], "", 0))
    return result


def _flatness(paths: dict[int, str], scale: Scale) -> list[Measure]:
    """For each call and batch, the median over the deep queue by that over the shallow one."""
    result = []
    with ExitStack() as opened:
        queues = {count: opened.enter_context(open_queue(path)) for count, path in paths.items()}
        for batch in (1, BATCH):
            took: dict[tuple[int, str], list[float]] = {(count, step): [] for count in queues for step in STEPS}
            for number in range(-3, scale.rounds):
                for count, queue in queues.items():
                    cycle = _cycle(queue, f"b{batch}-{number}", batch)
                    if number >= 0:  # the first rounds only warm up
                        for step, seconds in zip(STEPS, cycle, strict=True):
                            took[count, step].append(seconds)
            for step in STEPS:
                times = median(took[scale.backlog, step]) / median(took[SHALLOW, step])
                name = f"{step}, batch {batch}: {scale.backlog:,} pending over {SHALLOW:,}"
                result.append(Measure(name, times, "times", 1.5))
    return result


def _cycle(queue: Queue, prefix: str, batch: int) -> tuple[float, float, float]:
    refs = [sample(f"{prefix}-{number}") for number in range(batch)]
    taken: list[Any] = []
    put_s = seconds_of(lambda: queue.put(refs))
    get_s = seconds_of(lambda: taken.extend(queue.get(batch)))
    return put_s, get_s, seconds_of(lambda: queue.ack(taken))


def _weight(path: str) -> int:
    """Bytes of Python objects that an open handle keeps after it has been used."""
    _use(path)  # what is imported or cached once is no handle's
    tracemalloc.start()
    try:
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        with open_queue(path) as queue:
            _cycle(queue, "weight", BATCH)
            queue.depth()
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return after - before


def _use(path: str) -> None:
    with open_queue(path) as queue:
        _cycle(queue, "warm", BATCH)


def wide(scale: Scale) -> list[Measure]:
    """Partitions, depth() and the lock over a backlog that they share."""
    plain, parted = (os.path.join(scale.directory, name) for name in ("plain", "parted"))
    for path in (plain, parted):
        with open_queue(path) as queue:
            fill(queue, scale.wide)
    result = [*_asking(plain, scale), *_holding(plain, scale)]
    return result + _partitions(plain, parted, scale)


def _asking(path: str, scale: Scale) -> list[Measure]:
    """The CPU share of a process that asks for the depth all the time while nothing changes."""
    with open_queue(path) as queue:
        queue.depth()
        time.sleep(min(3.0, scale.seconds))  # a timestamp proves nothing before it is older than its grain
        queue.depth()
        started, used = time.monotonic(), time.process_time()
        while time.monotonic() - started < scale.seconds:
            queue.depth()
            time.sleep(1 / DEPTHS_PER_S)
        share = (time.process_time() - used) / (time.monotonic() - started)
    return [Measure(f"depth() {DEPTHS_PER_S} times a second, {scale.wide:,} pending", share * 100, "% of a core", 5)]


def _holding(path: str, scale: Scale) -> list[Measure]:
    """How long put and get hold the lock, apart and together."""
    counted, every, result = Counted(), [], []
    with open_queue(path, counted.ops) as queue:
        for batch in (1, BATCH):
            held: dict[str, list[float]] = {"put": [], "get": []}
            for number in range(scale.rounds):
                refs = [sample(f"hold{batch}-{number}-{index}") for index in range(batch)]
                works: dict[str, Callable[[], Any]] = {
                    "put": lambda refs=refs: queue.put(refs),  # type: ignore[misc]
                    "get": lambda batch=batch: queue.ack(queue.get(batch)),  # type: ignore[misc]
                }
                for step, work in works.items():
                    counted.held_s.clear()
                    work()
                    held[step] += counted.held_s
            result += [Measure(f"lock held by a {s}, batch {batch}", median(held[s]) * 1e6, "µs", 200) for s in held]
            every += held["put"] + held["get"]
    return [*result, Measure("lock held, all of these", median(every) * 1e6, "µs", 200)]


def _partitions(plain: str, parted: str, scale: Scale) -> list[Measure]:
    """Emptying a backlog, all of it: one handle without partitions, and as many handles as there are partitions."""
    with open_queue(plain) as queue:
        whole_s, whole = _empty([queue], None)
    with ExitStack() as opened:
        queues = [opened.enter_context(open_queue(parted)) for _ in range(PARTITIONS)]
        parted_s, found = _empty(queues, PARTITIONS)
    times = (parted_s / found) / (whole_s / whole)
    return [
        Measure(f"get, {PARTITIONS} partitions over unpartitioned, {scale.wide:,} pending", times, "times", 1.3),
        Measure("refs that the partitions left", scale.wide - found, "", 0, verifies=True),
    ]


def _empty(queues: list[Queue], count: int | None) -> tuple[float, int]:
    """Seconds spent in get, and refs got, until nothing is left."""
    spent, found, left = 0.0, 0, True
    while left:
        left = False
        for index, queue in enumerate(queues):
            started = time.perf_counter()
            refs = queue.get(BATCH, partition=None if count is None else (index, count))
            spent += time.perf_counter() - started
            found += len(refs)
            left = left or bool(refs)
            queue.ack(refs)
    return spent, found
