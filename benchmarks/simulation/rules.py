"""How this filesystem lies: the parameters of one simulated mount.

Where a rule comes from is said where it is applied. What is measured was seen on real filesystems, with two mounts of
one store; what was not, but is possible by the manuals, is switched on by name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

NAMES_BOUND_S = 30.0
MISSES_BOUND_S = 28.0
ATTRIBUTES_BOUND_S = 60.0
DEAD_NODE_LOCK_S = 90.0
GRAIN_S = 0.004
NEWS_S = 1.0

LIES = {
    "no-op-renames": "a rename to a name that this client remembers for the same file says 0 and does nothing",
    "opening-asks-nothing": "opening a directory ends nothing of what is remembered of its names",
    "old-under-lock": "a granted lock makes nothing fresh that a kept descriptor reads, and an unlock sends nothing",
    "equal-size-stays-old": "while a descriptor is kept, a rewrite of equal size by another mount is not seen",
    "close-says-stale": "close says ESTALE where another mount removed or replaced the file",
    "two-creators": "O_EXCL and link succeed on a name that another mount has just created; of two linked files, each "
    "mount goes on seeing its own",
    "frozen-directories": "a directory's time stamps never move",
    "rename-keeps-ctime": "a rename leaves the file's ctime as it was",
    "rename-cuts-mtime": "a rename cuts the file's mtime down to the second",
    "missing-while-replaced": "a file that a rename replaces is missing for an instant for other mounts",
    "stamps-keep-names": "utime on a remembered name makes it remembered anew, for up to 25 s",
    "listings-keep-names": "a listing makes what is remembered of a directory's names remembered anew, for up to 60 s",
    "opened-listings-are-old": "a listing is old (see listings_s) also through a descriptor that was just opened",
    "read-delegations": "a dead client's files that it opened to read hold up those who rename them",
    "locks-get-lost": "a lock is now and then taken from its holder, who hears nothing of it",
    "two-writers-tear": "a file whose writer had not seen what another mount wrote cannot be read any more (EIO)",
}
"""Lies that were measured."""

UNMEASURED = {
    "failure-teaches-nothing": "a name that a rename has found missing is still remembered as there",
    "unlink-retransmitted": "an unlink that was done says ENOENT",
    "listing-misses": "a listing misses an entry that was there all the time, when the directory changes",
}
"""What the simulation can do beyond what was measured."""

UNSURVIVED: frozenset[str] = frozenset()
"""Lies that break one of the queue's promises today: off unless they are asked for."""


@dataclass(frozen=True)
class Rules:
    """One mount.

    Attributes:
        mount: which kind of filesystem it is, for people; see `simulation.kinds`.
        type: what the kernel calls it.
        lock: whether flock "excludes", is "local" to a node, or is "absent" and always says yes.
        believed: the share of looks at a cached name that do not ask the server, 0 to 1.
        retransmits: the share of renames, links and mkdirs that are done and report failure.
        stale_handles: the share of opens and listings that report ESTALE and do nothing.
        repeats: the share of listings that repeat an entry, when the directory changes meanwhile.
        latency_s: how long a request takes, in the middle.
        names_s: how long a name is remembered; misses_s: and that it is missing.
        attributes_s: how long attributes, and the content that a kept descriptor reads, are remembered.
        listings_s: how long a listing is, through a descriptor that was opened before.
        grain_s: seconds between two time stamps that differ.
        loser: what somebody may hear who moves or removes what another mount has just moved or removed.
        creation: what O_CREAT may say of a name that another mount has just created (EEXIST) or removed (ENOENT).
        lies: which of `LIES` and `UNMEASURED` happen.
    """

    mount: str = "nfs"
    type: str = "nfs4"
    lock: str = "excludes"
    believed: float = 1.0
    retransmits: float = 0.0
    stale_handles: float = 0.0
    repeats: float = 0.0
    latency_s: float = 0.002
    names_s: float = NAMES_BOUND_S
    misses_s: float = MISSES_BOUND_S
    attributes_s: float = ATTRIBUTES_BOUND_S
    listings_s: float = 0.0
    grain_s: float = GRAIN_S
    loser: str = "ENOENT"
    creation: str = ""
    lies: tuple[str, ...] = ()

    def __contains__(self, lie: str) -> bool:
        return lie in self.lies

    @property
    def old_listings_s(self) -> float:
        """How old a listing may be, however it is read."""
        return self.listings_s if "opened-listings-are-old" in self else 0.0

    @property
    def deduplicates(self) -> bool:
        """Whether a put can know what is in the queue: listings are fresh, and so is that a name is missing.

        That a name is there is believed only where a listing shows it.
        """
        return not self.old_listings_s and ("opening-asks-nothing" not in self or not self.misses_s)

    @property
    def seen_after_s(self) -> float:
        """How long something can be there, or be over, before another node can see it."""
        misses_s = self.misses_s if "opening-asks-nothing" in self else 0.0
        return self.old_listings_s + misses_s + self.grain_s

    def on_a_good_day(self) -> Rules:
        """The same filesystem, of which nothing is out of order: how it is made does not change."""
        lies = tuple(lie for lie in self.lies if lie not in UNMEASURED)
        return replace(self, believed=1.0, retransmits=0.0, stale_handles=0.0, repeats=0.0, lies=lies)

    def without_one(self) -> list[Rules]:
        """The same mount with one lie less each."""
        kinder = [replace(self, lies=tuple(other for other in self.lies if other != lie)) for lie in self.lies]
        kinder += [replace(self, **{name: value}) for name, value in _HONEST.items()]
        return [rules for rules in kinder if rules != self]

    def describe(self) -> str:
        """Say which mount it is, and each lie that is on."""
        said = [f"{f.name} {getattr(self, f.name)}" for f in fields(self)[2:-1] if getattr(self, f.name) != f.default]
        return f"{self.mount} ({self.type}): {', '.join([*said, *self.lies]) or 'as it was measured'}"


_HONEST: dict[str, Any] = {
    "believed": 0.0, "retransmits": 0.0, "stale_handles": 0.0, "repeats": 0.0, "lock": "excludes", "names_s": 0.0,
    "misses_s": 0.0, "attributes_s": 0.0, "listings_s": 0.0, "grain_s": GRAIN_S, "loser": "ENOENT", "creation": "",
}  # fmt: skip
