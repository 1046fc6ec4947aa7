"""Pick those lines of the order that are of one partition."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fsqueue.format import lines as order_lines
from fsqueue.format.lines import DEAD, filled, has_marks, stem_in
from fsqueue.records import partition_of

Partition = tuple[int, int]


class Picker:
    """Pick a partition's lines: by their marks where all of them have one, else by hashing every id.

    Args:
        belongs: whether the ref of a stem is of the partition, where the stem does not tell the id as it is.
    """

    def __init__(self, partition: Partition, belongs: Callable[[str], bool]) -> None:
        self._index, self.count = partition
        self._belongs = belongs
        self._find = order_lines.finder(*partition)

    def is_quick(self, lines: bytes) -> bool:
        """Return whether marks tell which of these lines to take."""
        return self._find is not None and has_marks(lines)

    def filled(self, lines: bytes) -> bytes:
        """Return the same lines with their marks."""
        return lines if self._find is None else filled(lines)

    def picked(self, lines: bytes, doubting: bool) -> Iterator[int]:
        """Yield where the partition's lines begin, but for those that were handed out.

        Args:
            doubting: go by no mark; one may be damaged.
        """
        if doubting or self._find is None or not has_marks(lines):
            at = 0
            for line in lines.split(b"\n"):
                if self._is_mine(line):
                    yield at
                at += len(line) + 1
            return
        for mark in self._find(lines):
            at = lines.rfind(b"\n", 0, mark.start()) + 1
            if self._is_mine(lines[at : mark.end() - 1]):
                yield at

    def _is_mine(self, line: bytes) -> bool:
        if not line or line[0] == DEAD:
            return False
        stem = stem_in(line.decode("ascii", "replace"))
        if stem is None:
            return False
        if "%" in stem or "~" in stem:
            return self._belongs(stem)
        return partition_of(stem.encode(), self.count) == self._index
