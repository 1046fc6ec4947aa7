"""Remember the claims of one handle: which refs it leases, and how its earlier leases on them ended."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Literal

from fsqueue.format import names
from fsqueue.records import id_of_ref

_REMEMBERED = 4096
_FEW_EARLIER = 64

Ending = Literal["settled", "returned", "lost"]


class Claim:
    """Tell one lease of this handle from all others, also from other leases on the same ref.

    Attributes:
        stem: the ref's.
        name: the file's in leased/, which no other lease ever has.
        state: "held"; or how it ended: acked or buried, given back to pending/, or lost so that others may have it.
        is_new_here: this handle has claimed the file from its name in pending/, which its client forgot with that.
        was_done: the ref may have been done before, so that this client may remember the file by a name in done/; not
            told of a local disk, whose names are true.
        pending_since: the stamp that the file had before this lease, by the filesystem's clock; None where it was not
            asked for (`Handle.notes_ages`).
        taken_at: when the lease was taken, or the work on it last made progress, by monotonic; None while it waits for
            its work in a call that is itself no work.
        waits: it waits behind other work: where that hangs, it goes back without a counted delivery.
        stamped_at: when this handle began to stamp the file last, by monotonic; None where it has not.
        stamped_by: when it had; None while it does.
    """

    state: Literal["held"] | Ending = "held"
    is_new_here = False
    was_done = True
    pending_since: float | None = None
    taken_at: float | None = None
    waits = False
    stamped_at: float | None = None
    stamped_by: float | None = None
    _handed_out: weakref.ref[object] | None = None

    def __init__(self, stem: str, name: str) -> None:
        self.stem = stem
        self.name = name

    @property
    def holder(self) -> str:
        """Return what the ref's history calls this lease: ``<owner>+<claim>``."""
        return self.name[len(self.stem) + 1 : -len(names.SUFFIX)]

    def begin_stamp(self, now: float) -> None:
        """Note that this handle is about to stamp the file, or to write into it; now is monotonic."""
        self.stamped_by = None
        self.stamped_at = now

    def hand_out(self, ref: object) -> None:
        """Remember the very object that a caller got for this lease; one of a class with __slots__ may not allow it."""
        try:
            self._handed_out = weakref.ref(ref)
        except TypeError:
            self._handed_out = None

    def is_of(self, ref: object) -> bool:
        return self._handed_out is not None and self._handed_out() is ref

    def is_remembered(self) -> bool:
        """Return whether somebody may still come back with the object that was handed out."""
        return self._handed_out is not None and self._handed_out() is not None


class Held:
    """Know which refs this handle leases, and how its earlier leases ended.

    The endings fence a late acknowledgement off: a ref that this handle once leased is only settled under the claim
    that it belongs to, one that it never leased whoever holds it. Of each ref the latest claim is remembered: one
    that was lost, which is rare, for good, one that was settled for the last `_REMEMBERED` refs. Claims before that
    are remembered while the objects live that were handed out for them.

    Several threads may call this; nothing here takes a lock, which an exception at the wrong instant could leave held.
    """

    def __init__(self) -> None:
        self._latest: dict[str, Claim] = {}
        self._ended: deque[Claim] = deque()
        self._earlier: dict[str, tuple[Claim, ...]] = {}
        self._tidy_above = _FEW_EARLIER

    def add(self, claim: Claim) -> None:
        """Note a claim; the one before it on the same ref becomes an earlier one."""
        before = self._latest.get(claim.stem)
        self._latest[claim.stem] = claim
        if before is not None and before is not claim:
            claim.was_done |= before.state == "settled"
            self._keep(before)

    def find(self, stem: str, ref: object = None) -> Claim | None:
        """Return the claim that this very object was last handed out for, else the latest; None where none is known."""
        latest = self._latest.get(stem)
        if not self._earlier or ref is None or (latest is not None and latest.is_of(ref)):
            return latest
        earlier = reversed(self._earlier.get(stem, ()))
        return next((claim for claim in earlier if claim.is_of(ref)), latest)

    def claim_on(self, ref: object) -> Claim | None:
        """Return the claim that a ref was handed out for, held or not; see `find`."""
        return self.find(names.stem_of(id_of_ref(ref)), ref)

    def claims_on(self, refs: Iterable[object]) -> list[Claim]:
        """Return the claims that these refs were handed out for, as far as they are known."""
        return [claim for claim in map(self.claim_on, refs) if claim is not None]

    def end(self, claim: Claim, how: Ending) -> None:
        """Note the end of a lease.

        RACE: a renewal may miss the file that another thread has just settled, and call the lease lost before that
        thread comes here; the thread that settled it knows better.
        """
        if claim.state == how or (how == "lost" and claim.state != "held"):
            return
        claim.state = how
        if how == "lost":
            return
        self._ended.append(claim)
        if len(self._ended) > _REMEMBERED:
            self.drop(self._ended.popleft())

    def lose(self, stem: str, name: str) -> None:
        """Note that a lease of this name, if it is this handle's latest on the ref, was taken away."""
        claim = self._latest.get(stem)
        if claim is not None and claim.name == name:
            self.end(claim, "lost")

    def drop(self, claim: Claim) -> None:
        """Forget a claim: nobody learned of it, or it ended long ago."""
        if self._latest.get(claim.stem) is claim:
            popped = self._latest.pop(claim.stem, claim)
            if popped is not claim:  # RACE: another thread has claimed the ref anew in between
                self._latest.setdefault(claim.stem, popped)

    def forget(self, stem: str) -> None:
        """Begin a new life of a ref, by a put of this handle: its earlier leases have no part in it."""
        claim = self._latest.get(stem)
        if claim is not None and claim.state != "held":
            self.drop(claim)
            self._keep(claim)

    def _keep(self, claim: Claim) -> None:
        """Remember an earlier claim for as long as the object that was handed out for it lives."""
        if not claim.is_remembered():
            return
        self._earlier[claim.stem] = (*self._earlier.get(claim.stem, ()), claim)
        if len(self._earlier) > self._tidy_above:
            for stem, claims in list(self._earlier.items()):
                self._earlier[stem] = tuple(filter(Claim.is_remembered, claims))
                if not self._earlier[stem]:
                    self._earlier.pop(stem)
            self._tidy_above = max(_FEW_EARLIER, 2 * len(self._earlier))

    def all(self) -> list[Claim]:
        """Return the claims of the leases that this handle has."""
        return [claim for claim in list(self._latest.values()) if claim.state == "held"]

    def __contains__(self, stem: str) -> bool:
        claim = self._latest.get(stem)
        return claim is not None and claim.state == "held"
