"""Count refs, and know when a directory has not changed, so that it need not be listed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fsqueue.disk.directory import Directory

_COARSEST_S = 2.0
_COARSE_S = 0.03
COUNTS_BELIEVED_S = 10.0


class Counts(NamedTuple):
    """Say how many refs are in each state."""

    pending: int
    leased: int
    done: int
    failed: int


def standstill_s(*changed_at_ns: int) -> float:
    """Return for how many seconds these mtimes must have stood still before any further change shows in them.

    Kernels stamp by a clock that ticks every 1 to 10 ms; a filesystem that keeps no part of a second rounds down to
    one or two of them.
    """
    whole = not any(stamp % 1_000_000_000 for stamp in changed_at_ns)
    return _COARSE_S + (_COARSEST_S if whole else 0.0)


class Unchanged:
    """Know whether a directory still holds the names of its last listing.

    Timestamps are coarse, up to 2 s: an mtime proves that nothing has changed since the listing only where it had
    been seen for longer than that when the listing was made. Nothing proves it for good.

    Args:
        directory_times: the directory's mtime moves with its names; where it does not, nothing is ever unchanged.
        believed_s: for how long after a listing an mtime is believed, seconds.
    """

    def __init__(self, directory: Directory, directory_times: bool, believed_s: float = COUNTS_BELIEVED_S) -> None:
        self._directory = directory
        self._directory_times = directory_times
        self._believed_s = believed_s
        self._changed_at_ns: int | None = None
        self._seen_since = 0.0
        self._listed_at = -1e9

    def holds(self) -> bool:
        """Look at the directory's mtime; where this is False, list, then call `listed`."""
        if not self._directory_times:
            return False
        changed_at_ns, now = self._directory.changed_at_ns(), self._directory.ops.monotonic()
        if changed_at_ns != self._changed_at_ns:
            self._changed_at_ns, self._seen_since = changed_at_ns, now
            return False
        return self._listed_at - self._seen_since > _COARSEST_S and now - self._listed_at < self._believed_s

    def listed(self, began_at: float) -> None:
        """Note a listing that has been made: it began at this monotonic time, after the last look."""
        self._listed_at = began_at


class NameCount:
    """Count the names in a directory that are accepted.

    A call costs a look at the directory's mtime, and a listing where it may have changed in the last seconds.
    """

    def __init__(self, directory: Directory, accept: Callable[[str], object], directory_times: bool) -> None:
        self._directory = directory
        self._accept = accept
        self._unchanged = Unchanged(directory, directory_times)
        self._count = 0

    def count(self) -> int:
        if not self._unchanged.holds():
            began_at = self._directory.ops.monotonic()
            self._count = sum(1 for name in self._directory.listing() if self._accept(name))
            self._unchanged.listed(began_at)
        return self._count
