"""Reading a queue: takes no lock and writes nothing, and works where all files belong to another user.

Ages compare this host's clock with the filesystem's stamps; on a shared mount they are off by the clocks' skew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from fsqueue import names
from fsqueue.fileops import current, explained
from fsqueue.layout import Layout, open_layout


@contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[Layout]:
    """An open queue to look at.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    layout = open_layout(current(), os.fspath(path))
    try:
        with explained("reading", layout.path):
            yield layout
    finally:
        layout.close()


def owner_matches(wanted: str, owner: str) -> bool:
    """Whether an owner is the one that is named, or belongs to the node that is."""
    return wanted == owner or names.owner_name(wanted) == owner.rsplit(".", 2)[0]
