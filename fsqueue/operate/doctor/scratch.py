"""Make a scratch directory that is gone afterwards, whatever happens."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fsqueue.disk.publish import absolute

_REMOVAL_S = 30.0
_PAUSE_S = 0.5


@contextmanager
def scratch_directory(parent: str, prefix: str) -> Iterator[str]:
    """Make a directory inside parent; it is removed with everything in it on leaving the block, whatever happens.

    The prefix should begin with a dot: in a queue's directory, names that do are nobody's business. What it yields is
    absolute, for processes that are started elsewhere.
    """
    path = tempfile.mkdtemp(prefix=prefix, dir=absolute(parent))
    try:
        yield path
    finally:
        try:
            _remove(path)
        except KeyboardInterrupt:
            shutil.rmtree(path, ignore_errors=True)
            raise


def _remove(path: str) -> None:
    """Remove a directory; a mount may show late what others have made or removed in it."""
    deadline = time.monotonic() + _REMOVAL_S
    while True:
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError as error:
            if error.filename == path:
                return
            if time.monotonic() >= deadline:
                raise
        except OSError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(_PAUSE_S)
