"""Check every promise of the queue on a mount of your own: between two processes, two mounts or two nodes.

    python benchmarks/verify_filesystem.py /mnt/shared/scratch
    python benchmarks/verify_filesystem.py /mnt/a/scratch --second-mount /mnt/b/scratch
    python benchmarks/verify_filesystem.py /mnt/shared/scratch --peer 'ssh node2' --peer-python ~/venv/bin/python

Side A is a process of this host; side B another one, in the second mount or started by the peer command. All
happens in a fresh subdirectory, which is removed. Exits with 0 when all promises hold, 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from fsqueue import FsQueueError
from fsqueue.operate.doctor.diagnosis import scratch_directory
from fsqueue.operate.doctor.peer import PeerError, Peers
from measuring.environment import environment, one_line
from verifying.files import file_checks
from verifying.leases import lease_checks
from verifying.queues import queue_checks
from verifying.sides import Options, Sides, Verdict, remote_command, start

GROUPS = {"files": file_checks, "queues": queue_checks, "leases": lease_checks}
_WIDTH = 26


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if not os.path.isdir(parsed.dir):
        parser.error(f"{parsed.dir} is no directory")
    found = environment(parsed.dir)
    _say(parsed, one_line(found))
    try:
        with scratch_directory(parsed.dir, ".fsqueue-verify-") as scratch, Peers() as peers:
            sides = _sides(parsed, scratch, peers)
            described = sides.describe()
            for name, side in described.items():
                _say(parsed, _side_line(name, side, getattr(sides, name.lower()).directory))
            verdicts = list(_run(parsed, sides))
    except (OSError, PeerError, FsQueueError) as error:
        print(f"verify_filesystem: {error}", file=sys.stderr)
        return 1
    holds = all(verdict.holds is not False for verdict in verdicts)
    if parsed.json:
        result = {"environment": found, "sides": described, "verdicts": [asdict(v) for v in verdicts], "holds": holds}
        print(json.dumps(result, indent=1))
    _say(parsed, "all promises hold" if holds else "NOT all promises hold")
    return 0 if holds else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("dir", metavar="DIR", help="a directory on the filesystem to check")
    parser.add_argument("--second-mount", metavar="DIR2", help="the same directory through another mount: side B's")
    parser.add_argument("--peer", metavar="COMMAND", help="what starts side B; gets one shell command as its argument")
    parser.add_argument("--peer-python", metavar="PYTHON", help="the Python that has fsqueue there (default: this one)")
    parser.add_argument("--only", type=_groups, default=list(GROUPS), help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--lock", choices=("flock", "lease", "none"), default="flock", help="the queues' lock mode")
    parser.add_argument("--refs", type=int, default=300, help="refs that each side puts in the torture (default: 300)")
    parser.add_argument("--files", type=int, default=1000, help="files that are raced for (default: 1000)")
    parser.add_argument("--rounds", type=int, default=30, help="of each look at what is fresh (default: 30)")
    parser.add_argument("--lease-timeout", type=float, default=3.0, help="seconds, in the lease checks (default: 3)")
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object instead")
    return parser


def _groups(text: str) -> list[str]:
    chosen = text.split(",")
    if not set(chosen) <= set(GROUPS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(GROUPS)}, found {text!r}")
    return [name for name in GROUPS if name in chosen]


def _sides(parsed: argparse.Namespace, scratch: str, peers: Peers) -> Sides:
    command = remote_command(parsed.peer, parsed.peer_python or sys.executable) if parsed.peer else None
    there = os.path.join(os.path.abspath(parsed.second_mount or parsed.dir), os.path.basename(scratch))
    here = os.path.abspath(scratch)
    options = Options(parsed.lock, parsed.refs, parsed.files, parsed.rounds, parsed.lease_timeout)
    a, b = start(peers, "A", here), start(peers, "B", there, command)
    return Sides(here, a, b, lambda: start(peers, "victim", there, command), options)


def _run(parsed: argparse.Namespace, sides: Sides) -> Iterator[Verdict]:
    for group in parsed.only:
        for verdict in _guarded(group, sides):
            mark = {True: "holds", False: "FAILS", None: "info"}[verdict.holds]
            _say(parsed, f"{mark:<7}{verdict.promise:<{_WIDTH}}{verdict.text}")
            yield verdict


def _guarded(group: str, sides: Sides) -> Iterator[Verdict]:
    """A group's verdicts; a failing call ends the group, and is a verdict too."""
    try:
        yield from GROUPS[group](sides)
    except (OSError, PeerError, FsQueueError) as error:
        yield Verdict(f"all {group} checks ran", False, str(error), {"error": str(error)})


def _side_line(name: str, side: dict[str, Any], directory: str) -> str:
    mount = f"{side['filesystem']} ({side['source']}, {','.join(side['mount_options'])})"
    return f"{name}: {side['host']}, fsqueue {side['fsqueue']}, Python {side['python']}, {directory} on {mount}"


def _say(parsed: argparse.Namespace, line: str) -> None:
    print(line, file=sys.stderr if parsed.json else sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main())
