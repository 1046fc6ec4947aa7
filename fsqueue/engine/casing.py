"""Refuse ids that differ in case only, where the filesystem would take their files for one (macOS, CIFS, exFAT, NTFS).

There a put would skip the second of two ids in silence, and an ack would put one's file in the place of the other's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fsqueue.disk.fileops import silently_remove
from fsqueue.engine.layout import Layout
from fsqueue.engine.listing import directory_of
from fsqueue.engine.settings import SETTINGS
from fsqueue.errors import CaseCollisionError, InvalidRefError
from fsqueue.format import names
from fsqueue.format.untyped import place_of

_LISTED = ("pending", "leased", "failed")


class Casing:
    """Know whether a queue's mount ignores case, by one look at the first put, and hold ids apart where it does.

    Args:
        prefix: what names in tmp/ begin with, so that none of them is anybody else's.
    """

    def __init__(self, layout: Layout, prefix: str) -> None:
        self._layout = layout
        self._prefix = prefix
        self._kept: bool | None = None
        self._ignored: bool | None = None

    @property
    def ignored(self) -> bool:
        """Whether a name is found in another case than the one that it has."""
        if self._ignored is None:
            root, other = self._layout.root, SETTINGS.upper()
            self._ignored = self._layout.ops.is_there(root.fd, other) and other not in root.listing()
        return self._ignored

    def require(self, stems: Iterable[str]) -> None:
        """Refuse stems of which two, or one and a ref in the queue, differ in case only.

        It costs a listing of pending/, leased/ and failed/, and one of done/ where a name is found there; of refs that
        were acknowledged at a step, and of packed ones, nothing is known.

        Raises:
            CaseCollisionError: names both.
            InvalidRefError: an id is in upper case, and this mount lists names in lower case, so that nobody would find
                the ref by its name.
        """
        if self._ignored is False or not self.ignored:
            return
        known: dict[str, str] = {}
        for stem in stems:
            other = known.setdefault(stem.lower(), stem)
            if other != stem:
                raise self._collision(stem, other, "in the same put")
        upper = next((stem for stem in known.values() if stem != stem.lower()), None)
        if upper is not None and not self._case_is_kept():
            raise InvalidRefError("<root>.sample_id", self._not_kept(names.id_of(upper) or upper))
        for state, stem in self._there(known):
            mine = known.get(stem.lower(), stem)
            if mine != stem:
                raise self._collision(mine, stem, state)

    def _there(self, known: dict[str, str]) -> Iterator[tuple[str, str]]:
        layout = self._layout
        is_done = any(layout.ops.is_there(layout.done.fd, names.ref_file(stem)) for stem in known.values())
        for state in (*_LISTED, *(["done"] if is_done else [])):
            for name in directory_of(layout, state).listing():
                place = place_of(state, name)
                if place is not None:
                    yield state, place.stem

    def _case_is_kept(self) -> bool:
        """Return whether a listing shows a name as it was given: some drivers (lowntfs-3g) show all in lower case."""
        if self._kept is None:
            ops, tmp, name = self._layout.ops, self._layout.tmp, f"{self._prefix}.CASE"
            ops.close_read(ops.create(tmp.fd, name, b""))
            try:
                self._kept = name in tmp.listing()
            finally:
                silently_remove(ops, tmp.fd, [name])
        return self._kept

    def _not_kept(self, sample_id: str) -> str:
        return (
            f"{sample_id!r} has letters in upper case, and queue {self._layout.path} lies on a mount that gives names "
            "back in lower case: use ids in lower case, or keep the queue on another filesystem"
        )

    def _collision(self, stem: str, other: str, where: str) -> CaseCollisionError:
        return CaseCollisionError(self._layout.path, names.id_of(stem) or stem, names.id_of(other) or other, where)
