"""Tell which refs are pending or leased, whatever has been settled before."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from fsqueue.disk.counting import Unchanged
from fsqueue.disk.directory import Directory
from fsqueue.engine.layout import Layout
from fsqueue.format import names


class _Stems:
    """Hold the stems of a directory's names; they are listed anew where they may have changed in the last seconds."""

    def __init__(self, directory: Directory, stem_in: Callable[[str], str | None], directory_times: bool) -> None:
        self._directory = directory
        self._stem_in = stem_in
        self._unchanged = Unchanged(directory, directory_times)
        self._stems: frozenset[str] = frozenset()

    def now(self) -> frozenset[str]:
        if not self._unchanged.holds():
            began_at = self._directory.ops.monotonic()
            self._stems = frozenset(filter(None, map(self._stem_in, self._directory.listing())))
            self._unchanged.listed(began_at)
        return self._stems


class Live:
    """See what is live in a queue: pending or leased."""

    def __init__(self, layout: Layout) -> None:
        moving = layout.filesystem.directory_times
        self._pending = _Stems(layout.pending, names.parse_pending, moving)
        self._leased = _Stems(layout.leased, _leased_stem, moving)

    def among(self, stems: Iterable[str]) -> set[str]:
        """Return those of these stems that are live.

        RACE: a ref may hop between the two directories, or change its name in leased/, while they are listed one after
        the other. So what the first looks do not find is looked for twice more before it counts as settled.
        """
        missing, live = set(stems), set[str]()
        for look in (self._pending, self._leased, self._pending, self._leased, self._pending):
            if not missing:
                break
            found = missing & look.now()
            live |= found
            missing -= found
        return live


def _leased_stem(name: str) -> str | None:
    lease = names.parse_leased(name)
    return lease.stem if lease else None
