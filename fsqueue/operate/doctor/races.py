"""Find out with several processes whether a lock excludes them, and whether a rename decides a race."""

from __future__ import annotations

import errno
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.operate.doctor.clocks import Clocks
from fsqueue.operate.doctor.peer import Peer, PeerError, together
from fsqueue.operate.doctor.peer_tasks import COUNTER_BYTES, LOCKED

_NO_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_LOCK_ATTEMPTS = 3
_PREPARE_S = 3.0
_RACE_S = 6.0
_FEWEST_FILES = 10
_LOOK_S = 0.2


@dataclass(frozen=True)
class LockFindings:
    """Say whether flock, as the queue takes it, excludes.

    Attributes:
        error: the errno's name where the mount has no such lock.
        waits: how often a process found the lock taken; 0 means that they never met, so that nothing is shown.
        overlaps: visits that began while another process was inside, by their clocks; the files have no say in it.
        lost_updates: visits that counted on from what another had counted on from: what was read was old.
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
        return self.supported and self.rounds > 0 and self.overlaps == 0

    @property
    def freshens(self) -> bool:
        """Tell whether what was read under the lock was what the last holder had written."""
        return self.supported and self.rounds > 0 and self.lost_updates == 0


@dataclass(frozen=True)
class RaceFindings:
    """Say what became of files, or names, that several processes wanted at once.

    Attributes:
        one_winner, several_winners: how many were claimed by one, or by more than one process.
        unreported: won, as the directory shows, by a process that was told ENOENT: a look tells it.
        gone: claimed by nobody and found nowhere, or found where nobody claimed to have put them.
        wins: how many each process won.
        heard: other errors than ENOENT that losers were told, by name.
    """

    processes: int
    files: int
    one_winner: int
    several_winners: int
    unreported: int
    gone: int
    wins: tuple[int, ...]
    heard: dict[str, int] = field(default_factory=dict)

    @property
    def decided(self) -> bool:
        return self.files > 0 and self.one_winner + self.unreported == self.files


def lock_race(
    ops: FileOps, directory: str, peers: Sequence[Peer], rounds: int, limit_s: float, *, anew: bool = False
) -> LockFindings:
    """Let peers take one lock over and over; directory is where this process sees theirs.

    Args:
        anew: they read the counter through a descriptor opened under the lock, not through the one that is kept.

    Raises:
        PeerError: a peer failed for another reason than that there is no lock.
    """
    name = f"{LOCKED}-anew" if anew else LOCKED
    with closing(Directory(ops, directory)) as folder:
        ops.close(ops.create(folder.fd, name, b"0" * COUNTER_BYTES))
    clocks = Clocks.of(peers)
    arguments = {"name": name, "rounds": rounds, "limit_s": limit_s, "stay_s": clocks.worth_telling_s, "anew": anew}
    races: list[list[dict[str, Any]]] = []
    deadline = ops.monotonic() + limit_s
    try:
        # One of them may be done before the others come: then that was no race.
        while len(races) < _LOCK_ATTEMPTS and not _met(races) and (not races or ops.monotonic() < deadline):
            races.append(together(peers, "lock_rounds", **arguments))
    except PeerError as error:
        if error.code not in _NO_LOCK:
            raise
        return LockFindings(False, errno.errorcode[error.code], len(peers))
    shares = [share for race in races for share in race]
    done, waits = (sum(share[key] for share in shares) for key in ("rounds", "waits"))
    written = {count for share in shares for count in share["written"]}
    overlaps = sum(clocks.overlaps([share["visits"] for share in race]) for race in races)
    return LockFindings(True, None, len(peers), done, waits, overlaps, lost_updates=done - len(written))


def _met(races: list[list[dict[str, Any]]]) -> bool:
    return any(share["waits"] for race in races for share in race)


def rename_race(ops: FileOps, directory: str, peers: Sequence[Peer], files: int, settle_s: float = 0.0) -> RaceFindings:
    """Let peers rename the same files to names of their own, and compare what they say with what is there.

    Args:
        settle_s: seconds that this process may take to see all that the peers did, where they use another mount.
    """
    for name in ("from", "to"):
        ops.mkdir(os.path.join(directory, name), 0o777)
    count = _prepare(ops, os.path.join(directory, "from"), files)
    shares = together(peers, "rename_race", count=count, limit_s=_RACE_S)
    found = _arrived(ops, os.path.join(directory, "to"), max(share["tried"] for share in shares), settle_s)
    return _judge(peers, shares, found)


def create_race(ops: FileOps, directory: str, peers: Sequence[Peer], names: int) -> RaceFindings:
    """Let peers create the same names with O_EXCL."""
    ops.mkdir(os.path.join(directory, "made"), 0o777)
    return _judge(peers, together(peers, "create_race", count=names, limit_s=_RACE_S), None)


def _arrived(ops: FileOps, path: str, expected: int, settle_s: float) -> dict[int, list[str]]:
    """Return who moved each file there; this mount may show the names of the others late."""
    deadline = ops.monotonic() + settle_s
    while True:
        with closing(Directory(ops, path)) as folder:
            present = set(folder.listing())
        if len(present) >= expected or ops.monotonic() >= deadline:
            break
        ops.sleep(_LOOK_S)
    found = defaultdict[int, list[str]](list)
    for name in sorted(present):
        number, _, key = name.partition("@")
        found[int(number)].append(key)
    return found


def _judge(
    peers: Sequence[Peer], shares: Sequence[dict[str, Any]], found: Mapping[int, list[str]] | None
) -> RaceFindings:
    """Compare what each peer claims to have won with what was found, by number; None: nothing tells whose a file is."""
    claimed = defaultdict[int, list[str]](list)
    heard = Counter[str]()
    for peer, share in zip(peers, shares, strict=True):
        heard.update(share["heard"])
        for number in share["won"]:
            claimed[number].append(peer.name)
    count = max(share["tried"] for share in shares)
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
    wins = tuple(len(share["won"]) for share in shares)
    return RaceFindings(len(peers), count, one, several, unreported, gone, wins, dict(heard))


def _prepare(ops: FileOps, path: str, files: int) -> int:
    """Make files to race for, fewer where that takes long; returns how many."""
    deadline = ops.monotonic() + _PREPARE_S
    with closing(Directory(ops, path)) as folder:
        for number in range(files):
            ops.close(ops.create(folder.fd, str(number), b""))
            if number >= _FEWEST_FILES and ops.monotonic() > deadline:
                return number + 1
    return files
