"""Keep strays: refs that may be leased to this owner though nobody has them, after an error cut a call short."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from fsqueue.disk.fileops import despite_errors
from fsqueue.engine.held import Held
from fsqueue.engine.moves import Moves
from fsqueue.engine.order import Order


class Strays:
    """Remember strays, and give them back to pending/ with the handle's next call.

    Args:
        mutex: held by whoever reclaims, renews, or settles what this handle does not lease.
    """

    def __init__(self, moves: Moves, held: Held, order: Order, mutex: threading.RLock) -> None:
        self._moves = moves
        self._held = held
        self._order = order
        self._mutex = mutex
        self._stems: dict[str, None] = {}

    def add(self, stems: Iterable[str]) -> None:
        """Note refs that may be leased to this owner though nobody has them."""
        for stem in stems:
            self._stems[stem] = None

    def discard(self, stem: str) -> None:
        """Forget a ref that somebody has after all."""
        self._stems.pop(stem, None)

    def clear(self) -> None:
        """Forget all of them, where they have gone where they belong."""
        self._stems.clear()

    def __contains__(self, stem: str) -> bool:
        return stem in self._stems

    def recover(self) -> None:
        """Give strays back to pending/, as they are.

        RACE: of two threads, the one that holds the mutex gives a stray back, before anybody can claim it anew.
        """
        if not self._stems:
            return
        back: list[str] = []

        def recover(stem: str) -> None:
            if self._moves.give_back(stem):
                back.append(stem)
            self._held.drop(stem)
            self.discard(stem)

        with self._mutex:
            try:
                despite_errors(recover, list(self._stems))
            finally:
                self._order.append_soon(back)
