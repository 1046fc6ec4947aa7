"""A client of a shared mount that lies as real ones were seen to, over real directories.

It remembers each name that it has used, and the file behind it, for as long as it does not find out. So long a rename
to that name, of that file, returns 0 and does nothing, and the name goes on answering after another client has moved
the file away. A race that it loses it is told of by an error of the test's choice.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fsqueue import FileSampleRefQueue
from fsqueue.disk.fileops import FileOps, using, wrapped
from tests.support import Queue

LOSER_ERRNOS = (
    errno.ENOENT, errno.EIO, errno.EXDEV, errno.EPERM, errno.ESTALE, errno.EBADF, errno.EEXIST, errno.ETIMEDOUT,
)  # fmt: skip

_Name = tuple[int, str]


class LyingClient:
    """One client: give its `ops` to all handles that lie behind one cache.

    Attributes:
        kind: the filesystem's type; on NFS, opening a directory makes the client forget what it remembers of it.
        loser: what is told of a file that is gone; ENOENT where the client only believes a name of it.
        no_ops, stale_names: lies that can be switched off.
        swallowed: how many renames were not made.
        longest_name: longer names are refused with ENAMETOOLONG.
    """

    def __init__(self, kind: str = "fuse.lying", loser: int = errno.ENOENT) -> None:
        self.kind = kind
        self.loser = loser
        self.no_ops = self.stale_names = True
        self.swallowed = 0
        self.longest_name = 255
        self.before: Callable[[str, tuple[Any, ...]], None] = lambda name, args: None
        self._known: dict[_Name, int] = {}  # a descriptor on the file
        self.ops = wrapped(FileOps(), self._around)
        self.ops.filesystem_type = lambda path: kind

    @contextmanager
    def here(self) -> Iterator[None]:
        with using(self.ops):
            yield

    def open_queue(self, path: Path, **arguments: Any) -> Queue:
        with self.here():
            return FileSampleRefQueue(path, **arguments)

    def forget(self) -> None:
        """Let the time pass after which nothing is remembered."""
        for fd in self._known.values():
            os.close(fd)
        self._known.clear()

    def _around(self, call: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.before(call, args)
        if any(isinstance(arg, str) and "/" not in arg and len(os.fsencode(arg)) > self.longest_name for arg in args):
            raise OSError(errno.ENAMETOOLONG, "too long", str(args[0]))
        own = getattr(self, f"_{call}", None)
        return own(real, *args, **kwargs) if own else real(*args, **kwargs)

    def _learn(self, dir_fd: int, name: str) -> None:
        with suppress(OSError):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
            self._drop(dir_fd, name)
            self._known[self._key(dir_fd, name)] = fd

    def _drop(self, dir_fd: int, name: str) -> None:
        fd = self._known.pop(self._key(dir_fd, name), None)
        if fd is not None:
            os.close(fd)

    @staticmethod
    def _key(dir_fd: int, name: str) -> _Name:
        return os.fstat(dir_fd).st_ino, name

    def _remembered(self, dir_fd: int | None, name: str) -> int | None:
        """The file that a name is believed to stand for, where that is not so."""
        fd = self._known.get(self._key(dir_fd, name)) if dir_fd is not None else None
        if fd is None or not self.stale_names or not os.fstat(fd).st_nlink:
            return None
        try:
            os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return fd
        return None

    def _open(self, real: Callable[..., int], name: str, flags: int, *args: Any, dir_fd: int | None = None) -> int:
        if flags & os.O_DIRECTORY:
            fd = real(name, flags, *args, dir_fd=dir_fd)
            if self.kind.startswith("nfs"):
                for key in [key for key in self._known if key[0] == os.fstat(fd).st_ino]:
                    os.close(self._known.pop(key))
            return fd
        stale = self._remembered(dir_fd, name)
        if stale is not None and not flags & os.O_CREAT:
            return os.open(f"/proc/self/fd/{stale}", flags & ~os.O_NOFOLLOW)
        fd = real(name, flags, *args, dir_fd=dir_fd)
        if dir_fd is not None:
            self._learn(dir_fd, name)
        return fd

    def _stat(self, real: Callable[..., os.stat_result], name: str, **kwargs: Any) -> os.stat_result:
        stale = self._remembered(kwargs.get("dir_fd"), name)
        if stale is not None:
            return os.fstat(stale)
        found = real(name, **kwargs)
        if kwargs.get("dir_fd") is not None:
            self._learn(kwargs["dir_fd"], name)
        return found

    def _access(self, real: Callable[..., bool], name: str, mode: int, **kwargs: Any) -> bool:
        if self._remembered(kwargs.get("dir_fd"), name) is not None:
            return True
        found = real(name, mode, **kwargs)
        if found:
            self._learn(kwargs["dir_fd"], name)
        return found

    def _utime(self, real: Callable[..., None], name: str, **kwargs: Any) -> None:
        stale = self._remembered(kwargs.get("dir_fd"), name)
        if stale is not None:
            os.utime(f"/proc/self/fd/{stale}", **({"ns": kwargs["ns"]} if "ns" in kwargs else {}))
            return
        real(name, **kwargs)
        self._learn(kwargs["dir_fd"], name)

    def _rename(self, real: Callable[..., None], name: str, new_name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        target = self._known.get(self._key(dst_dir_fd, new_name))
        try:
            source = os.stat(name, dir_fd=src_dir_fd, follow_symlinks=False)
            if target is not None and self.no_ops and os.fstat(target).st_ino == source.st_ino:
                self.swallowed += 1
                return
            real(name, new_name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        except FileNotFoundError:
            raise OSError(self.loser, os.strerror(self.loser), name, None, new_name) from None
        self._drop(src_dir_fd, name)
        self._learn(dst_dir_fd, new_name)

    def _unlink(self, real: Callable[..., None], name: str, *, dir_fd: int) -> None:
        self._drop(dir_fd, name)
        try:
            real(name, dir_fd=dir_fd)
        except FileNotFoundError:
            raise OSError(self.loser, os.strerror(self.loser), name) from None
