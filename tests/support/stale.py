"""File operations whose descriptors lead nowhere any more, as after an NFS export or a mount was made anew."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fsqueue import QueueIOError
from fsqueue.disk.fileops import FileOps, wrapped


class Stale:
    """File operations whose descriptors can all be made to answer an error for good, as after an export made anew."""

    def __init__(self) -> None:
        self.errno = 0
        self._old: set[int] = set()
        self.ops = wrapped(FileOps(), self._around)
        self.ops.filesystem_type = lambda path: "nfs4"

    def _around(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        used = {*args[:1], *(kwargs.get(key) for key in ("dir_fd", "src_dir_fd", "dst_dir_fd"))}
        if self.errno and name != "close" and used & self._old:
            raise OSError(self.errno, os.strerror(self.errno))
        result = call(*args, **kwargs)
        if name == "open":
            self._old.discard(result) if self.errno else self._old.add(result)
        elif name == "close":
            self._old.discard(args[0])
        return result


def settled(call: Callable[[], Any]) -> Any:
    """Call until it works: one error may come from the directories, and one from the lock."""
    for _ in range(2):
        with suppress(QueueIOError):
            return call()
    return call()
