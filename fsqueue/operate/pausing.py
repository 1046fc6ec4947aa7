"""Pause a queue and let it go on, for an operator."""

from __future__ import annotations

import os
from contextlib import closing

from fsqueue.disk.fileops import current, explained
from fsqueue.engine import arguments, pausing
from fsqueue.engine.clock import FilesystemClock
from fsqueue.engine.layout import open_layout
from fsqueue.engine.pausing import Paused


def pause(path: str | os.PathLike[str], reason: str | None = None) -> Paused:
    """Pause a queue: within a second no handle leases from it, until `resume`. Puts and settlements go on.

    A queue that is paused already stays so since when it was, with the new reason.

    Args:
        reason: for those who wait, and for `status`.

    Returns:
        Since when it is paused, by whom, and why.

    Raises:
        InvalidArgumentError: the reason is no string.
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; it is paused or not, as `status` says.
    """
    arguments.text_or_none("pause(reason=)", reason)
    layout = open_layout(current(), os.fspath(path))
    with explained("pausing", layout.path), closing(layout):
        return pausing.pause(layout, FilesystemClock(layout.ops, layout.root), reason)


def resume(path: str | os.PathLike[str]) -> Paused | None:
    """Let a paused queue go on: within a second those who wait lease from it.

    Returns:
        What held it; None where it was not paused.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; it is paused or not, as `status` says.
    """
    layout = open_layout(current(), os.fspath(path))
    with explained("resuming", layout.path), closing(layout):
        return pausing.resume(layout)
