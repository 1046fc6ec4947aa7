"""Benchmark put, get and ack beside another build of fsqueue, in one run: this one's throughput over that one's.

    python benchmarks/builds.py --dir /dev/shm/bench --beside ../an-older-checkout --no-durable

Each build's processes work at a queue of their own with a backlog, in interleaved rounds; ratios are taken within a
round. CPU time says what the calls cost where other work shares the machine. Exits with 1 when a ref was lost or
delivered twice, whatever the figures are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from statistics import median
from typing import Any

from building.crew import Crew
from measuring.session import counts, parser, progress, session
from measuring.tables import table

_STEPS = ("put", "get", "ack")
_BACKLOG = 1_000
Case = tuple[int, int]
"""A number of processes, and of refs a call."""


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    rounds = parsed.rounds or (1 if parsed.quick else 9)
    slice_s = parsed.slice or (0.02 if parsed.quick else 0.3)
    with session(parsed) as run:
        builds = {"this": None, "that": os.path.abspath(parsed.beside)}
        crews = [
            Crew(label, checkout, os.path.join(run.directory, label), max(parsed.procs), parsed.durable)
            for label, checkout in builds.items()
        ]
        try:
            for crew in crews:
                crew.call(1, "fill", _BACKLOG)
            cases = [(processes, batch) for processes in parsed.procs for batch in parsed.batch]
            found = _rounds(crews, cases, rounds, slice_s)
            clean = [_is_clean(crew) for crew in crews]
        finally:
            for crew in crews:
                crew.end()
    rows = [_row(case, found[case]) for case in cases]
    print(f"durability {'on' if parsed.durable else 'off'}, {rounds} rounds of {slice_s:g} s; times {parsed.beside}\n")
    print(_text(rows))
    print(f"\nchecked: {'nothing' if all(clean) else 'SOME'} lost or doubled")
    run.write({"options": vars(parsed), "results": rows})
    return 0 if all(clean) else 1


def _rounds(crews: list[Crew], cases: list[Case], rounds: int, slice_s: float) -> dict[Case, list[list[Any]]]:
    """Return for each case and round what each build's processes did; the first round only warms up."""
    found: dict[Case, list[list[Any]]] = {case: [] for case in cases}
    for number in range(rounds + 1):
        for processes, batch in cases:
            progress(f"round {number}/{rounds}: {processes} processes, batch {batch}")
            turn = crews if number % 2 else crews[::-1]
            did = {crew.label: crew.call(processes, "run", batch, slice_s) for crew in turn}
            if number:
                found[processes, batch].append([did[crew.label] for crew in crews])
    progress("")
    return found


def _is_clean(crew: Crew) -> bool:
    crew.call(1, "drain")
    put: Counter[str] = Counter()
    got: Counter[str] = Counter()
    for ours_put, ours_got in crew.call(len(crew), "ids"):
        put.update(ours_put)
        got.update(ours_got)
    return put == got


def _row(case: Case, rounds: list[list[Any]]) -> dict[str, Any]:
    """Return medians: this build's rate and costs in µs a ref, and how many times those of the other one they are."""
    row: dict[str, Any] = {"processes": case[0], "batch": case[1]}
    sides = [[_sums(did) for did in each] for each in rounds]
    row["refs_per_s"] = median(_rate(this) for this, _ in sides)
    row["times"] = median(_rate(this) / _rate(that) for this, that in sides)
    for what in ("cpu_s", *_STEPS):
        name = what.removesuffix("_s")
        row[f"{name}_us"] = median(this[what] / this["refs"] * 1e6 for this, _ in sides)
        row[f"{name}_times"] = median(that[what] / that["refs"] / (this[what] / this["refs"]) for this, that in sides)
    return row


def _sums(did: list[dict[str, float]]) -> dict[str, float]:
    return {what: sum(each[what] for each in did) for what in did[0]} | {"processes": len(did)}


def _rate(side: dict[str, float]) -> float:
    return side["refs"] / (side["wall_s"] / side["processes"])


def _text(rows: list[dict[str, Any]]) -> str:
    header = ["processes", "batch", "refs/s", "x that", "CPU µs", "x", *(f"{step} µs  x" for step in _STEPS)]
    lines = [
        [str(row["processes"]), str(row["batch"]), f"{row['refs_per_s']:,.0f}", f"{row['times']:.2f}",
         f"{row['cpu_us']:.1f}", f"{row['cpu_times']:.2f}",
         *(f"{row[f'{step}_us']:.1f}  {row[f'{step}_times']:.2f}" for step in _STEPS)]
        for row in rows
    ]  # fmt: skip
    return table(header, lines)


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--beside", metavar="CHECKOUT", required=True, help="another checkout to take ratios to")
    found.add_argument("--batch", type=counts, default=(1, 64), help="refs a call (default: 1,64)")
    found.add_argument("--procs", type=counts, default=(1, 4), help="processes at once (default: 1,4)")
    found.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True, help="fsync what is put")
    found.add_argument("--rounds", type=int, help="interleaved rounds (default: 9)")
    found.add_argument("--slice", type=float, help="seconds a case, build and round (default: 0.3)")
    found.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    return found


if __name__ == "__main__":
    sys.exit(main())
