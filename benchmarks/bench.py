"""Benchmark fsqueue on a directory of your own, against the bare file operations and against SQLite queues.

    python benchmarks/bench.py --dir /mnt/shared/scratch --durable --json result.json

Exits with 1 when a ref was lost or delivered twice, whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import report
from environment import environment, one_line
from measure import Options, measure


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    Path(parsed.dir).mkdir(parents=True, exist_ok=True)
    found_environment = environment(parsed.dir)
    print(one_line(found_environment), flush=True)
    directory = tempfile.mkdtemp(prefix="fsqueue-bench-", dir=parsed.dir)
    options = _options(parsed, directory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was made is removed
    print(
        f"--dir {parsed.dir}, durability {'on' if options.durable else 'off'}, {options.rounds} interleaved rounds "
        f"of {options.slice_s:g} s a case\n",
        flush=True,
    )
    started = time.monotonic()
    try:
        findings = measure(options, _progress)
    finally:
        if not parsed.keep:
            shutil.rmtree(directory, ignore_errors=True)
    rows, wakeups = report.rows(findings), report.wakeup_rows(findings)
    judged = report.targets(options, found_environment["filesystem"], rows, wakeups)
    clean = all(verdict.clean for verdict in findings.verdicts)
    print(report.text(rows, wakeups, judged, findings))
    print(f"took {time.monotonic() - started:.0f} s")
    result = {
        "environment": found_environment,
        "options": asdict(options),
        "results": rows,
        "wakeup": wakeups,
        "targets": judged,
        "verified": [{**asdict(verdict), "clean": verdict.clean} for verdict in findings.verdicts],
    }
    if parsed.json:
        Path(parsed.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if parsed.plot:
        from plot import plot

        plot(rows, one_line(found_environment), parsed.plot)
    return 0 if clean else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", required=True, help="a directory on the filesystem to measure")
    parser.add_argument("--backlog", type=counts, help="refs pending meanwhile (default: 1000,5000,20000,100000)")
    parser.add_argument("--batch", type=counts, help="refs a call (default: 1,64)")
    parser.add_argument("--procs", type=counts, help="processes at once (default: 1,4)")
    parser.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True, help="fsync what is put")
    parser.add_argument("--rounds", type=int, help="interleaved rounds (default: 5)")
    parser.add_argument("--slice", type=float, help="seconds a case and round (default: 0.12)")
    parser.add_argument("--json", help="write everything measured to this file")
    parser.add_argument("--plot", help="write a plot to this file (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    parser.add_argument("--keep", action="store_true", help="leave the queues that were made in --dir")
    return parser


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


def counts(text: str) -> tuple[int, ...]:
    """``1,64`` to ``(1, 64)``."""
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, found {text!r}") from None
    if counts[0] < 1:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 1, found {counts[0]}")
    return counts


def _progress(line: str) -> None:
    """One line on stderr, overwritten in place; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
