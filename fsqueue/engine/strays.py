"""Keep strays: refs that may be leased to this owner though nobody has them, after an error cut a call short."""

from __future__ import annotations

from collections.abc import Iterable

from fsqueue.disk.fileops import despite_errors
from fsqueue.disk.mutex import Mutex
from fsqueue.engine.held import Claim, Held
from fsqueue.engine.moves import Moves
from fsqueue.engine.order import Order


class Strays:
    """Remember strays, and give them back to pending/ with the handle's next call.

    Args:
        mutex: held by whoever reclaims, renews, or settles what this handle does not lease.
    """

    def __init__(self, moves: Moves, held: Held, order: Order, mutex: Mutex) -> None:
        self._moves = moves
        self._held = held
        self._order = order
        self._mutex = mutex
        self._claims: dict[str, Claim] = {}

    def add(self, claims: Iterable[Claim]) -> None:
        """Note leases that this owner may have though nobody has them."""
        for claim in claims:
            self._claims[claim.name] = claim

    def discard(self, claim: Claim) -> None:
        """Forget a lease that somebody has after all."""
        self._claims.pop(claim.name, None)

    def clear(self) -> None:
        """Forget all of them, where they have gone where they belong."""
        self._claims.clear()

    def __bool__(self) -> bool:
        return bool(self._claims)

    def stems(self) -> set[str]:
        return {claim.stem for claim in list(self._claims.values())}

    def recover(self) -> None:
        """Give strays back to pending/, as they are.

        RACE: of two threads, the one that holds the mutex gives a stray back, before anybody can claim it anew.
        """
        if not self._claims:
            return
        back: list[str] = []

        def recover(claim: Claim) -> None:
            if self._moves.give_back(claim):
                back.append(claim.stem)
            self._held.drop(claim)
            self.discard(claim)

        with self._mutex:
            try:
                despite_errors(recover, list(self._claims.values()))
            finally:
                self._order.append_soon(back)
