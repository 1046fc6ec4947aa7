"""Run every probe in a scratch directory, in order, and judge whether a queue's promises can be kept there."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, explained
from fsqueue.disk.filesystems import refusal
from fsqueue.disk.mounts import mount_of
from fsqueue.disk.publish import absolute
from fsqueue.operate.doctor import probes, races
from fsqueue.operate.doctor.advice import advise
from fsqueue.operate.doctor.costs import measure_costs
from fsqueue.operate.doctor.findings import Diagnosis
from fsqueue.operate.doctor.notes import notes
from fsqueue.operate.doctor.peer import Peer, PeerError, Peers
from fsqueue.operate.doctor.scratch import scratch_directory

T = TypeVar("T")

_ANSWER_S = 30.0
STEPS = 10
"""How many things a diagnosis tries."""


@dataclass(frozen=True)
class Effort:
    """Say how much is tried.

    Attributes:
        processes: those that race for a rename; two of them also race for the lock.
        lock_limit_s: seconds after which the lock race ends, however many rounds were done.
        cost_budget_s: seconds for each operation that is timed, at most.
    """

    processes: int = 4
    files: int = 1000
    lock_rounds: int = 500
    lock_limit_s: float = 5.0
    cost_budget_s: float = 0.3


def diagnose(
    directory: str, effort: Effort | None = None, progress: Callable[[str], None] = lambda what: None
) -> Diagnosis:
    """Find out what the mount under a directory can do; leaves nothing behind.

    Where no queue can be kept on this kind of filesystem, that is all that is said: a trial that went well by chance
    would prove nothing.

    Args:
        progress: called with what is about to be tried.

    Raises:
        QueueIOError: nothing can be written there.
    """
    ops, directory = fileops.current(), absolute(directory)
    found = Diagnosis(directory, mount_of(directory), kind=ops.filesystem_type(directory))
    found.mount_notes = notes(found.mount) if found.mount else []
    if reason := refusal(found.kind):
        found.problems.append(reason)
        return found
    with explained("diagnosing", directory), scratch_directory(directory, ".fsqueue-doctor-") as scratch:
        _Doctor(ops, scratch, effort or Effort(), found, progress).run()
    found.advice = advise(found)
    return found


@dataclass(frozen=True)
class _Doctor:
    ops: FileOps
    scratch: str
    effort: Effort
    found: Diagnosis
    progress: Callable[[str], None]

    def run(self) -> None:
        with self._opened("a") as a, self._opened("b") as b:
            self._probe_alone(a, b)
        with Peers(_ANSWER_S) as peers:
            racing = self._path("race")
            self._race([peers.start(f"p{number}", racing) for number in range(self.effort.processes)])
        with self._opened("c") as c, self._opened("d") as d:
            self._time(c, d)
        self._judge()

    def _path(self, name: str) -> str:
        path = os.path.join(self.scratch, name)
        self.ops.mkdir(path, 0o777)
        return path

    def _opened(self, name: str) -> closing[Directory]:
        return closing(Directory(self.ops, self._path(name)))

    def _attempt(self, what: str, probe: Callable[[], T]) -> T | None:
        """Return a probe's result; where the filesystem refuses, note a problem and return None."""
        self.progress(what)
        try:
            return probe()
        except (OSError, PeerError) as error:
            self.found.problems.append(f"{what}: {error}")
            return None

    def _probe_alone(self, a: Directory, b: Directory) -> None:
        ops, found = self.ops, self.found
        found.hard_links = self._attempt("hard links", lambda: probes.hard_links(ops, a))
        found.exclusive_create = self._attempt("exclusive creation", lambda: probes.exclusive_create(ops, a))
        found.rename_times = self._attempt("times after a rename", lambda: probes.rename_times(ops, a, b))
        found.clock = self._attempt("the clock that stamps files", lambda: probes.clock(ops, a, found.remote))
        found.granularity = self._attempt("steps of timestamps", lambda: probes.granularity(ops, a, b))
        found.names = self._attempt("names", lambda: probes.name_limits(ops, a))

    def _race(self, peers: list[Peer]) -> None:
        ops, found, effort, path = self.ops, self.found, self.effort, peers[0].directory
        found.rename_race = self._attempt(
            "a race for renames", lambda: races.rename_race(ops, path, peers, effort.files)
        )
        found.create_race = self._attempt(
            "a race for exclusive creation", lambda: races.create_race(ops, path, peers, effort.files)
        )
        found.lock = self._attempt(
            "a race for the lock",
            lambda: races.lock_race(ops, path, peers[:2], effort.lock_rounds, effort.lock_limit_s),
        )

    def _time(self, c: Directory, d: Directory) -> None:
        has_lock = self.found.lock is not None and self.found.lock.supported
        costs = self._attempt(
            "the cost of each operation",
            lambda: measure_costs(self.ops, c, d, self.effort.cost_budget_s, lock=has_lock),
        )
        self.found.costs = costs or {}

    def _judge(self) -> None:
        found = self.found
        race, granularity = found.rename_race, found.granularity
        if race is not None and not race.decided:
            found.problems.append(
                f"a rename does not decide a race here: of {race.files} files {race.several_winners} went to several "
                f"processes and {race.gone} to none; refs would be lost or leased twice"
            )
        if granularity is not None and granularity.file_s is None:
            found.problems.append("touching a file does not move its mtime: leases would never expire, or all at once")
