"""Know the other owners: read their records, a few a round, and remember for good what a record says.

A record says the same for as long as its owner lives, whose name no other will ever have.
"""

from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from fsqueue.engine.handle import Handle
from fsqueue.engine.owners import Here, OwnerRecord, read_record, whereabouts

READS_A_ROUND = 18
ABSENT_FOR_S = 10.0


class Known(NamedTuple):
    """Hold what is known of an owner.

    Attributes:
        heartbeat_s: seconds between its beats; None: it keeps none, or has no record.
        process: its record, where its process can be asked for from here.
    """

    heartbeat_s: float | None = None
    process: OwnerRecord | None = None


_ABSENT = Known()


class Others:
    """Know owners on behalf of one handle."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._known: dict[str, Known] = {}
        self._absent: dict[str, float] = {}
        self._round_at = 0.0
        self._here: Here | None = None
        self.reads_left = 0

    def begin_round(self, reads: int) -> None:
        """Allow so many records to be read from now on."""
        self._round_at = self._handle.ops.monotonic()
        self.reads_left = reads
        self._here = None

    def _whereabouts(self) -> Here:
        """Return where this process runs, asked once a round: there may be hundreds of owners."""
        here = self._here = self._here or whereabouts()
        return here

    def look(self, owner: str, afresh: bool = False) -> Known | None:
        """Return what is known of an owner; None where its turn has not come to be read.

        Args:
            afresh: a record that was missing before this round is looked for again.
        """
        known = self._known.get(owner)
        if known is not None:
            return known
        absent_at = self._absent.get(owner, -1e9)
        if absent_at >= (self._round_at if afresh else self._handle.ops.monotonic() - ABSENT_FOR_S):
            return _ABSENT
        if self.reads_left <= 0:
            return None
        self.reads_left -= 1
        return self._read(owner)

    def _read(self, owner: str) -> Known:
        found = read_record(self._handle.layout.owners, owner)
        if found is None:
            self._absent[owner] = self._handle.ops.monotonic()
            return _ABSENT
        can_be_asked = found.pid_start_time is not None and found.is_from(self._whereabouts())
        self._known[owner] = known = Known(found.heartbeat_s, found if can_be_asked else None)
        self._absent.pop(owner, None)
        return known

    def is_known(self, owner: str) -> bool:
        return owner in self._known

    def is_dead(self, owner: str) -> bool:
        """Return whether an owner's process is proven to be gone; False where that is not known yet."""
        if owner == self._handle.owner:
            return False
        known = self.look(owner)
        return known is not None and known.process is not None and known.process.liveness(self._whereabouts()) == "dead"

    def is_known_dead(self, owner: str) -> bool:
        """Do as `is_dead`, for an owner whose record was read; of others, and of this handle's, say no."""
        return owner != self._handle.owner and owner in self._known and self.is_dead(owner)

    def cannot_be_asked(self, owner: str) -> bool:
        """Return whether the record of an owner is known, and nobody here can tell whether its process lives."""
        known = self._known.get(owner)
        return known is not None and (known.process is None or known.process.liveness(self._whereabouts()) == "unknown")

    def keep(self, present: Container[str]) -> None:
        """Forget owners who have neither a record nor a lease any more."""
        self._known = {owner: known for owner, known in self._known.items() if owner in present}
        self._absent = {owner: at for owner, at in self._absent.items() if owner in present}
