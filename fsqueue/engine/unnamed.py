"""Find refs that no line of the order names, and name them, without holding its lock for long."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fsqueue.engine.handle import Handle
from fsqueue.engine.order import FIRST
from fsqueue.format.lines import written_in

_PIECE_BYTES = 1 << 20
_SMALL_BYTES = 1 << 16  # of which the comparison takes less than a millisecond
_NAMES_A_HOLD = 5_000


class Unnamed:
    """Compare stems with the order, a piece of it a hold.

    RACE: between two holds lines come behind those that were read, and others are handed out: a ref whose place was
    taken meanwhile counts as named, since whoever took it is about to claim it.

    Attributes:
        stems: those that no line names which was read so far.
    """

    def __init__(self, handle: Handle, stems: Iterable[str]) -> None:
        self.stems = set(stems)
        self._handle = handle
        self._at = FIRST

    def compare(self) -> bool:
        """Compare with all of the order, and note it as swept where it names all; False where the lock was not had."""
        return self._when_read(lambda: self._append_locked([], not self.stems))

    def name(self, stems: list[str], swept: bool) -> None:
        """Append those of these stems to the order that no line names by then, some a hold.

        Args:
            swept: all of pending/ has been compared with the order so.
        """
        for start in range(0, max(len(stems), 1), _NAMES_A_HOLD):
            piece = stems[start : start + _NAMES_A_HOLD]
            if not self._when_read(lambda piece=piece: self._append_locked(piece, swept)):  # type: ignore[misc]
                return

    def _append_locked(self, stems: list[str], swept: bool) -> None:
        order = self._handle.order
        if left := [stem for stem in stems if stem in self.stems]:
            order.append_locked(left)
        if swept and not order.unwritable:  # a full disk has no room for the lines
            order.swept_locked(self._handle.ops.time())

    def _when_read(self, then: Callable[[], object]) -> bool:
        """Do something under the lock once all of the order has been read; False where the lock was not had."""
        order = self._handle.order
        while True:
            with self._handle.order_file.soon as held:
                if not held:
                    order.incomplete = True
                    return False
                lines, self._at, left_bytes = order.read_on_locked(self._at, _PIECE_BYTES)
                if not left_bytes and len(lines) <= _SMALL_BYTES:
                    self._leave_out(lines)
                    then()
                    return True
            self._leave_out(lines)

    def _leave_out(self, lines: bytes) -> None:
        self.stems.difference_update(written_in(lines))
