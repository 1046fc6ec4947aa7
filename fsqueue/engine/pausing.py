"""Pause a queue: while paused.json is there, no get leases anything; all else goes on.

The file counts, whatever is in it, so that `touch` and `rm` do. A handle looks for it before it leases, once a second
at most: that is all that it costs. One that waits while nothing is pending does not look.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import msgspec

from fsqueue.disk.denied import user_name
from fsqueue.disk.publish import replace_file
from fsqueue.engine.clock import Clock
from fsqueue.engine.layout import Layout, read_json
from fsqueue.log import tell

PAUSED = "paused.json"
LOOK_S = 1.0


@dataclass(frozen=True)
class Paused:
    """Hold the content of paused.json; all of it is None where somebody made the file by hand.

    Attributes:
        at: since when, seconds since 1970 by the filesystem's clock.
        by: who paused it: ``<user>@<host>``.
    """

    at: float | None = None
    by: str | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return (f" by {self.by}" if self.by else "") + (f": {self.reason}" if self.reason else "")


class PauseSign:
    """Know whether a queue is paused, as of the last second.

    Attributes:
        found: what the last look found; None: it is not paused.
        changes: how often that has changed from one to the other.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._next_at = -1e9
        self.found: Paused | None = None
        self.changes = 0

    def look(self) -> Paused | None:
        """Look again where the last look was a second ago."""
        now = self._layout.ops.monotonic()
        if now >= self._next_at:
            self.look_now()
            self._next_at = now + LOOK_S
        return self.found

    def look_now(self) -> Paused | None:
        before, self.found = self.found, find_pause(self._layout)
        self.changes += (self.found is None) != (before is None)
        if self.found is not None and before is None:
            tell(__name__, "warning", self._layout.path, "is paused%s; no get leases until it is resumed", self.found)
        elif self.found is None and before is not None:
            tell(__name__, "info", self._layout.path, "goes on: it is paused no more")
        return self.found

    def has_ended(self) -> bool:
        """Return whether a queue that was paused goes on, as a look tells that reads no reason."""
        if _is_there(self._layout):
            return False
        return self.look_now() is None


def find_pause(layout: Layout) -> Paused | None:
    """Return what paused.json says; None where there is none.

    NFS: a name may be remembered as missing, and on some mounts a file that is replaced is, for an instant: there a
    listing tells.
    """
    return (read_json(layout.root, PAUSED, Paused) or Paused()) if _is_there(layout) else None


def _is_there(layout: Layout) -> bool:
    root = layout.root
    return PAUSED in root.listing() if layout.remote else layout.ops.exists(root.fd, PAUSED)


def pause(layout: Layout, clock: Clock, reason: str | None) -> Paused:
    """Pause a queue; one that is paused already gets another reason. Returns what is stored.

    CRASH: before the rename a file beside it whose name begins with a dot, which means nothing.
    """
    before = find_pause(layout)
    since = before.at if before is not None and before.at is not None else clock.now()
    uid = os.getuid()
    wanted = Paused(since, f"{user_name(uid) or uid}@{os.uname().nodename}", reason)
    data = msgspec.json.encode(wanted) + b"\n"
    layout.reserve.retrying(lambda: replace_file(layout.ops, layout.root, PAUSED, data, durable=True))
    return wanted


def resume(layout: Layout) -> Paused | None:
    """Let a queue go on; return what was stored, None where it was not paused."""
    before = find_pause(layout)
    if before is not None and layout.ops.remove(layout.root.fd, PAUSED):
        layout.root.sync()
    return before
