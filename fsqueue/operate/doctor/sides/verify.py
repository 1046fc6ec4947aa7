"""Start both sides, run each check by itself, and report what became of each promise."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fsqueue.disk.fileops import explained
from fsqueue.disk.mounts import mount_of
from fsqueue.disk.publish import absolute
from fsqueue.errors import FsQueueError
from fsqueue.operate.doctor.peer import PeerError, PeerGoneError
from fsqueue.operate.doctor.scratch import scratch_directory
from fsqueue.operate.doctor.sides import caches, leases, locks, queues, renames, torture
from fsqueue.operate.doctor.sides.sides import Options, Sides, remote_command
from fsqueue.operate.doctor.sides.verdict import Judgement, Verdict, Weakness, worst


class Check(NamedTuple):
    """Name one check.

    Attributes:
        what: what it tries, in words.
        promise: the first that it judges, and the one that an error is held against.
    """

    what: str
    promise: str
    run: Callable[[Sides], Iterator[Verdict]]


CHECKS = {
    "lock": Check("a race for the lock, and what is read under it", "flock excludes", locks.lock),
    "rename": Check("a race for renames", "a rename decides a race", renames.race),
    "create": Check("a race for exclusive creation", "O_EXCL decides a race", renames.create),
    "return": Check("renames to and fro", "a rename back does what it says", renames.returns),
    "names": Check("how long old names live", "a new name is seen", caches.names),
    "stamps": Check("how long old stamps live", "a heartbeat is seen", caches.stamps),
    "clock": Check("the clock that stamps files", "one clock stamps", caches.clock),
    "order": Check("the order of refs", "refs come in order", queues.order),
    "once": Check("ids that both put", "an id is queued once", queues.once),
    "torture": Check("a queue that both sides work on", "nothing is lost or stuck", torture.torture),
    "depth": Check("counts", "a put is counted at once", queues.depth),
    "latency": Check("how soon a waiting get wakes up", "a waiting get wakes up", queues.latency),
    "expiry": Check("leases that expire", "leases expire", leases.expiry),
    "heartbeat": Check("leases that a heartbeat keeps", "a heartbeat keeps leases", leases.heartbeat),
    "killed": Check("a process that is killed", "a dead one's refs come again", leases.killed),
}


@dataclass
class Report:
    """Hold what the two sides are, and the verdicts in the order in which they came."""

    sides: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Tell whether no promise is broken; some may be weaker."""
        return not any(verdict.broken for verdict in self.verdicts)

    @property
    def judgement(self) -> Judgement:
        """Return the gravest verdict."""
        return worst("holds", *(verdict.judgement for verdict in self.verdicts))

    @property
    def weakens(self) -> list[Weakness]:
        """Return what is weaker between the sides than within one."""
        return list(dict.fromkeys(weakness for verdict in self.verdicts for weakness in verdict.weakens))

    def as_json(self) -> dict[str, Any]:
        """Return plain values under stable keys."""
        return {
            "holds": self.holds,
            "judgement": self.judgement,
            "weakens": self.weakens,
            "sides": self.sides,
            "verdicts": [verdict.as_json() for verdict in self.verdicts],
        }


def verify(
    directory: str,
    *,
    second_mount: str | None = None,
    peer: str | None = None,
    peer_python: str | None = None,
    options: Options | None = None,
    checks: Sequence[str] = tuple(CHECKS),
    progress: Callable[[str], None] = lambda what: None,
    said: Callable[[Verdict], None] = lambda verdict: None,
    met: Callable[[dict[str, dict[str, Any]]], None] = lambda sides: None,
) -> Report:
    """Try the promises between a process of this host and another one; leave nothing behind.

    Args:
        directory: where a scratch directory is made: this side's.
        second_mount: the same directory through another mount; the other side's on this host, or on the peer's.
        peer: a command that takes a shell command and runs it on the other node, such as ``ssh node2``.
        peer_python: the Python there that has fsqueue.
        checks: some keys of `CHECKS`.
        progress: called with what is about to be tried.
        said: called with each verdict as soon as it is known.
        met: called with what each side is.

    Raises:
        PeerError: the other side could not be started, does not see the directory, or runs another version.
        QueueIOError: nothing can be written there.
    """
    command = remote_command(peer, peer_python or sys.executable) if peer else None
    with explained("verifying", directory), scratch_directory(directory, ".fsqueue-doctor-") as scratch:
        there = os.path.join(absolute(second_mount or directory), os.path.basename(scratch))
        mount = mount_of(scratch)
        progress("the other side starts")
        with closing(Sides(scratch, there, command, options or Options(), mount.kind if mount else None)) as sides:
            report = Report(sides.describe())
            met(report.sides)
            for name in checks:
                progress(CHECKS[name].what)
                for verdict in _alone(CHECKS[name], sides):
                    report.verdicts.append(verdict)
                    said(verdict)
    return report


def _alone(check: Check, sides: Sides) -> Iterator[Verdict]:
    """Return a check's verdicts; an error is one too, and where a process is gone the next check has fresh ones."""
    try:
        yield from check.run(sides)
    except (OSError, PeerError, FsQueueError) as error:
        yield Verdict(check.promise, "broken", f"could not be tried to its end: {error}", {"error": str(error)})
        if isinstance(error, PeerGoneError):
            sides.restart()
