"""Try the queue on real filesystems: two mounts of each, checks between them, and a torture with SIGKILLs over both.

    python benchmarks/mounts.py                    # all of them; as root, with /dev/fuse
    python benchmarks/mounts.py bindfs sshfs --minutes 1
    python benchmarks/mounts.py --list

Each filesystem is mounted, with whatever servers it needs, in namespaces of its own, which end with it: nothing stays
mounted, no process is left. What this machine lacks is said in the filesystem's row. Exits with 1 where one that
should be fit loses, doubles, crashes or sticks.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring.environment import environment, one_line
from mounting.inside import ROW
from mounting.kinds import KINDS
from mounting.namespaces import apart, hindrance
from mounting.table import faults, rows, verdict
from mounting.tools import Kind
from soaking.interrupts import deferred, install

_PATIENCE_S = 1200.0
_HERE = Path(__file__).resolve().parent
_BUSY_TRIES = 50
_BUSY_PAUSE_S = 0.2


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    if parsed.list:
        print("\n".join(f"{kind.name:<14}{kind.missing() or kind.version()}" for kind in KINDS.values()))
        return 0
    found = environment(parsed.dir)
    _say(parsed, one_line(found))
    install()
    hindered = hindrance()
    try:
        filled = [_tried(KINDS[name], parsed, hindered) for name in parsed.names or KINDS]
    except KeyboardInterrupt:
        print("mounts: interrupted; nothing stays mounted", file=sys.stderr)
        return 130
    if parsed.json:
        print(json.dumps({"environment": found, "rows": filled}, indent=1))
    else:
        print(rows(filled))
    return 1 if any(verdict(row) == "NOT FIT" for row in filled) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", type=_name, help="which filesystems (default: all)")
    parser.add_argument("--list", action="store_true", help="say which there are, and what of them is here")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where stores and images lie (default: /tmp)")
    parser.add_argument("--minutes", type=float, default=0.5, help="of killing, at most (default: 0.5)")
    parser.add_argument("--refs", type=int, default=600, help="put in the torture (default: 600)")
    parser.add_argument("--seed", type=int, help="of everything random but the scheduling (default: a new one)")
    parser.add_argument("--json", action="store_true", help="print everything that was found as one JSON object")
    return parser


def _name(text: str) -> str:
    if text not in KINDS:
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(KINDS)}, found {text!r}")
    return text


def _tried(kind: Kind, parsed: argparse.Namespace, hindered: str | None) -> dict[str, Any]:
    """One filesystem's row; its namespaces and its directory are gone afterwards."""
    missing = hindered or kind.missing()
    row: dict[str, Any] = {"name": kind.name, "version": "", "installed": kind.install(), "twice": kind.twice}
    if missing is not None:
        return {**row, "missing": missing}
    print(f"mounts: {kind.name}", file=sys.stderr, flush=True)
    with deferred():
        work = Path(tempfile.mkdtemp(prefix="fsqueue-mounts-", dir=parsed.dir))
        process = subprocess.Popen(_command(kind, work, parsed), env=_environment(), start_new_session=True)
    try:
        process.wait(_PATIENCE_S + 60 * parsed.minutes)
        row = json.loads((work / ROW).read_text(encoding="utf-8"))
    except subprocess.TimeoutExpired:
        row["failed"] = f"it did not end within {_PATIENCE_S + 60 * parsed.minutes:.0f} s"
    except FileNotFoundError:
        row["failed"] = f"its first process ended with {process.returncode} and left no row"
    finally:
        with deferred():
            process.kill()
            process.wait()
            _remove(work)
    for line in faults(row) or [row.get("missing", "")]:
        if line:
            print(f"mounts: {kind.name}: {line}", file=sys.stderr, flush=True)
    return row


def _command(kind: Kind, work: Path, parsed: argparse.Namespace) -> list[str]:
    seed = random.SystemRandom().randrange(2**32) if parsed.seed is None else parsed.seed
    options = {"minutes": parsed.minutes, "refs": parsed.refs, "seed": seed}
    return apart([sys.executable, "-m", "mounting.inside", kind.name, str(work), json.dumps(options)])


def _environment() -> dict[str, str]:
    paths = [str(_HERE), str(_HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _remove(work: Path) -> None:
    """Remove the directory; the processes of the namespaces, which were killed, may take a moment to be gone."""
    for _ in range(_BUSY_TRIES):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        time.sleep(_BUSY_PAUSE_S)
    print(f"mounts: {work} could not be removed", file=sys.stderr)


def _say(parsed: argparse.Namespace, line: str) -> None:
    print(line, file=sys.stderr if parsed.json else sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
