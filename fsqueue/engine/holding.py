"""Give back what a handle has held for longer than a queue's max_hold_s, though its process lives and beats.

A main thread that hangs would keep its refs for as long as the heartbeat's thread runs, or that of a loop that renews.
So that thread looks a few times in max_hold_s at what the handle holds, and ends what is overdue as a lease that has
expired: with a counted delivery. Where no thread of the process runs any more, nothing beats, and the lease timeout
does it.
"""

from __future__ import annotations

from collections.abc import Iterable

from fsqueue.engine import heartbeat
from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.log import some, tell

_LOOKS = 4
_LONGEST_S = 30.0  # after which a limit that was set meanwhile is taken up


def wait_since(claims: Iterable[Claim], since: float | None) -> None:
    """Note that leases wait for their work behind other work, which went on then, by monotonic; None: behind none."""
    for claim in claims:
        claim.waits, claim.taken_at = True, since


def begin(claims: Iterable[Claim], now: float) -> None:
    """Note that the work on leases begins; now is monotonic."""
    for claim in claims:
        claim.waits, claim.taken_at = False, now


class HoldLimit:
    """Watch one handle's leases, from its first one on."""

    def __init__(self, handle: Handle, reclaimer: Reclaimer) -> None:
        self._handle = handle
        self._reclaimer = reclaimer
        self._key: int | None = None
        self._interval_s = 0.0

    def watch(self) -> None:
        """Begin to look, where there is a limit, or where nothing but the heartbeat would ever learn of one."""
        if self._interval_s:
            return
        handle = self._handle
        if handle.layout.settings.max_hold_s is not None or handle.presence.heartbeat_s is not None:
            if self._key is None:
                self._key = heartbeat.heartbeats.new_key()
            self._keep_pace()

    def stop(self) -> None:
        """Look no more."""
        if self._key is not None:
            heartbeat.heartbeats.unregister(self._key)

    def look(self) -> None:
        """End what is held for too long by now."""
        handle = self._handle
        if handle.layout.reread():
            self._keep_pace()
        limit_s = handle.layout.settings.max_hold_s
        if limit_s is None:
            return
        now = handle.ops.monotonic()
        overdue = [it for it in handle.held.all() if it.taken_at is not None and now - it.taken_at > limit_s]
        if overdue and self._reclaimer.end_overdue(overdue, f"held for longer than max_hold_s, {limit_s:g} s"):
            text = "%s were held for longer than max_hold_s, %g s, and went back: the work on them may hang"
            tell(__name__, "warning", handle.layout.path, text, some(it.stem for it in overdue), limit_s)

    def _keep_pace(self) -> None:
        handle, limit_s = self._handle, self._handle.layout.settings.max_hold_s
        interval_s = _LONGEST_S if limit_s is None else min(limit_s / _LOOKS, _LONGEST_S)
        if self._key is not None and interval_s != self._interval_s:
            mount = handle.layout.root.mount()
            heartbeat.heartbeats.register(self._key, self.look, interval_s, handle.awake, mount)
            self._interval_s = interval_s
