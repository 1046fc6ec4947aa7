"""Does the cost stay flat? Backlog, partitions, processes, waiting, memory, start and nodes, each against its goal.

    python benchmarks/scale.py --dir /dev/shm/bench --backlog 1000000
    python benchmarks/scale.py --dir /dev/shm/bench --only operators --beside ../an-older-checkout

Prints a table of measure, figure, goal, met or not. Filling 10^6 refs takes a minute or two and 5 GB on a tmpfs.
Everything runs with durability off, but for the rates of `operators` with --durable. Exits with 1 when a ref was lost
or delivered twice, whatever the figures are.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from measuring.session import parser, progress, session
from measuring.tables import table
from scaling import cluster, depth, idle, many, operators
from scaling.measures import Measure, Scale

PARTS: dict[str, Callable[[Scale], list[Measure]]] = {
    "depth": depth.deep,
    "wide": depth.wide,
    "many": many.many,
    "idle": idle.idle,
    "start": idle.start,
    "cluster": cluster.cluster,
    "rates": operators.rates,
    "operators": operators.operators,
}
LONG = ("rates", "operators")
"""What is measured only where --only names it."""


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    found: list[Measure] = []
    with session(parsed) as run:
        for name in parsed.only:
            progress(f"{name} ...")
            directory = os.path.join(run.directory, name)
            os.mkdir(directory)
            found += PARTS[name](_scale(parsed, directory))
        progress("")
    print(f"\n{_text(found)}")
    run.write({"options": vars(parsed), "measures": [{**asdict(each), "met": each.met} for each in found]})
    return 0 if all(each.met for each in found if each.verifies) else 1


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--backlog", type=int, help="refs pending in the deep queue (default: 1000000)")
    found.add_argument("--wide", type=int, help="refs pending for partitions, depth() and status (default: 100000)")
    found.add_argument("--consumers", type=int, help="consumer processes (default: 64)")
    found.add_argument("--producers", type=int, help="producer processes (default: 16)")
    found.add_argument("--seconds", type=float, help="for each thing that is watched for a while (default: 5)")
    found.add_argument("--modify-ms", type=float, help="of cluster's server: how long a modification takes it")
    parts = partial(_parts, known=list(PARTS))
    short = [name for name in PARTS if name not in LONG]
    known = f"some of {','.join(PARTS)}; default: all but {','.join(LONG)}; rates is a part of operators"
    found.add_argument("--only", type=parts, default=short, help=known)
    found.add_argument("--beside", metavar="CHECKOUT", help="operators: another checkout to take ratios to")
    found.add_argument("--durable", action="store_true", help="operators: fsync what is put")
    found.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    return found


def _parts(text: str, known: list[str]) -> list[str]:
    unknown = [part for part in text.split(",") if part not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(known)}, found {unknown[0]!r}")
    return text.split(",")


def _scale(parsed: argparse.Namespace, directory: str) -> Scale:
    quick = parsed.quick
    return Scale(
        directory=directory,
        backlog=parsed.backlog or (3_000 if quick else 1_000_000),
        wide=parsed.wide or (3_000 if quick else 100_000),
        consumers=parsed.consumers or (4 if quick else 64),
        producers=parsed.producers or (2 if quick else 16),
        seconds=parsed.seconds or (0.5 if quick else 5.0),
        rounds=3 if quick else 60,
        beside=os.path.abspath(parsed.beside) if parsed.beside else None,
        durable=parsed.durable,
        modify_ms=parsed.modify_ms,
    )


def _text(found: list[Measure]) -> str:
    lines = [[each.name, each.figure, each.goal, {True: "met", False: "NOT MET", None: ""}[each.met]] for each in found]
    return table(["measure", "figure", "goal", ""], lines)


if __name__ == "__main__":
    sys.exit(main())
