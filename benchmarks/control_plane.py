"""Benchmark the control plane: ledger, restart, loader, in a directory of your own.

    python benchmarks/control_plane.py --dir /mnt/shared/scratch

Exits with 1 when something did not verify, whatever the figures are.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from control_ledger import opening, reconciling, transactions
from control_loader import loading
from control_section import Findings, Options, Section, table
from environment import environment, one_line

SECTIONS: dict[str, Section] = {"ledger": transactions, "open": opening, "reconcile": reconciling, "loader": loading}


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    Path(parsed.dir).mkdir(parents=True, exist_ok=True)
    found_environment = environment(parsed.dir)
    print(one_line(found_environment), flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that what was made is removed
    findings = [_run(SECTIONS[name], parsed) for name in parsed.only or SECTIONS]
    if parsed.json:
        result = {"environment": found_environment, "sections": [asdict(each) for each in findings]}
        Path(parsed.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if any(each.faults for each in findings) else 0


def _run(section: Section, parsed: argparse.Namespace) -> Findings:
    directory = tempfile.mkdtemp(prefix="fsqueue-control-", dir=parsed.dir)
    try:
        findings = section(Options(directory, parsed.quick))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"\n{findings.title}\n{table(findings.rows)}")
    for target, reached in findings.targets:
        print(f"  {'met   ' if reached else 'missed'}  {target}")
    for fault in findings.faults:
        print(f"  FAULT   {fault}")
    sys.stdout.flush()
    return findings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", default=".", help="a directory on the filesystem to measure (default: this one)")
    parser.add_argument("--only", action="append", choices=sorted(SECTIONS), help="a section; may be repeated")
    parser.add_argument("--json", help="write everything measured to this file")
    parser.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    return parser


if __name__ == "__main__":
    sys.exit(main())
