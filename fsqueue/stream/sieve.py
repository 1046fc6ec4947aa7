"""Keep refs from a trainer that are too old for it, or that it does not accept: they go to failed/."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from fsqueue.engine.renewing import LeasingQueue
from fsqueue.log import some, tell
from fsqueue.records import id_of_ref

R = TypeVar("R")
Accept = Callable[[R], "bool | str"]
"""Return True for a ref that is to be worked on; False, or why not, for one that is not."""


class Sieve(Generic[R]):
    """Fail what a queue's handle has leased and is not to be worked on.

    Args:
        max_age_s: since a ref was put, or leased before, at most; None: it may be of any age.
        accept: None: accept all.

    Attributes:
        discarded: how many refs went to failed/.
    """

    def __init__(self, queue: LeasingQueue[R], max_age_s: float | None, accept: Accept[R] | None) -> None:
        self.discarded = 0
        self._queue = queue
        self._max_age_s = max_age_s
        self._accept = accept
        if max_age_s is not None:
            queue.handle.notes_ages = True

    def sift(self, refs: list[R], start: int) -> None:
        """Fail those of the refs from an index on that are stale, and drop them from the list.

        They are dropped last, so that an exception in between leaves none leased to nobody.
        """
        if len(refs) == start or (self._max_age_s is None and self._accept is None):
            return
        oldest = None if self._max_age_s is None else self._queue.handle.clock.now() - self._max_age_s
        stale: dict[str, list[R]] = {}
        for ref in refs[start:]:
            reason = self._too_old(ref, oldest) or self._not_accepted(ref)
            if reason:
                stale.setdefault(reason, []).append(ref)
        for reason, found in stale.items():
            self._queue.fail(found, reason, False)
            self.discarded += len(found)
            gone = set(map(id, found))
            refs[start:] = [ref for ref in refs[start:] if id(ref) not in gone]
            path, ids = self._queue.handle.layout.path, some(map(id_of_ref, found))
            tell(__name__, "info", path, "discarded %d refs, %s: %s", len(found), reason, ids)

    def _too_old(self, ref: R, oldest: float | None) -> str | None:
        if oldest is None:
            return None
        claim = self._queue.handle.held.claim_on(ref)
        since = claim.pending_since if claim is not None else None
        return f"stale: older than {self._max_age_s:g} s" if since is not None and since < oldest else None

    def _not_accepted(self, ref: R) -> str | None:
        verdict = True if self._accept is None else self._accept(ref)
        if isinstance(verdict, str):
            return f"not accepted: {verdict}"
        return None if verdict else f"not accepted by {getattr(self._accept, '__qualname__', self._accept)}"
