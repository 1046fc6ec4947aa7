"""One filesystem, from its mounts to its row, as the first process of namespaces that end with it.

Run as ``-m mounting.inside <NAME> <work directory> <options as JSON>``; the row goes to ``row.json`` there.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fsqueue.disk.filesystems import filesystem
from fsqueue.disk.mounts import mount_of
from mounting.kinds import FIRST, KINDS
from mounting.looks import look
from mounting.namespaces import furnish
from mounting.rate import rates
from mounting.tools import Kind, MountError, made
from mounting.torture import Options, torture

ROW = "row.json"
_LEASE_S = 3.0
_DRAIN_S = 90.0


def main() -> int:
    name, work, options = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
    kind = KINDS[name]
    row: dict[str, Any] = {"name": name, "version": kind.version(), "installed": kind.install(), "twice": kind.twice}
    try:
        furnish(work)
        _try(kind, work, options, row)
    except MountError as error:
        row["missing"] = str(error)
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}"
        row["trace"] = traceback.format_exc()
    (work / ROW).write_text(json.dumps(row), encoding="utf-8")
    return 0


def _try(kind: Kind, work: Path, options: dict[str, Any], row: dict[str, Any]) -> None:
    ground = _ground(work)
    a, b = kind.mount(made((work if kind.own_disk else ground) / "mounts"))
    mount = mount_of(a)
    row["type"] = mount.type if mount else None
    unfit = filesystem(row["type"]).unfit
    if unfit is not None:
        row["refused"] = unfit
        return
    found = look(a, b, _say)
    row["checks"] = {**asdict(found), "lease_s": found.lease_s}
    first = made(ground / "first")
    row["rate"] = asdict(rates((a, b), (first, first)))
    if kind.cramp is not None:
        kind.cramp(a)
    seed = int(options["seed"])
    tortured = Options(
        options["refs"], 60 * options["minutes"], _DRAIN_S + 4 * found.stale_s, max(_LEASE_S, 3 * found.step_s),
        2 * found.step_s, kind.cramp is None, seed,
    )  # fmt: skip
    started = time.monotonic()
    outcome = torture(a, b, work / "torture", tortured)
    row["torture"] = {**asdict(outcome), "seconds": round(time.monotonic() - started, 1), "seed": seed}
    _say(f"torture: {row['torture']}")


def _ground(work: Path) -> Path:
    """Return a directory on a fresh disk of ext4, for all stores: nobody else's files slow down one and not the other.

    Its speed is also the first row's, with which the others are compared.
    """
    return FIRST.mount(made(work / "ground"))[0] if FIRST.missing() is None else made(work / "ground")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
