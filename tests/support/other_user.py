"""A user who may only read."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_NOBODY = 65534


@contextmanager
def readable_by_all(path: Path) -> Iterator[Path]:
    """A copy of a queue, in a place that every user reaches, that nobody but its owner can change."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        public = Path(shutil.copytree(path, Path(directory) / "q"))
        for file in (public, *public.rglob("*")):
            file.chmod(0o755 if file.is_dir() else 0o644)
        yield public


def as_nobody(pipe: Connection, look: Callable[[Path], Any], path: Path) -> None:
    """A child that sends what look returns to a user without rights; to root's own, where this is not root."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    pipe.send(look(path))
