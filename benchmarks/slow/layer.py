"""A layer over the file operations that costs what a Linux NFS 4.2 client's calls cost.

Every call is charged the round trips that it makes on such a mount. A round trip that only reads or looks up takes
`read_s`; one that modifies waits for a commit on the server's disk and takes `modify_s`. The real call runs on the
directory given, so what is measured is the queue and not a model of it.

    open, creating          OPEN, and SETATTR with O_EXCL    modifies   the directory's lock is held throughout
    open, existing          OPEN; a directory: GETATTR       reads
    write, pwrite           nothing before the flush; READ where a page is written in part that is not cached, through
                            a descriptor that also reads; WRITE with O_DIRECT
    fsync, close, unlock    WRITE where something is unsent  modifies   overlaps
    close                   CLOSE; a directory: nothing      reads
    read, pread, readinto   READ where no page is cached; with O_DIRECT always              reads
    fstat                   GETATTR after a lock             reads
    stat, access            LOOKUP of a name that is not remembered, there or missing       reads
    listdir, scan_until     READDIR: one a 1,000 names; none where it is as last listed     reads
    utime, ftruncate        SETATTR                          modifies   overlaps
    rename                  RENAME                           modifies   one at a time on the mount across directories,
                                                                        else the directory's lock is held
    unlink, link            REMOVE, LINK                     modifies   the directory's lock is held
    mkdir                   CREATE                           modifies
    lock, unlock            LOCK, LOCKU and FREE_STATEID     reads
    rename, unlink, utime of a file that was opened to be read, but not with O_DIRECT: DELEGRETURN first      reads

So it was counted on a Linux 6.1 client and server. Producer and consumer are one client here; on two, the first use of
a name costs a LOOKUP more. A sync of a directory is free: the server has committed every change before it answers. A
client that is alone keeps the order file's content from one lock to the next, which this layer does not; it knows
nothing of stale names either: the simulated mount (simulation/) does.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from fsqueue.disk.fileops import FileOps, wrapped
from slow.clock import VirtualClock

READ_S = 0.0003
MODIFY_S = 0.003
MODIFYING = frozenset({"CREATE", "LINK", "OPEN+", "REMOVE", "RENAME", "SETATTR", "WRITE"})
"""The procedures that wait for the server's disk; OPEN+ is an OPEN that creates."""

_NAMES_A_READDIR = 1_000
_PAGE_BYTES = 4096
_Key = tuple[int, int]


@dataclass
class _Open:
    """What the client knows of an open file.

    Attributes:
        direct: opened with O_DIRECT: nothing is cached, and no delegation was asked for.
        reads: may be read, so that a page that is written in part is fetched first.
        pages: which are in its cache.
        attributes: whether its attributes are.
        unsent: whether written bytes have not been sent yet.
    """

    key: _Key
    directory: bool
    direct: bool
    reads: bool
    attributes: bool = True
    unsent: bool = False
    pages: set[int] = field(default_factory=set)


class SlowMount:
    """One client's mount, for all threads of this process.

    Args:
        sleep: spends the time of a round trip, seconds.
        clock: what time is told by instead, where everything happens in one thread.

    Attributes:
        ops: the table of file operations to open handles with.
        trips: round trips made so far by procedure; see `MODIFYING`.
    """

    def __init__(
        self,
        read_s: float = READ_S,
        modify_s: float = MODIFY_S,
        sleep: Callable[[float], object] = time.sleep,
        clock: VirtualClock | None = None,
    ) -> None:
        self.trips: Counter[str] = Counter()
        self._read_s = read_s
        self._modify_s = modify_s
        self._sleep = clock.sleep if clock else sleep
        self._clock = clock
        self._mutex = threading.Lock()
        self._across = threading.Lock()
        self._directories: dict[_Key, threading.Lock] = {}
        self._opened: dict[int, _Open] = {}
        self._delegations: set[_Key] = set()
        self._names: dict[_Key, set[str]] = {}  # that are remembered, by directory
        self._listed: dict[_Key, int] = {}  # how often a directory had changed when it was last listed
        self._changes: Counter[_Key] = Counter()
        self.ops = wrapped(FileOps(), self._around)
        self.ops.filesystem_type = lambda path: "nfs4"
        if clock:
            self.ops.each = clock.each  # type: ignore[method-assign]
            self.ops.monotonic = clock.monotonic

    def reset(self) -> None:
        """Begin to count."""
        self.trips.clear()

    def _around(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return getattr(self, f"_{name}")(call, *args, **kwargs)

    def _trip(self, procedure: str, count: int = 1) -> None:
        with self._mutex:
            self.trips[procedure] += count
        self._sleep(count * (self._modify_s if procedure in MODIFYING else self._read_s))

    @contextmanager
    def _held(self, *dir_fds: int | None) -> Iterator[None]:
        """The locks of directories, in one order for all; before those of two, the mount's."""
        keys = sorted({_key(os.fstat(fd) if fd is not None else os.stat(".")) for fd in dir_fds})
        with self._mutex:
            locks = [self._directories.setdefault(key, threading.Lock()) for key in keys]
        with ExitStack() as held:
            taken = [self._across, *locks] if len(locks) > 1 else locks
            for lock in taken:
                held.enter_context(lock)
            if self._clock:
                self._clock.await_locks(taken)
            yield
            if self._clock:
                self._clock.let_go(taken)

    def _open(self, call: Callable[..., int], path: str, flags: int, *rest: Any, dir_fd: int | None = None) -> int:
        creates = flags & os.O_CREAT and not os.access(path, os.F_OK, dir_fd=dir_fd, follow_symlinks=False)
        if creates:
            with self._held(dir_fd):
                self._trip("OPEN+")
                if flags & os.O_EXCL:
                    self._trip("SETATTR")
                fd = call(path, flags & ~os.O_DIRECT, *rest, dir_fd=dir_fd)
                self._changed(dir_fd, path)
        else:
            self._trip("GETATTR" if flags & os.O_DIRECTORY else "OPEN")
            fd = call(path, flags & ~os.O_DIRECT, *rest, dir_fd=dir_fd)
        status = os.fstat(fd)
        reads = flags & os.O_ACCMODE != os.O_WRONLY
        known = _Open(_key(status), stat.S_ISDIR(status.st_mode), bool(flags & os.O_DIRECT), reads)
        self._opened[fd] = known
        if reads and not known.directory and not known.direct:
            self._delegations.add(known.key)
        return fd

    def _changed(self, dir_fd: int | None, name: str) -> None:
        """Note that this client has made, removed or moved a name: it knows what became of it."""
        if dir_fd is not None:
            key = _key(os.fstat(dir_fd))
            with self._mutex:
                self._changes[key] += 1
                self._names.setdefault(key, set()).add(name)

    def _close(self, call: Callable[[int], None], fd: int) -> None:
        known = self._opened.pop(fd)
        self._flush(known)
        if not known.directory:
            self._trip("CLOSE")
        call(fd)

    def _flush(self, known: _Open) -> None:
        if known.unsent:
            known.unsent = False
            self._trip("WRITE")

    def _read(self, call: Callable[[int, int], bytes], fd: int, count: int) -> bytes:
        data = call(fd, count)
        self._fetch(fd, os.lseek(fd, 0, os.SEEK_CUR) - len(data), len(data))
        return data

    def _pread(self, call: Callable[[int, int, int], bytes], fd: int, count: int, offset: int) -> bytes:
        data = call(fd, count, offset)
        self._fetch(fd, offset, len(data))
        return data

    def _readinto(self, call: Callable[[int, memoryview, int], int], fd: int, buffer: memoryview, offset: int) -> int:
        count = call(fd, buffer, offset)
        self._fetch(fd, offset, count)
        return count

    def _fetch(self, fd: int, offset: int, size: int) -> None:
        known, pages = self._opened[fd], _pages(offset, size)
        if known.direct or not pages <= known.pages:
            known.pages |= pages
            self._trip("READ")

    def _write(self, call: Callable[[int, bytes], int], fd: int, data: bytes) -> int:
        self._opened[fd].unsent = True
        return call(fd, data)

    def _pwrite(self, call: Callable[[int, bytes, int], int], fd: int, data: bytes, offset: int) -> int:
        known = self._opened[fd]
        if known.direct:
            self._trip("WRITE")
            return call(fd, data, offset)
        if known.reads and offset // _PAGE_BYTES * _PAGE_BYTES < os.fstat(fd).st_size:
            self._fetch(fd, offset, len(data))
        known.unsent = True
        known.pages |= _pages(offset, len(data))
        return call(fd, data, offset)

    def _ftruncate(self, call: Callable[[int, int], None], fd: int, size: int) -> None:
        self._flush(self._opened[fd])
        self._trip("SETATTR")
        call(fd, size)

    def _fsync(self, call: Callable[[int], None], fd: int) -> None:
        self._flush(self._opened[fd])
        call(fd)

    def _stat(self, call: Callable[..., os.stat_result], name: str, *args: Any, **kwargs: Any) -> os.stat_result:
        self._look_up(name, kwargs.get("dir_fd"))
        return call(name, *args, **kwargs)

    def _access(self, call: Callable[..., bool], name: str, *args: Any, **kwargs: Any) -> bool:
        self._look_up(name, kwargs.get("dir_fd"))
        return call(name, *args, **kwargs)

    def _look_up(self, name: str, dir_fd: int | None) -> None:
        remembered = self._names.setdefault(_key(os.fstat(dir_fd)), set()) if dir_fd is not None else set()
        if name not in remembered:
            self._trip("LOOKUP")
            remembered.add(name)

    def _fstat(self, call: Callable[[int], os.stat_result], fd: int) -> os.stat_result:
        known = self._opened[fd]
        if not known.attributes:
            known.attributes = True
            self._trip("GETATTR")
        return call(fd)

    def _listdir(self, call: Callable[[int], list[str]], fd: int) -> list[str]:
        key = self._opened[fd].key
        changes, found = self._changes[key], call(fd)
        if self._listed.get(key) != changes:
            self._listed[key] = changes
            self._trip("READDIR", 1 + len(found) // _NAMES_A_READDIR)
        return found

    def _scan_until(self, call: Callable[..., bool], *args: Any) -> bool:
        self._trip("READDIR")
        return call(*args)

    def _rename(
        self,
        call: Callable[..., None],
        name: str,
        new_name: str,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
    ) -> None:
        with self._held(src_dir_fd, dst_dir_fd):
            self._return_delegation(name, src_dir_fd)
            self._trip("RENAME")
            call(name, new_name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            self._changed(src_dir_fd, name)
            self._changed(dst_dir_fd, new_name)

    def _unlink(self, call: Callable[..., None], name: str, *, dir_fd: int | None = None) -> None:
        with self._held(dir_fd):
            self._return_delegation(name, dir_fd)
            self._trip("REMOVE")
            call(name, dir_fd=dir_fd)
            self._changed(dir_fd, name)

    def _return_delegation(self, name: str, dir_fd: int | None) -> None:
        """A server that let a client cache a file's content wants that back before the file's names change."""
        try:
            key = _key(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        except FileNotFoundError:
            return
        if key in self._delegations:
            self._delegations.discard(key)
            self._trip("DELEGRETURN")

    def _link(self, call: Callable[..., None], name: str, new_name: str, **kwargs: Any) -> None:
        with self._held(kwargs.get("dst_dir_fd")):
            self._trip("LINK")
            call(name, new_name, **kwargs)
            self._changed(kwargs.get("dst_dir_fd"), new_name)

    def _mkdir(self, call: Callable[..., None], path: str, *args: Any, **kwargs: Any) -> None:
        self._trip("CREATE")
        call(path, *args, **kwargs)

    def _utime(self, call: Callable[..., None], name: str, *args: Any, **kwargs: Any) -> None:
        self._return_delegation(name, kwargs.get("dir_fd"))
        self._trip("SETATTR")
        call(name, *args, **kwargs)

    def _lock(self, call: Callable[[int], bool], fd: int) -> bool:
        self._trip("LOCK")
        if not call(fd):
            return False
        known = self._opened[fd]
        known.attributes = False
        known.pages.clear()
        return True

    def _unlock(self, call: Callable[[int], None], fd: int) -> None:
        self._flush(self._opened[fd])
        self._trip("LOCKU")
        self._trip("FREE_STATEID")
        call(fd)


def _key(status: os.stat_result) -> _Key:
    return status.st_dev, status.st_ino


def _pages(offset: int, size: int) -> set[int]:
    return set(range(offset // _PAGE_BYTES, (offset + max(size, 1) - 1) // _PAGE_BYTES + 1))
