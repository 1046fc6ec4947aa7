"""Pass over the refs with which nothing is wrong, as nearly all are: one look at each, with no other file in mind."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from fsqueue.disk.directory import Directory
from fsqueue.engine.layout import Layout
from fsqueue.errors import CorruptRefError
from fsqueue.format import names
from fsqueue.format.codec import is_whole
from fsqueue.format.untyped import allows

_WHOLE_BYTES = 1 << 16
_LIVE = ("pending", "leased")


class Sound:
    """Tell the refs of one queue that are sound by themselves from those that have to be looked at closely.

    Attributes:
        leased: the name in leased/ by stem.
        twice: further names there of the same refs.
    """

    def __init__(self, layout: Layout, latest: float, participant: bool) -> None:
        self._layout = layout
        self._ops = layout.ops
        self._latest = latest
        self._participant = participant
        self.leased: dict[str, str] = {}
        self.twice: list[str] = []

    def others(self, state: str, directory: Directory, listed: Sequence[str]) -> Iterator[str | None]:
        """Yield those names in a state's directory that are to be looked at closely; None for each sound one.

        Costs an open, a stat, a read and a close for each.
        """
        for name in listed:
            yield None if self._is_sound(state, directory.fd, name) else name

    def _is_sound(self, state: str, dir_fd: int, name: str) -> bool:
        stem = _stem_in(state, name)
        sample_id = None if stem is None else names.id_of(stem)
        if stem is None or sample_id is None:
            return False
        ops = self._ops
        try:
            fd = ops.open_to_read(dir_fd, name)
            try:
                status = ops.fstat(fd)
                data = ops.read(fd, _WHOLE_BYTES)
            finally:
                ops.close_read(fd)
        except (OSError, CorruptRefError):
            return False
        if not is_whole(data, sample_id) or not self._is_ordinary(state, status, len(data)):
            return False
        if state == "leased":
            if stem in self.leased:
                self.twice.append(name)
            self.leased.setdefault(stem, name)
        return True

    def _is_ordinary(self, state: str, status: os.stat_result, size: int) -> bool:
        return (
            size < _WHOLE_BYTES
            and stat.S_ISREG(status.st_mode)
            and status.st_nlink == 1
            and status.st_mtime <= self._latest
            and allows(status, write=self._participant and state in _LIVE)
        )


def _stem_in(state: str, name: str) -> str | None:
    """Return the stem in an ordinary name; None in one that has to be looked at closely."""
    if state == "done":
        done = names.parse_done(name)
        return done[0] if done else None
    if state == "leased":
        lease = names.parse_leased(name)
        return lease.stem if lease and lease.due is None else None
    return names.parse_ref(name)
