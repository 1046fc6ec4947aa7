"""Say how often who waits in a stream looks: on a shared mount ever less often, since a server answers each look."""

from __future__ import annotations

from fsqueue.engine.handle import Handle
from fsqueue.engine.waiting import SHARE

_LONGEST_MEMBERS_S = 15.0


def members_pause_s(handle: Handle, waited_s: float) -> float:
    """Return for how long the members need no other look, seconds, after so long a wait; 0 on a local mount."""
    return min(SHARE * waited_s, _LONGEST_MEMBERS_S) if handle.layout.remote else 0.0


def longest_pause_s(handle: Handle, local_s: float) -> float:
    """Return how long a pause between two looks may become: local_s on a local mount."""
    return max(local_s, handle.poll_interval_s) if handle.layout.remote else local_s
