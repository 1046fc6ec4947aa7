"""Find the done files that are old, and keep them in order: a hundred bytes each, since there may be millions."""

from __future__ import annotations

import os
import stat

from fsqueue.engine.layout import Layout
from fsqueue.engine.packing.revision import SEGMENT_BYTES
from fsqueue.format import names, packed

FRAME_BYTES = 512
"""How much longer a line may be than its file."""
_STAMP_BYTES = 8
_SIZE_BYTES = 4
_EARLIEST_NS = -(1 << 63)


class OldFiles:
    """Hold the done files last stamped by a time, seconds since 1970: the oldest comes first.

    Costs a stat of every done file. Those that no segment could hold are left out.
    """

    def __init__(self, layout: Layout, limit: float) -> None:
        self._layout = layout
        self._limit = limit
        self._found: list[bytes] = []
        layout.done.any_name(self._add)
        self._found.sort(reverse=True)

    def _add(self, name: str) -> bool:
        """Look at a name in done/, and go on to the next."""
        parsed = names.parse_done(name)
        if parsed is None or names.done_file(*parsed) != name or len(name) > packed.NAME_LIMIT_BYTES:
            return False
        status = self._layout.ops.status(self._layout.done.fd, name)
        if status and stat.S_ISREG(status.st_mode):
            size_bytes = status.st_size
            if status.st_mtime <= self._limit and size_bytes <= SEGMENT_BYTES // 4:
                stamp = (stamp_ns_of(status) - _EARLIEST_NS).to_bytes(_STAMP_BYTES, "big")
                self._found.append(stamp + name.encode() + size_bytes.to_bytes(_SIZE_BYTES, "big"))
        return False

    def __len__(self) -> int:
        return len(self._found)

    @property
    def next_bytes(self) -> int:
        """Return for how many bytes of lines the next one needs room, at most; 0 where there is none."""
        return _room_for(self._found[-1]) if self._found else 0

    @property
    def next_name(self) -> str:
        return self._found[-1][_STAMP_BYTES:-_SIZE_BYTES].decode()

    def room_bytes(self) -> int:
        """Return for how many bytes of lines all of them need room, at most."""
        return sum(map(_room_for, self._found))

    def drop_next(self) -> None:
        """Go on to the one behind the next; NFS: a listing may repeat a name, and each comes once."""
        dropped = self._found.pop()
        while self._found and self._found[-1] == dropped:
            self._found.pop()


def stamp_ns_of(status: os.stat_result) -> int:
    """Return a file's mtime, in ns; 1677 where it is earlier, as SMB's first stamps are: a line holds 64 bits."""
    return max(status.st_mtime_ns, _EARLIEST_NS)


def _room_for(entry: bytes) -> int:
    return int.from_bytes(entry[-_SIZE_BYTES:], "big") + FRAME_BYTES
