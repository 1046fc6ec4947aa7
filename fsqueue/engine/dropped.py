"""Give back what a queue object leases that was dropped without a close: nobody can settle it by that object any more.

The garbage collector calls this, in whatever thread and between whatever lines. So it waits for no lock: what comes
back to pending/ is not named in the order, and a listing finds it. At the interpreter's exit nothing is given back: the
process is gone then, and its leases end as those of a process that died.
"""

from __future__ import annotations

from contextlib import suppress

from fsqueue.engine.annotations import record
from fsqueue.engine.attempts import Limits, return_or_bury
from fsqueue.engine.handle import Handle
from fsqueue.log import some, tell

_REASON = "the queue object that leased it was dropped"


def let_go(handle: Handle, limits: Limits) -> None:
    """End the leases of a handle as those of a process that died, with a counted delivery, and close it.

    What an error keeps from going back ends by its timeout, or with the process.
    """
    if handle.closed:
        return
    back: list[str] = []
    with suppress(Exception):
        if claims := handle.held.all():
            now = handle.clock.now()
            for claim in claims:
                with suppress(OSError):
                    counted = record("expired", now, claim.holder, _REASON)
                    return_or_bury(handle, claim, counted, _REASON, limits, back)
            text = "took back %d leases, since their queue object was dropped: %s; close it, or use it in a with block"
            tell(__name__, "warning", handle.layout.path, text, len(claims), some(it.stem for it in claims))
    with suppress(Exception):
        handle.close()
