"""Counting refs, and knowing that a directory has not changed, so that it need not be listed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fsqueue.disk.directory import Directory

_COARSEST_S = 2.0
_COARSE_S = 0.03


class Counts(NamedTuple):
    """How many refs are in each state."""

    pending: int
    leased: int
    done: int
    failed: int


def standstill_s(*changed_at_ns: int) -> float:
    """For how many seconds directories' mtimes must have stood still, until no change can leave them as they are.

    Kernels stamp by a clock that ticks every 1 to 10 ms; a filesystem that keeps no part of a second rounds down to
    one or two of them.
    """
    whole = not any(stamp % 1_000_000_000 for stamp in changed_at_ns)
    return _COARSE_S + (_COARSEST_S if whole else 0.0)


class Unchanged:
    """Whether a directory still holds the names of its last listing.

    Timestamps are coarse, up to 2 s: only an mtime that had been seen for longer than that when the listing was
    made proves that nothing has changed since.
    """

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._changed_at_ns: int | None = None
        self._seen_since = 0.0
        self._listed_at = -1e9

    def holds(self) -> bool:
        """Looks at the directory's mtime; where this is False, list, and then say when that listing began."""
        changed_at_ns, now = self._directory.changed_at_ns(), self._directory.ops.monotonic()
        if changed_at_ns != self._changed_at_ns:
            self._changed_at_ns, self._seen_since = changed_at_ns, now
            return False
        return self._listed_at - self._seen_since > _COARSEST_S

    def listed(self, began_at: float) -> None:
        """A listing that began then, monotonic, and after the last look, has been made."""
        self._listed_at = began_at


class NameCount:
    """Count the names in a directory that are accepted.

    A call costs a look at the directory's mtime, and a listing where it may have changed in the last seconds.
    """

    def __init__(self, directory: Directory, accept: Callable[[str], object]) -> None:
        self._directory = directory
        self._accept = accept
        self._unchanged = Unchanged(directory)
        self._count = 0

    def count(self) -> int:
        if not self._unchanged.holds():
            began_at = self._directory.ops.monotonic()
            self._count = sum(1 for name in self._directory.listing() if self._accept(name))
            self._unchanged.listed(began_at)
        return self._count
