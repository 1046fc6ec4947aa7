"""Benchmark fsqueue on a directory of your own, against the bare file operations and against SQLite queues.

    python benchmarks/bench.py --dir /mnt/shared/scratch --durable --json result.json --plots charts

Exits with 1 when a ref was lost or delivered twice, whatever the figures are.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict

import report
from measure import Options, measure
from session import counts, parser, progress, session


def main(arguments: list[str] | None = None) -> int:
    parsed = arguments_of(__doc__).parse_args(arguments)
    with session(parsed) as run:
        options = _options(parsed, run.directory)
        print(f"--dir {parsed.dir}, {describe(options)}\n", flush=True)
        started = time.monotonic()
        findings = measure(options, progress)
    rows, wakeups = report.rows(findings), report.wakeup_rows(findings)
    judged = report.targets(options, run.environment["filesystem"], rows, wakeups)
    print(report.text(rows, wakeups, judged, findings))
    print(f"took {time.monotonic() - started:.0f} s")
    verdicts = report.verdict_rows(findings)
    run.write({"options": asdict(options), "results": rows, "wakeup": wakeups, "targets": judged, "verified": verdicts})
    if parsed.plots:
        from plot import plot_all

        plot_all(report.series(rows, findings), run.title, parsed.plots)
    return 0 if all(verdict.clean for verdict in findings.verdicts) else 1


def arguments_of(doc: str | None) -> argparse.ArgumentParser:
    """The arguments of a script that measures with `measure`."""
    found = parser(doc)
    found.add_argument("--backlog", type=counts, help="refs pending meanwhile, such as 1000,20000")
    found.add_argument("--batch", type=counts, help="refs a call (default: 1,64)")
    found.add_argument("--procs", type=counts, help="processes at once (default: 1,4)")
    found.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True, help="fsync what is put")
    found.add_argument("--rounds", type=int, help="interleaved rounds (default: 5)")
    found.add_argument("--slice", type=float, help="seconds a case and round (default: 0.12)")
    found.add_argument("--plots", help="write charts into this directory (needs matplotlib)")
    found.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    return found


def describe(options: Options) -> str:
    durability = "on" if options.durable else "off"
    return f"durability {durability}, {options.rounds} interleaved rounds of {options.slice_s:g} s a case"


def _options(parsed: argparse.Namespace, directory: str) -> Options:
    quick = parsed.quick
    return Options(
        directory=directory,
        backlogs=parsed.backlog or ((200,) if quick else (1_000, 5_000, 20_000, 100_000)),
        batches=parsed.batch or ((8,) if quick else (1, 64)),
        processes=parsed.procs or ((1, 2) if quick else (1, 4)),
        durable=parsed.durable,
        rounds=parsed.rounds or (1 if quick else 5),
        slice_s=parsed.slice or (0.02 if quick else 0.12),
        wakeups=10 if quick else 150,
    )


if __name__ == "__main__":
    sys.exit(main())
