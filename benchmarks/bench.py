"""Benchmark fsqueue on a directory of your own, against the bare file operations and against SQLite queues.

    python benchmarks/bench.py --dir /mnt/shared/scratch --durable --json result.json --plots charts

Exits with 1 when a ref was lost or delivered twice, whatever the figures are.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

from measuring import report
from measuring.arguments import arguments_of, describe, options_of
from measuring.measure import measure
from measuring.session import progress, session


def main(arguments: list[str] | None = None) -> int:
    parsed = arguments_of(__doc__).parse_args(arguments)
    with session(parsed) as run:
        backlogs = (200,) if parsed.quick else (1_000, 5_000, 20_000, 100_000)
        options = options_of(parsed, run.directory, backlogs, wakeups=10 if parsed.quick else 150)
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
        from measuring.plot import plot_all

        plot_all(report.series(rows, findings), run.title, parsed.plots)
    return 0 if all(verdict.clean for verdict in findings.verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
