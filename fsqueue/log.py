"""Log what an operator wants to know, to the standard library's loggers under ``fsqueue``.

    INFO     leases taken back, members that join and leave, what a repair mended
    WARNING  dead letters, leases that were lost while their holder worked, work that failed, heartbeats that failed

The same kind of line about one queue comes at most once in ten seconds, and the next one says how many were left out;
but a loop's own lines, of work that failed or whose lease was lost, come each time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import logging

_INTERVAL_S = 10.0
_SHOWN = 5
_MOST_KINDS = 4096

_next: dict[tuple[str, str], tuple[float, int]] = {}
"""By kind and queue: when the next line may come (monotonic), and how many were left out since the last."""


def logger(name: str) -> logging.Logger:
    """Return a module's logger; few processes have anything to log, and importing the library takes a while."""
    import logging

    return logging.getLogger(name)


def tell(name: str, level: Literal["info", "warning"], queue: str, text: str, *args: object) -> None:
    """Log a line about a queue, unless one of this kind has just been logged.

    Args:
        name: of the module that tells.
        text: the kind; a format for args.
    """
    now, kind = time.monotonic(), (text, queue)
    due, left_out = _next.get(kind, (0.0, 0))
    if now < due:
        _next[kind] = due, left_out + 1
        return
    if len(_next) > _MOST_KINDS:
        _next.clear()
    _next[kind] = now + _INTERVAL_S, 0
    more = f" ({left_out} more lines like this were left out)" if left_out else ""
    log = logger(name)
    (log.info if level == "info" else log.warning)("queue %s: " + text + "%s", queue, *args, more)


def some(ids: Iterable[str]) -> str:
    """Return the first of these ids, for a line, and how many more there are."""
    listed = list(ids)
    shown = ", ".join(islice(listed, _SHOWN))
    return shown if len(listed) <= _SHOWN else f"{shown} and {len(listed) - _SHOWN} more"
