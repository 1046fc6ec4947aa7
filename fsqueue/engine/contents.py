"""Keep a handle from putting or getting refs as a class that does not fit what the queue holds.

type.json describes the class of the refs in a queue. The first put writes it, once; a queue without one, whose refs
were put by other programs, takes any class. Only putting and getting need the class: whoever counts, settles or moves
refs may have another one.
"""

from __future__ import annotations

from math import inf
from typing import Any

import msgspec

from fsqueue.disk.once import await_creators, publish_once
from fsqueue.engine.layout import REF_TYPE, Layout, read_json
from fsqueue.errors import RefTypeError
from fsqueue.format.ref_type import RefType, Use, describe, misfit

_ASK_AGAIN_S = 15.0


class Contents:
    """Compare one handle's class with the queue's, once for puts and once for gets where it fits.

    Attributes:
        ref_type: the class of this handle's refs.
        fits_puts, fits_gets: that was done, and need not be done again.
    """

    def __init__(self, layout: Layout, ref_type: type[Any]) -> None:
        self._layout = layout
        self.ref_type = ref_type
        self.fits_puts = False
        self.fits_gets = False
        self._ask_again_at = -inf

    def agree_to_put(self) -> None:
        """Refuse a class that does not fit; the first put says what the queue holds from now on.

        RACE: of two first puts one writes the file, and both read it.

        Raises:
            RefTypeError: refs of this class would not fit those that are in the queue.
        """
        ops, root = self._layout.ops, self._layout.root
        found = self._agree("put")
        if not found:
            publish_once(ops, root, REF_TYPE, msgspec.json.encode(describe(self.ref_type)) + b"\n")
        if await_creators(ops, root, REF_TYPE) or not found:
            self._agree("put", surely=True)
        self.fits_puts = True

    def agree_to_get(self, *, leased: bool = False) -> None:
        """Refuse a class that does not fit; as long as nothing says what the queue holds, ask again with every get.

        On a shared mount, with one every 15 s: most of them wait, and find nothing that could be of another class.

        Args:
            leased: the queue has given a ref. A put writes the file first, so where there is still none, the queue
                takes any class.

        Raises:
            RefTypeError: this class cannot hold the refs that are in the queue.
        """
        if self._layout.remote:
            now = self._layout.ops.monotonic()
            if leased:
                self._layout.root.refresh()
            elif now < self._ask_again_at:
                return
            self._ask_again_at = now + _ASK_AGAIN_S
        if self._agree("get") or leased:
            self.fits_gets = True

    def _agree(self, use: Use, surely: bool = False) -> bool:
        """Compare the classes; return whether the queue has one."""
        return agree(self._layout, self.ref_type, use, surely)


def agree(layout: Layout, ref_type: type[Any], use: Use, surely: bool = False) -> bool:
    """Return whether a queue says what it holds.

    Raises:
        RefTypeError: it does, and this class does not fit.
    """
    stored = read_json(layout.root, REF_TYPE, RefType, surely=surely)
    if stored is None:
        return False
    given = describe(ref_type)
    why = misfit(stored, given, use)
    if why is not None:
        raise RefTypeError(layout.path, stored.name, given.name, why)
    return True
