"""Runs every probe in a scratch directory, in order, and judges whether a queue's promises can be kept there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, explained
from fsqueue.disk.mounts import Mount, mount_of
from fsqueue.operate.doctor import probes, races
from fsqueue.operate.doctor.advice import Advice, advise
from fsqueue.operate.doctor.costs import Cost, measure_costs
from fsqueue.operate.doctor.notes import Note, notes
from fsqueue.operate.doctor.peers import Peer, PeerError, Peers
from fsqueue.operate.doctor.races import LockFindings, RaceFindings

T = TypeVar("T")


@dataclass(frozen=True)
class Effort:
    """How much is tried.

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


@dataclass
class Diagnosis:
    """What was found out about one directory's mount.

    Attributes:
        problems: why a queue's promises cannot be kept here; empty where they can.
    """

    directory: str
    mount: Mount | None
    mount_notes: list[Note] = field(default_factory=list)
    rename_race: RaceFindings | None = None
    lock: LockFindings | None = None
    create_race: RaceFindings | None = None
    rename_times: probes.RenameFindings | None = None
    hard_links: bool | None = None
    exclusive_create: bool | None = None
    clock: probes.ClockFindings | None = None
    granularity: probes.GranularityFindings | None = None
    names: probes.NameFindings | None = None
    costs: dict[str, Cost] = field(default_factory=dict)
    advice: Advice | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def fit(self) -> bool:
        return not self.problems

    @property
    def remote(self) -> bool:
        return self.mount is not None and self.mount.is_remote

    def as_json(self) -> dict[str, Any]:
        """Plain values under stable keys; a probe that failed is null."""
        result = {"fit": self.fit, "problems": self.problems, **asdict(self)}
        result["mount_notes"] = [note._asdict() for note in self.mount_notes]
        if self.mount is not None:
            result["mount"]["remote"] = self.remote
        for key, verdict in (("rename_race", "decided"), ("create_race", "decided"), ("lock", "excludes")):
            findings = getattr(self, key)
            if findings is not None:
                result[key][verdict] = getattr(findings, verdict)
        return result


@contextmanager
def scratch_directory(parent: str, prefix: str) -> Iterator[str]:
    """A fresh directory inside parent, removed with everything in it on leaving the block, whatever happens.

    The prefix should begin with a dot: in a queue's directory, names that do are nobody's business.
    """
    path = tempfile.mkdtemp(prefix=prefix, dir=parent)
    try:
        yield path
    finally:
        try:
            shutil.rmtree(path)
        except KeyboardInterrupt:
            shutil.rmtree(path, ignore_errors=True)
            raise


def diagnose(
    directory: str, effort: Effort | None = None, progress: Callable[[str], None] = lambda what: None
) -> Diagnosis:
    """Find out what the mount under a directory can do; leaves nothing behind.

    Args:
        progress: called with what is about to be tried.

    Raises:
        QueueIOError: nothing can be written there.
    """
    with explained("diagnosing", directory), scratch_directory(directory, ".fsqueue-doctor-") as scratch:
        found = Diagnosis(os.path.abspath(directory), mount_of(scratch))
        found.mount_notes = notes(found.mount) if found.mount else []
        _Doctor(fileops.current(), scratch, effort or Effort(), found, progress).run()
    found.advice = advise(found)
    return found


class _Doctor:
    def __init__(
        self, ops: FileOps, scratch: str, effort: Effort, found: Diagnosis, progress: Callable[[str], None]
    ) -> None:
        self._ops = ops
        self._scratch = scratch
        self._effort = effort
        self._found = found
        self._progress = progress

    def run(self) -> None:
        with ExitStack() as stack:
            self._probe_alone(self._opened(stack, "a"), self._opened(stack, "b"))
        with Peers() as peers:
            racing = self._path("race")
            self._race([peers.start(f"p{number}", racing) for number in range(self._effort.processes)])
        with ExitStack() as stack:
            self._time(self._opened(stack, "c"), self._opened(stack, "d"))
        self._judge()

    def _path(self, name: str) -> str:
        path = os.path.join(self._scratch, name)
        self._ops.mkdir(path, 0o777)
        return path

    def _opened(self, stack: ExitStack, name: str) -> Directory:
        directory = Directory(self._ops, self._path(name))
        stack.callback(directory.close)
        return directory

    def _attempt(self, what: str, probe: Callable[[], T]) -> T | None:
        """A probe's result; where the filesystem refuses, None and a problem."""
        self._progress(what)
        try:
            return probe()
        except (OSError, PeerError) as error:
            self._found.problems.append(f"{what}: {error}")
            return None

    def _probe_alone(self, a: Directory, b: Directory) -> None:
        ops, found = self._ops, self._found
        found.hard_links = self._attempt("hard links", lambda: probes.hard_links(ops, a))
        found.exclusive_create = self._attempt("exclusive creation", lambda: probes.exclusive_create(ops, a))
        found.rename_times = self._attempt("times after a rename", lambda: probes.rename_times(ops, a, b))
        found.clock = self._attempt("the clock that stamps files", lambda: probes.clock(ops, a, found.remote))
        found.granularity = self._attempt("steps of timestamps", lambda: probes.granularity(ops, a, b))
        found.names = self._attempt("names", lambda: probes.name_limits(ops, a))

    def _race(self, peers: list[Peer]) -> None:
        ops, found, effort, path = self._ops, self._found, self._effort, peers[0].directory
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
        has_lock = self._found.lock is not None and self._found.lock.supported
        costs = self._attempt(
            "the cost of each operation",
            lambda: measure_costs(self._ops, c, d, self._effort.cost_budget_s, lock=has_lock),
        )
        self._found.costs = costs or {}

    def _judge(self) -> None:
        found = self._found
        race, granularity = found.rename_race, found.granularity
        if race is not None and not race.decided:
            found.problems.append(
                f"a rename does not decide a race here: of {race.files} files {race.several_winners} went to several "
                f"processes and {race.gone} to none; refs would be lost or leased twice"
            )
        if granularity is not None and granularity.file_s is None:
            found.problems.append("touching a file does not move its mtime: leases would never expire, or all at once")
