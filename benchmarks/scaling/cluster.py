"""A thousand nodes, on paper and by simulation: what they ask of the server, and what gives out first.

On paper: what one client alone makes, counted, times as many as there are, at the server's speed. Simulated: as many
clients as that, each the engine itself, in virtual time on a server that answers as fast and does one after the other
what an NFS server does so (`requests`). The measures with a goal compare the two.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.operate.doctor.costs import measure_costs
from measuring.session import progress
from scaling.clients import Made, cycle, restarted, worked
from scaling.measures import Measure, Scale
from scaling.requests import RENAMES, Speed
from slow.layer import MODIFY_S, READ_S

NODES = (10, 100, 1_000)
LOADS = ((50.0, 8), (500.0, 64))
_AGREES = 1.15
_UNTIL_S, _WINDOW_S = 75.0, 60.0
_BUDGET_S = 1.0
_LOCK = "holds of the lock"


def speed_of(directory: str, modify_ms: float | None = None) -> Speed:
    """Return how fast the server of a shared mount answers; on a local disk, how fast the slow mount's does."""
    if modify_ms is not None:
        return Speed(READ_S, modify_ms / 1e3)
    ops = FileOps()
    with closing(Directory(ops, directory)) as where:
        if where.filesystem.local:
            return Speed(READ_S, MODIFY_S)
    for name in ("source", "target"):
        os.mkdir(os.path.join(directory, name))
    with (
        closing(Directory(ops, os.path.join(directory, "source"))) as source,
        closing(Directory(ops, os.path.join(directory, "target"))) as target,
    ):
        costs = measure_costs(ops, source, target, _BUDGET_S)
    return Speed(costs["open_read_close"].median_us / 2e6, costs["rename"].median_us / 1e6)


@dataclass(frozen=True)
class _Limit:
    """What gives out first, at how many samples a second."""

    samples: float
    place: str


def _called(place: str) -> str:
    """Return what is done there one after the other."""
    return place if place == RENAMES else f"changes of {place}/"


def _limit(made: Made, batch: int, speed: Speed) -> _Limit:
    """Return what a batch's way through the queue holds alone for longest, and how many samples that lets through."""
    busy_s = {_called(place): number * speed.modify_s for place, number in made.alone.items()}
    busy_s[_LOCK] = made.held_s
    place = max(busy_s, key=lambda name: busy_s[name])
    return _Limit(batch / busy_s[place], place)


def cluster(scale: Scale) -> list[Measure]:
    """The load of many nodes: idle, at work, and after a restart of all at once."""
    speed = speed_of(scale.directory, scale.modify_ms)
    quick = scale.rounds < 10
    nodes = (3, 10) if quick else NODES
    result = [
        Measure("the server: a request that reads", speed.read_s * 1e3, "ms"),
        Measure("the server: one that modifies", speed.modify_s * 1e3, "ms"),
    ]
    result += _idle(nodes, speed)
    for samples, batch in LOADS:
        result += _at_work(samples, batch, 2 if quick else 8, 3.0 if quick else 20.0, speed)
    return result + _restarted(nodes, speed)


def _idle(nodes: tuple[int, ...], speed: Speed) -> list[Measure]:
    _, one = restarted(1, speed, 0, _UNTIL_S, _WINDOW_S)
    result = [Measure("an idle node: file operations", one.operations / one.lasted_s, "a second", 2)]
    for number in nodes:
        progress(f"{number} idle nodes ...")
        result.append(Measure(f"{number:,} idle nodes: requests", number * one.requests / one.lasted_s, "a second"))
        opened, all_of_them = restarted(number, speed, 0, _UNTIL_S, _WINDOW_S)
        result += [
            _compared(f"{number:,} idle nodes", all_of_them.requests, number * one.requests),
            Measure(f"{number:,} nodes restarted, nothing pending: requests", opened.requests),
            Measure(f"{number:,} nodes restarted, nothing pending: all wait after", opened.lasted_s, "s"),
        ]
    return result


def _at_work(samples: float, batch: int, pairs: int, lasts_s: float, speed: Speed) -> list[Measure]:
    name = f"{samples:g} samples/s in batches of {batch}"
    progress(f"{name} ...")
    one = cycle(batch, speed)
    limit = _limit(one, batch, speed)
    made, through = worked(pairs, speed, samples, batch, lasts_s)
    a_second = through / made.lasted_s
    return [
        Measure(f"{name}: file operations", samples / batch * one.operations, "a second"),
        Measure(f"{name}: requests", samples / batch * one.requests, "a second"),
        Measure(f"{name}: {limit.place} take", 100 * samples / limit.samples, "% of the time"),
        Measure(f"batches of {batch}: {limit.place} give out at", limit.samples, "samples/s"),
        Measure(f"{name}, simulated: went through", a_second, "samples/s"),
        Measure(f"{name}, simulated over possible", a_second / min(samples, limit.samples), "times"),
        Measure(f"{name}, simulated: requests a sample", made.requests / max(1, through)),
        Measure(f"{name}, on paper: requests a sample", one.requests / batch),
    ]


def _restarted(nodes: tuple[int, ...], speed: Speed) -> list[Measure]:
    """Each node gets a ref at once: an owner's record each, and the lock one after the other."""
    alone, _ = restarted(1, speed, 1, 5.0, 1.0)
    result = [Measure("a node's start, with its first ref: requests", alone.requests)]
    for number in nodes:
        progress(f"{number} nodes restarted ...")
        made, _ = restarted(number, speed, number, 5.0, 1.0)
        one_by_one = {_called(place): count * speed.modify_s for place, count in alone.alone.items()}
        one_by_one[_LOCK] = alone.held_s
        place = max(one_by_one, key=lambda name: one_by_one[name])
        result += [
            Measure(f"{number:,} nodes restarted, a ref each: {place} take", number * one_by_one[place], "s"),
            Measure(f"{number:,} nodes restarted, a ref each, simulated: all work after", made.lasted_s, "s"),
            Measure(f"{number:,} nodes restarted, a ref each, simulated: requests", made.requests),
        ]
    return result


def _compared(name: str, simulated: float, on_paper: float) -> Measure:
    return Measure(f"{name}: simulated over paper", simulated / on_paper, "times", _AGREES)
