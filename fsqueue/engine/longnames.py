"""Find out how long a file's name may be on a queue's mount, and refuse refs whose names would not fit.

Most filesystems take 255 bytes, and every name of a queue fits. Those that encrypt names take fewer (eCryptfs 143,
encfs about 175), and may report 255 all the same. A ref whose name fits pending/ but not leased/ would fail every get;
so a put makes sure of the longest name that a ref may ever need in leased/, whoever leases it.
"""

from __future__ import annotations

import errno

import msgspec

from fsqueue.engine.layout import Layout
from fsqueue.errors import NameTooLongError
from fsqueue.format import names
from fsqueue.format.codec import UNDECODABLE

_ALWAYS_FITS = 143
_REFUSED = (errno.ENAMETOOLONG, errno.EINVAL)


class _SampleId(msgspec.Struct):
    sample_id: str


class NameLimit:
    """Know what names fit, by trying: one try for the longest name of a put that is longer than those before.

    Args:
        prefix: what names in tmp/ begin with, so that none of them is anybody else's.
    """

    def __init__(self, layout: Layout, prefix: str) -> None:
        self._layout = layout
        self._prefix = prefix
        self._fits = _ALWAYS_FITS

    def require(self, contents: dict[str, bytes]) -> None:
        """Refuse files by stem and content, where the name of one is too long.

        Raises:
            NameTooLongError: it names the ref, and the longest id that fits.
        """
        if not self._layout.remote or not contents:
            return
        longest = max(contents, key=len)
        needed = len(longest) + names.LEASED_EXTRA
        if needed <= self._fits:
            return
        if self._is_taken(needed):
            self._fits = needed
            return
        limit = self._limit(needed)
        raise NameTooLongError(self._layout.path, _id_of(longest, contents[longest]), limit, limit - names.LEASED_EXTRA)

    def _is_taken(self, length: int) -> bool:
        ops, tmp = self._layout.ops, self._layout.tmp
        name = f"{self._prefix}.{'n' * length}"[:length]
        try:
            ops.close_read(ops.create(tmp.fd, name, b""))
        except OSError as error:
            if error.errno in _REFUSED:
                return False
            raise
        ops.remove(tmp.fd, name)
        return True

    def _limit(self, refused: int) -> int:
        """Return the longest length that is taken: by halves, since only those lengths are tried that may matter."""
        taken = len(self._prefix) + 2
        while refused - taken > 1:
            middle = (taken + refused) // 2
            taken, refused = (middle, refused) if self._is_taken(middle) else (taken, middle)
        return taken


def _id_of(stem: str, data: bytes) -> str:
    sample_id = names.id_of(stem)
    if sample_id is not None:
        return sample_id
    try:
        return msgspec.json.decode(data, type=_SampleId).sample_id
    except UNDECODABLE:
        return stem
