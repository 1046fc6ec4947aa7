"""fsqueue beside other queues that need no server, in one run: speed, losses, and a consumer killed by SIGKILL.

    pip install '.[peers]'
    python benchmarks/peers.py --dir /dev/shm/bench --no-durable

Every implementation carries the same refs in the same encoding, and is used as its documentation says; what each
gives, and where that is stated, is in the docstrings of against_peers/files.py and sqlite.py, and in `OWN`. What can be
tried here, is: every ref that was put must be delivered before the run ends, and none twice; and in a run of its
own a consumer that holds refs is killed by SIGKILL, after which another process must get them all. A missing
package is skipped. Exits with 1 when this project's own queue lost or doubled a ref, or kept those of a killed
consumer.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from against_peers.kinds import PEERS
from measuring import report
from measuring.arguments import arguments_of, describe, options_of
from measuring.fleet import Fleet, WorkerError
from measuring.measure import Findings, measure
from measuring.session import progress, session
from measuring.tables import table
from subjects.kinds import SUBJECTS

LABELS = SUBJECTS | {kind: peer.label for kind, peer in PEERS.items()}
HELD = 8
LEASE_S = 1.0


@dataclass(frozen=True)
class Given:
    """What an implementation gives; see `PeerSubject` for the meanings."""

    exclusive: bool
    recovers: str
    shared: bool


OWN = {
    # A rename has one winner, and the owner is in the name; FORMAT.md. A dead process of the same host is noticed.
    "file": Given(True, "lease timeout, or at once", True),
    # Each process takes what it put itself, and nobody reclaims: a bound on speed, no queue.
    "floor": Given(False, "-", False),
    # BEGIN IMMEDIATE; leases end by time; WAL is not for network filesystems (sqlite.org/wal.html).
    "sqlite": Given(True, "lease timeout", False),
    "sqlite-tuned": Given(True, "lease timeout", False),
    # One process's memory.
    "memory": Given(True, "-", False),
}


@dataclass(frozen=True)
class Kill:
    """What became of the refs of a consumer that was killed."""

    kind: str
    back: int
    after_s: float | None
    error: str | None = None

    @property
    def survived(self) -> bool:
        return self.back == HELD


def main(arguments: list[str] | None = None) -> int:
    parser = arguments_of(__doc__)
    parser.add_argument("--only", type=_kinds, default=tuple(LABELS), help=f"some of {','.join(LABELS)}")
    parser.set_defaults(durable=False)
    parsed = parser.parse_args(arguments)
    missing = [kind for kind in parsed.only if kind in PEERS and not _installed(PEERS[kind].module)]
    kinds = tuple(kind for kind in parsed.only if kind not in missing)
    with session(parsed) as run:
        for kind in missing:
            print(f"skipped: {PEERS[kind].label} is not installed: pip install '{PEERS[kind].package}'")
        strangers = tuple(kind for kind in kinds if kind in PEERS)
        backlogs = (100,) if parsed.quick else (1_000,)
        options = options_of(parsed, run.directory, backlogs, wakeups=0, kinds=kinds, strangers=strangers)
        print(f"--dir {parsed.dir}, {describe(options)}\n", flush=True)
        findings = measure(options, progress)
        kills = [_kill(kind, os.path.join(run.directory, f"kill-{kind}")) for kind in kinds]
    rows = report.rows(findings)
    ranks = _ranks(rows)
    print(_text(rows, findings, kills, ranks))
    run.write(
        {
            "options": asdict(options),
            "missing": missing,
            "results": rows,
            "gives": [_gives(kind, findings, kills) for kind in kinds],
            "failures": _failures(findings),
            "ranks": ranks,
        }
    )
    if parsed.plots:
        from measuring.plot import plot_all

        plot_all(report.series(rows, findings, LABELS), run.title, parsed.plots)
    ours = [verdict.clean for verdict in findings.verdicts if verdict.kind == "file"]
    return 0 if all(ours) and all(kill.survived for kill in kills if kill.kind == "file") else 1


def _kinds(text: str) -> tuple[str, ...]:
    names = text.split(",")
    unknown = [name for name in names if name not in LABELS]
    if unknown:
        raise argparse.ArgumentTypeError(f"expected some of {','.join(LABELS)}, found {unknown[0]!r}")
    return tuple(kind for kind in LABELS if kind in names)


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _kill(kind: str, path: str) -> Kill:
    """One process takes refs and is killed by SIGKILL; another one takes what it can get."""
    progress(f"killing a consumer: {LABELS[kind]}")
    with Fleet((2,), durable=False) as fleet:
        try:
            fleet.call(0, "open", kind, kind, path, LEASE_S)
            held = fleet.call(0, "hold", kind, HELD)
            fleet.kill(0)
            started = time.monotonic()
            fleet.call(1, "open", kind, kind, path, LEASE_S)
            back = len(set(fleet.call(1, "regain", kind, HELD)) & set(held))
        except WorkerError as error:
            return Kill(kind, 0, None, error.summary)
    return Kill(kind, back, time.monotonic() - started if back == HELD else None)


def _gives(kind: str, findings: Findings, kills: Sequence[Kill]) -> dict[str, Any]:
    """What an implementation gives, and what was seen of it."""
    given: Any = PEERS.get(kind) or OWN[kind]
    verdicts = [verdict for verdict in findings.verdicts if verdict.kind == kind]
    kill = next(kill for kill in kills if kill.kind == kind)
    return {
        "kind": kind,
        "exclusive": given.exclusive,
        "shared": given.shared,
        "recovers": given.recovers,
        "survives_sigkill": kill.survived,
        "back_after_s": kill.after_s,
        "undelivered": sum(verdict.lost for verdict in verdicts) if verdicts else None,
        "doubled": sum(verdict.doubled for verdict in verdicts) if verdicts else None,
    }


def _failures(findings: Findings) -> list[str]:
    return [f"{LABELS[kind]}, {count} processes: {text}" for (kind, count), text in findings.failures.items()]


def _ranks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """In each row of the table, fsqueue against the fastest other that works on a shared filesystem."""
    shared = [kind for kind, peer in PEERS.items() if peer.shared]
    result = []
    for ours in (row for row in rows if row["kind"] == "file"):
        case = {key: ours[key] for key in ("backlog", "batch", "processes")}
        others = [row for row in rows if row["kind"] in shared and case.items() <= row.items()]
        if others:
            best = max(others, key=lambda row: row["refs_per_s"])
            result.append({**case, "best": best["kind"], "times": ours["refs_per_s"] / best["refs_per_s"]})
    return result


def _text(
    rows: Sequence[dict[str, Any]], findings: Findings, kills: Sequence[Kill], ranks: Sequence[dict[str, Any]]
) -> str:
    parts = ["refs/s of put + get + ack as median of rounds; µs a call as median/p99"]
    parts.append(report.throughput(rows, LABELS, {"x_file": "x fsqueue", "x_floor": "x floor"}))
    header = ["implementation", "exclusive lease", "killed consumer's refs back", "by", "shared filesystem"]
    lines = []
    for kill in kills:
        gives = _gives(kill.kind, findings, kills)
        back = f"after {kill.after_s:.1f} s" if kill.after_s is not None else (kill.error or f"{kill.back} of {HELD}")
        words = ["yes" if gives[key] else "no" for key in ("exclusive", "survives_sigkill", "shared")]
        seen = ["?" if gives[key] is None else f"{gives[key]}" for key in ("undelivered", "doubled")]
        lines.append([LABELS[kill.kind], words[0], f"{words[1]}: {back}", gives["recovers"], words[2], *seen])
    parts.append(table([*header, "undelivered", "doubled"], lines))
    for rank in ranks:
        parts.append(
            f"{rank['processes']} process(es), batch {rank['batch']}, backlog {rank['backlog']}: "
            f"{rank['times']:.2f} times {LABELS[rank['best']]}, the fastest other on a shared filesystem"
        )
    parts += [f"failed: {failure}" for failure in _failures(findings)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    sys.exit(main())
