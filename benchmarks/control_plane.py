"""Benchmark the control plane: ledger, restart, loader, in a directory of your own.

    python benchmarks/control_plane.py --dir /mnt/shared/scratch

Exits with 1 when something did not verify, whatever the figures are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from dataclasses import asdict

from control_sections.ledger import opening, reconciling, transactions
from control_sections.loader import loading
from control_sections.section import Findings, Options, Section, table
from measuring.session import Session, parser, session

SECTIONS: dict[str, Section] = {"ledger": transactions, "open": opening, "reconcile": reconciling, "loader": loading}


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    with session(parsed) as run:
        findings = [_run(name, run, parsed) for name in parsed.only or SECTIONS]
    run.write({"sections": [asdict(each) for each in findings]})
    return 1 if any(each.faults for each in findings) else 0


def _run(name: str, run: Session, parsed: argparse.Namespace) -> Findings:
    directory = os.path.join(run.directory, name)
    os.mkdir(directory)
    findings = SECTIONS[name](Options(directory, parsed.quick))
    if not parsed.keep:
        shutil.rmtree(directory)  # the next one may need the room
    print(f"\n{findings.title}\n{table(findings.rows)}")
    for target, reached in findings.targets:
        print(f"  {'met   ' if reached else 'missed'}  {target}")
    for fault in findings.faults:
        print(f"  FAULT   {fault}")
    sys.stdout.flush()
    return findings


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__, ".")
    found.add_argument("--only", action="append", choices=sorted(SECTIONS), help="a section; may be repeated")
    found.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    return found


if __name__ == "__main__":
    sys.exit(main())
