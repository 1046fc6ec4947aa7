"""Many processes at one queue: throughput, shares, latencies, and partitions, beside a few processes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Barrier, Event
from statistics import mean, median

from measuring.fleet import reap
from measuring.tables import quantile
from scaling.measures import FILL_BATCH, Counted, Measure, Scale, checked, fill, open_queue
from subjects.sample import sample
from subjects.subject import take_all

FEW = 2
_BATCH = 16
_TIMES_AS_LONG = 3  # a consumer's share of a short run is mostly chance
_GUARD_S = 120.0
_WAIT_S = 0.5  # a saturated consumer waits for refs, as trainers do; one that is timed does not
_CONTEXT = multiprocessing.get_context("forkserver")


@dataclass
class Work:
    """What one process did."""

    put: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)
    calls_s: list[float] = field(default_factory=list)
    held_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What a process is to do.

    Attributes:
        pause_s: between its calls, as for the work that a trainer or a rollout does.
        partition: what a consumer asks for.
        timeout_s: how long a consumer's get waits where nothing is pending.
    """

    path: str
    name: str
    pause_s: float
    partition: tuple[int, int] | None = None
    timeout_s: float | None = None


def produce(plan: Plan, ready: Barrier, stop: Event, reply: Connection) -> None:
    work, number = Work(), 0
    with open_queue(plan.path, owner=plan.name) as queue:
        ready.wait(_GUARD_S)
        while not stop.is_set():
            ids = [f"{plan.name}-{number + index:07d}" for index in range(_BATCH)]
            number += _BATCH
            queue.put([sample(sample_id) for sample_id in ids])
            work.put += ids
            time.sleep(plan.pause_s)
    reply.send(work)


def consume(plan: Plan, ready: Barrier, stop: Event, reply: Connection) -> None:
    work, counted = Work(), Counted()
    with open_queue(plan.path, counted.ops, owner=plan.name) as queue:
        ready.wait(_GUARD_S)
        while not stop.is_set():
            started = time.perf_counter()
            refs = queue.get(_BATCH, plan.timeout_s, partition=plan.partition)
            work.calls_s.append(time.perf_counter() - started)
            queue.ack(refs)
            work.got += [ref.sample_id for ref in refs]
            time.sleep(plan.pause_s)
    work.held_s = counted.held_s
    reply.send(work)


@dataclass(frozen=True)
class Crowd:
    """What a number of producers and consumers did in so many seconds."""

    producers: list[Work]
    consumers: list[Work]
    seconds: float

    @property
    def refs_per_s(self) -> float:
        """Refs put and refs consumed, a pair counted as one."""
        return sum(len(work.put) + len(work.got) for work in self.producers + self.consumers) / 2 / self.seconds

    def shares(self) -> list[float]:
        """Each consumer's refs by what would be even, in ascending order."""
        even = mean(len(work.got) for work in self.consumers) or 1.0
        return sorted(len(work.got) / even for work in self.consumers)


def many(scale: Scale) -> list[Measure]:
    """A saturated run of few and of many, a run of many that also work, and one with a partition each."""
    rates: dict[str, list[float]] = {"few": [], "many": []}
    result: list[Measure] = []
    for turn in range(2):  # alternating, so that a noisy moment of the machine hits both
        for name, sizes in (("few", (FEW, FEW)), ("many", (scale.producers, scale.consumers))):
            crowd, check = _run(scale, f"{name}{turn}", *sizes)
            rates[name].append(crowd.refs_per_s)
            result.append(check)
    result += _saturated(scale, rates, crowd)
    paced, check = _run(scale, "paced", scale.producers, scale.consumers, pause_s=0.1)
    result += [check, *_latency("working 100 ms between calls", paced, 20)]
    parted, check = _run(scale, "parted", scale.producers, scale.consumers, parted=True)
    result += [check, Measure("fewest refs of a partition, of even", parted.shares()[0], "times", 0.5, at_least=True)]
    return result


def _saturated(scale: Scale, rates: dict[str, list[float]], crowd: Crowd) -> list[Measure]:
    few, many = (median(rates[name]) for name in ("few", "many"))
    shares = crowd.shares()
    sizes = f"{scale.producers} + {scale.consumers}"
    held = [held for work in crowd.consumers for held in work.held_s]
    return [
        Measure(f"{FEW} producers + {FEW} consumers, saturated", few, "refs/s"),
        Measure(f"{sizes}, saturated", many, "refs/s", 0.9 * few, at_least=True),
        Measure("smallest share of a consumer, of even", shares[0], "times", 0.8, at_least=True),
        Measure("largest share of a consumer, of even", shares[-1], "times", 1.2),
        Measure(f"lock held by a get of {_BATCH}, median of all", median(held) * 1e6, "µs", 200),
        *_latency("saturated", crowd, None),
    ]


def _latency(what: str, crowd: Crowd, bound: float | None) -> list[Measure]:
    calls = [call for work in crowd.consumers for call in work.calls_s]
    return [
        Measure(f"get, {what}: median", median(calls) * 1e3, "ms"),
        Measure(f"get, {what}: p99 over median", quantile(calls, 0.99) / median(calls), "times", bound),
    ]


def _run(
    scale: Scale, name: str, producers: int, consumers: int, pause_s: float = 0.0, parted: bool = False
) -> tuple[Crowd, Measure]:
    """Let them work for a while on a queue with a backlog, then empty it and compare ids."""
    path = os.path.join(scale.directory, name)
    backlog = [f"fill-{number:08d}" for number in range(scale.wide // 5)]
    with open_queue(path) as queue:
        fill(queue, len(backlog))
    plans: list[tuple[Callable[..., None], Plan]] = [
        (produce, Plan(path, f"producer{index}", pause_s)) for index in range(producers)
    ]
    for index in range(consumers):
        partition = (index, consumers) if parted else None
        plans.append((consume, Plan(path, f"consumer{index}", pause_s, partition, None if pause_s else _WAIT_S)))
    works, seconds = _work(plans, _TIMES_AS_LONG * scale.seconds)
    crowd = Crowd(works[:producers], works[producers:], seconds)
    with open_queue(path) as queue:
        rest = take_all(queue, FILL_BATCH)
    shutil.rmtree(path)  # a tmpfs runs out of inodes before it runs out of space
    put = backlog + [sample_id for work in works for sample_id in work.put]
    return crowd, checked(name, put, rest + [sample_id for work in works for sample_id in work.got])


def _work(plans: list[tuple[Callable[..., None], Plan]], seconds: float) -> tuple[list[Work], float]:
    """Run all of them side by side; what each did, and for how long. No process is left behind."""
    ready, stop = _CONTEXT.Barrier(len(plans) + 1), _CONTEXT.Event()
    processes: list[BaseProcess] = []
    replies: list[Connection] = []
    try:
        for target, plan in plans:
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            process: BaseProcess = _CONTEXT.Process(target=target, args=(plan, ready, stop, theirs), daemon=True)
            process.start()
            theirs.close()
            processes.append(process)
            replies.append(ours)
        ready.wait(_GUARD_S)
        started = time.monotonic()
        time.sleep(seconds)
        stop.set()
        took = time.monotonic() - started
        return [reply.recv() for reply in replies], took
    finally:
        for process in processes:
            reap(process, _GUARD_S)
