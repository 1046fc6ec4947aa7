"""Remember which refs a handle leases, and how its latest leases ended."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

_REMEMBERED = 4096

Ending = Literal["settled", "returned", "lost"]


class Held:
    """Know which refs this handle leases, and how its latest leases ended.

    The endings fence a late acknowledgement off: a ref that this handle once leased is only settled under its own
    lease, one that it never leased whoever holds it. What was lost, which is rare, is remembered for good, what was
    settled for the last `_REMEMBERED` refs.
    """

    def __init__(self) -> None:
        self._claiming: dict[str, object] = {}
        self._held: dict[str, None] = {}
        self._lost: set[str] = set()
        self._ended: OrderedDict[str, Ending] = OrderedDict()

    def begin(self, stem: str) -> bool:
        """Begin to claim a ref; False where another thread of this handle is claiming it."""
        mark = object()
        return self._claiming.setdefault(stem, mark) is mark

    def add(self, stem: str) -> None:
        """Note a claim; how earlier leases on the ref ended does not count any more."""
        self._held[stem] = None
        self._claiming.pop(stem, None)
        self.forget(stem)

    def cancel_claim(self, stem: str) -> None:
        """Note that a claim came to nothing."""
        self._claiming.pop(stem, None)

    def drop(self, stem: str) -> None:
        """Forget a lease that nobody learned of, and that was given back."""
        self._claiming.pop(stem, None)
        self._held.pop(stem, None)

    def end(self, stem: str, how: Ending) -> None:
        """Note the end of a lease: acked or buried, given back to pending/, or lost so that others may have it.

        RACE: a renewal may miss the file that another thread has just settled, and call the lease lost before that
        thread comes here; the thread that settled it knows better.
        """
        self._claiming.pop(stem, None)
        was_held = self._held.pop(stem, False) is not False
        if how == "lost":
            if was_held:
                self._lost.add(stem)
            return
        if not was_held and stem not in self._lost:
            return
        self._lost.discard(stem)
        self._ended[stem] = how
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def ending(self, stem: str) -> Ending | None:
        """Return how this handle's latest lease on a ref ended; None where it had none, or long ago."""
        return "lost" if stem in self._lost else self._ended.get(stem)

    def forget(self, stem: str) -> None:
        """Begin a new life of a ref, by a put or a claim of this handle."""
        if self._lost or self._ended:
            self._lost.discard(stem)
            self._ended.pop(stem, None)

    def __contains__(self, stem: str) -> bool:
        return stem in self._held
