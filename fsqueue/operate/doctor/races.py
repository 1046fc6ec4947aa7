"""Find out with several processes whether a lock excludes them, and whether a rename decides a race."""

from __future__ import annotations

import errno
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.operate.doctor.peer import Peer, PeerError, together
from fsqueue.operate.doctor.peer_tasks import LOCKED, read_counter

_NO_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LOCK_ATTEMPTS = 3
_PREPARE_S = 3.0
_FEWEST_FILES = 20


@dataclass(frozen=True)
class LockFindings:
    """Say whether flock, as the queue takes it, excludes.

    Attributes:
        error: the errno's name where the mount has no such lock.
        waits: how often a process found the lock taken; 0 means that they never met, so that nothing is shown.
        overlaps: visits during which another process was inside.
        lost_updates: how far the counter is behind the number of visits.
    """

    supported: bool
    error: str | None
    processes: int
    rounds: int = 0
    waits: int = 0
    overlaps: int = 0
    lost_updates: int = 0

    @property
    def excludes(self) -> bool:
        """Tell whether nothing speaks against it; `waits` tells how much that is worth."""
        return self.supported and self.rounds > 0 and self.overlaps == 0 and self.lost_updates == 0


@dataclass(frozen=True)
class RaceFindings:
    """Say what became of files, or names, that several processes wanted at once.

    Attributes:
        one_winner, several_winners: how many were claimed by one, or by more than one process.
        unreported: won, as the directory shows, by a process that was told ENOENT: a look tells it.
        gone: claimed by nobody and found nowhere, or found where nobody claimed to have put them.
        wins: how many each process won.
    """

    processes: int
    files: int
    one_winner: int
    several_winners: int
    unreported: int
    gone: int
    wins: tuple[int, ...]

    @property
    def decided(self) -> bool:
        return self.files > 0 and self.one_winner + self.unreported == self.files


def lock_race(ops: FileOps, directory: str, peers: Sequence[Peer], rounds: int, limit_s: float) -> LockFindings:
    """Let peers take one lock over and over; directory is where this process sees theirs.

    Raises:
        PeerError: a peer failed for another reason than that there is no lock.
    """
    visits: list[dict[str, int]] = []
    try:
        # One of them may be done before the others come: then that was no race.
        while len(visits) < _LOCK_ATTEMPTS * len(peers) and not _met(visits):
            visits += together(peers, "lock_rounds", rounds=rounds, limit_s=limit_s)
    except PeerError as error:
        if error.code not in _NO_LOCK:
            raise
        return LockFindings(False, errno.errorcode[error.code], len(peers))
    with closing(Directory(ops, directory)) as folder:
        counted = read_counter(ops.read_file(folder.fd, LOCKED))
    total = {key: sum(visit[key] for visit in visits) for key in ("rounds", "waits", "overlaps")}
    return LockFindings(True, None, len(peers), **total, lost_updates=total["rounds"] - counted)


def _met(visits: list[dict[str, int]]) -> bool:
    return any(visit["waits"] or visit["overlaps"] for visit in visits)


def rename_race(ops: FileOps, directory: str, peers: Sequence[Peer], files: int) -> RaceFindings:
    """Let peers rename the same files to names of their own, and compare what they say with what is there."""
    for name in ("from", "to"):
        ops.mkdir(os.path.join(directory, name), 0o777)
    count = _prepare(ops, os.path.join(directory, "from"), files)
    claims = together(peers, "rename_race", count=count)
    with closing(Directory(ops, os.path.join(directory, "to"))) as folder:
        present = folder.listing()
    found = defaultdict[int, list[str]](list)
    for name in sorted(set(present)):
        number, _, key = name.partition("@")
        found[int(number)].append(key)
    return _judge(count, peers, claims, found)


def create_race(ops: FileOps, directory: str, peers: Sequence[Peer], names: int) -> RaceFindings:
    """Let peers create the same names with O_EXCL."""
    ops.mkdir(os.path.join(directory, "made"), 0o777)
    return _judge(names, peers, together(peers, "create_race", count=names), None)


def _judge(
    count: int, peers: Sequence[Peer], claims: list[list[int]], found: Mapping[int, list[str]] | None
) -> RaceFindings:
    """Compare what each peer claims to have won with what was found, by number; None: nothing tells whose a file is."""
    claimed = defaultdict[int, list[str]](list)
    for peer, numbers in zip(peers, claims, strict=True):
        for number in numbers:
            claimed[number].append(peer.name)
    one = several = unreported = gone = 0
    for number in range(count):
        said = claimed[number]
        there = said if found is None else found.get(number, [])
        if len(said) > 1 or len(there) > 1:
            several += 1
        elif said and said == there:
            one += 1
        elif there and not said:
            unreported += 1
        else:
            gone += 1
    return RaceFindings(len(peers), count, one, several, unreported, gone, tuple(map(len, claims)))


def _prepare(ops: FileOps, path: str, files: int) -> int:
    """Make files to race for, fewer where that takes long; returns how many."""
    deadline = ops.monotonic() + _PREPARE_S
    with closing(Directory(ops, path)) as folder:
        for number in range(files):
            ops.close(ops.create(folder.fd, str(number), b""))
            if number >= _FEWEST_FILES and ops.monotonic() > deadline:
                return number + 1
    return files
