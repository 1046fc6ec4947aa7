"""What put, get and ack cost on a slow shared mount: round trips, modifications and milliseconds a ref.

    python benchmarks/slow_mount.py --batch 1,16,64
    python benchmarks/slow_mount.py --dir /your/nfs/dir --real

The file operations run on --dir, behind a layer that makes each as slow as on an NFS 4.2 mount and counts its round
trips (slow/layer.py). With --real, --dir is on NFS itself, nothing is made slow, and the kernel's count of the mount's
round trips is read (slow/counted.py). Beside the queue runs the naive protocol: the same order of handing out, one
operation after the other, with nothing saved. Exits with 1 when a ref was lost, doubled or out of order.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.disk.fileops import using
from measuring.report import STEPS
from measuring.session import counts, parser, session
from measuring.tables import table
from slow.clock import VirtualClock
from slow.counted import CountedMount
from slow.layer import MODIFY_S, MODIFYING, READ_S, SlowMount
from slow.naive import NaiveQueue
from subjects.sample import LEASE_TIMEOUT_S, sample

NAIVE = "one operation after the other"
QUEUE = "FileSampleRefQueue"


@dataclass
class Cost:
    """What one subject's calls of one batch size cost, a round each.

    Attributes:
        trips: of all rounds together, by step and procedure.
        seconds: of each round, by step.
        put, got: ids.
    """

    subject: str
    batch: int
    rounds: int
    trips: dict[str, Counter[str]] = field(default_factory=lambda: {step: Counter() for step in STEPS})
    seconds: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    put: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.put == self.got and len(set(self.put)) == len(self.put)

    def row(self) -> dict[str, Any]:
        """One row: the figures a ref for each step, and for all three."""
        refs = self.rounds * self.batch
        found: dict[str, Any] = {"subject": self.subject, "batch": self.batch, "clean": self.clean}
        for step in STEPS:
            found[f"{step}_trips"] = self.trips[step].total() / refs
            found[f"{step}_modifications"] = sum(n for name, n in self.trips[step].items() if name in MODIFYING) / refs
            found[f"{step}_ms"] = median(self.seconds[step]) * 1e3 / self.batch
            found[f"{step}_procedures"] = {name: count / refs for name, count in sorted(self.trips[step].items())}
        for what in ("trips", "modifications", "ms"):
            found[what] = sum(found[f"{step}_{what}"] for step in STEPS)
        return found


def measured(
    subject: str, queue: Any, mount: SlowMount | CountedMount, batch: int, rounds: int, now: Callable[[], float]
) -> Cost:
    """Rounds of put, get and ack of a batch, after two that only warm up: the first tells the queue that it is slow."""
    cost = Cost(subject, batch, rounds)
    for number in range(-2, rounds):
        refs = [sample(f"b{batch}-{number}-{index:04d}") for index in range(batch)]
        taken: list[SampleRef] = []
        works: tuple[Callable[[], object], ...] = (
            lambda refs=refs: queue.put(refs),  # type: ignore[misc]
            lambda taken=taken: taken.extend(queue.get(batch)),  # type: ignore[misc]
            lambda taken=taken: queue.ack(taken),  # type: ignore[misc]
        )
        for step, work in zip(STEPS, works, strict=True):
            mount.reset()
            started = now()
            work()
            if number >= 0:
                cost.seconds[step].append(now() - started)
                cost.trips[step].update(mount.trips)
        cost.put += [ref.sample_id for ref in refs]
        cost.got += [ref.sample_id for ref in taken]
    return cost


@contextmanager
def opened(subject: str, mount: SlowMount | CountedMount, path: str, durable: bool) -> Iterator[Any]:
    with using(mount.ops):
        queue: Any
        if subject == NAIVE:
            queue = NaiveQueue(mount.ops, path)
        else:
            queue = FileSampleRefQueue(path, lease_timeout_s=LEASE_TIMEOUT_S, durable=durable)
        try:
            yield queue
        finally:
            queue.close()


def text(rows: list[dict[str, Any]]) -> str:
    """A table of the totals, and one of the procedures."""
    header = ["subject", "batch", "round trips a ref", "modifications a ref", "ms a ref", *STEPS, "x naive"]
    naive = {row["batch"]: row["ms"] for row in rows if row["subject"] == NAIVE}
    lines = [
        [row["subject"], str(row["batch"]), f"{row['trips']:.2f}", f"{row['modifications']:.2f}", f"{row['ms']:.2f}",
         *(f"{row[f'{step}_ms']:.2f}" for step in STEPS), f"{naive[row['batch']] / row['ms']:.2f}"]
        for row in rows
    ]  # fmt: skip
    detail = [
        [row["subject"], str(row["batch"]), step, f"{row[f'{step}_trips']:.2f}", f"{row[f'{step}_modifications']:.2f}",
         "  ".join(f"{name} {count:.2f}" for name, count in row[f"{step}_procedures"].items())]
        for row in rows
        for step in STEPS
    ]  # fmt: skip
    detailed = table(["subject", "batch", "step", "round trips", "modifications", "by procedure"], detail)
    return f"{table(header, lines)}\n\na ref:\n{detailed}"


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with session(parsed) as run:
        pace = "as it is" if parsed.real else f"a read {parsed.read_ms:g} ms, a modification {parsed.modify_ms:g} ms"
        pace += " of a clock that only they move" if parsed.virtual else ""
        print(f"{pace}, {parsed.rounds} rounds, {'durable' if parsed.durable else 'not durable'}\n")
        for batch in parsed.batch:
            for subject in (QUEUE, NAIVE):
                clock = VirtualClock() if parsed.virtual else None
                mount = (
                    CountedMount(run.directory)
                    if parsed.real
                    else SlowMount(parsed.read_ms / 1e3, parsed.modify_ms / 1e3, clock=clock)
                )
                now = clock.monotonic if clock else time.perf_counter
                with opened(subject, mount, os.path.join(run.directory, f"{len(rows)}"), parsed.durable) as queue:
                    rows.append(measured(subject, queue, mount, batch, parsed.rounds, now).row())
    clean = all(row["clean"] for row in rows)
    print(text(rows))
    print(f"\nchecked: {'nothing' if clean else 'SOME'} lost, doubled or out of order")
    run.write({"options": vars(parsed), "results": rows})
    return 0 if clean else 1


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__, tempfile.gettempdir())
    found.add_argument("--batch", type=counts, default=(1, 16, 64), help="refs a call (default: 1,16,64)")
    found.add_argument("--rounds", type=int, default=5, help="rounds that count (default: %(default)s)")
    found.add_argument("--read-ms", type=float, default=READ_S * 1e3, help="a round trip (default: %(default)s)")
    found.add_argument("--modify-ms", type=float, default=MODIFY_S * 1e3, help="a commit (default: %(default)s)")
    found.add_argument(
        "--virtual", action="store_true", help="add the times up and spend none: a busy machine does not show"
    )
    found.add_argument("--real", action="store_true", help="count on --dir's own NFS mount; make nothing slow")
    found.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True, help="fsync what is put")
    return found


if __name__ == "__main__":
    sys.exit(main())
