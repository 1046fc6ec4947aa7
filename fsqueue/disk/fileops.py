"""Make file operations: no other module does.

`FileOps` is a table of the system calls that the queue uses, plus a few sequences of them that belong
together. Everything else in the package goes through an instance of it, so that a test can count, delay or
record every call, fail any of them, kill the process around the k-th one, or put a simulated filesystem in
their place (`wrapped`, `using`).

All names are relative to a directory descriptor; nothing here follows a symbolic link in the last component,
and nothing waits on a FIFO.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import stat as stat_module
import threading
import time as timing
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fsqueue.disk.mounts import mount_of
from fsqueue.errors import CorruptRefError, FsQueueError, QueueIOError, TooLongError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

T = TypeVar("T")

CALLS = (
    "open", "close", "read", "write", "pread", "readinto", "pwrite", "ftruncate", "fsync", "stat", "access", "fstat",
    "listdir", "scan_until",
    "rename", "link", "unlink", "mkdir", "utime", "lock", "unlock",
)  # fmt: skip

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_UPDATE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CHUNK = 1 << 16
REF_LIMIT_BYTES = 1 << 26
FILE_LIMIT_BYTES = REF_LIMIT_BYTES + (1 << 20)  # leaves room for the longest history


@lru_cache(maxsize=1)
def _filelock() -> ModuleType:
    """Import filelock with the first lock: that costs as much as all of this package."""
    import filelock

    return filelock


def _lock(fd: int) -> bool:
    return bool(_filelock().lock_descriptor(fd, blocking=False))


def _unlock(fd: int) -> None:
    _filelock().unlock_descriptor(fd)


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return the process's threads for file operations; nothing that runs in them waits for another of them."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(threads, "fsqueue-io")


os.register_at_fork(after_in_child=_pool.cache_clear)


def _listdir(fd: int) -> list[str]:
    return os.listdir(fd)


def _readinto(fd: int, buffer: memoryview, offset: int) -> int:
    return os.preadv(fd, [buffer], offset)


def _filesystem_type(path: str) -> str | None:
    mount = mount_of(path)
    return mount.kind if mount else None


def _room(fd: int) -> tuple[int, int]:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize, found.f_favail if found.f_files else 1 << 62


def _scan_until(fd: int, accept: Callable[[str], bool]) -> bool:
    with os.scandir(fd) as entries:
        return any(accept(entry.name) for entry in entries)


class FileOps:
    """Offer the system calls, and what else the queue asks of the operating system.

    The class attributes are the real calls. An instance may carry others; `CALLS` lists the file operations.

    Attributes:
        uncached: every read of a file that `open_uncached` has opened goes to the server.
    """

    uncached = False

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    read = staticmethod(os.read)
    write = staticmethod(os.write)
    pread = staticmethod(os.pread)
    readinto = staticmethod(_readinto)
    pwrite = staticmethod(os.pwrite)
    ftruncate = staticmethod(os.ftruncate)
    fsync = staticmethod(os.fsync)
    stat = staticmethod(os.stat)
    access = staticmethod(os.access)
    fstat = staticmethod(os.fstat)
    listdir = staticmethod(_listdir)
    scan_until = staticmethod(_scan_until)
    rename = staticmethod(os.rename)
    link = staticmethod(os.link)
    unlink = staticmethod(os.unlink)
    mkdir = staticmethod(os.mkdir)
    utime = staticmethod(os.utime)
    lock = staticmethod(_lock)
    unlock = staticmethod(_unlock)

    time = staticmethod(timing.time)
    monotonic = staticmethod(timing.monotonic)
    sleep: Callable[[float], None] = staticmethod(timing.sleep)
    random = staticmethod(random.SystemRandom().random)  # programs seed the other one alike in all their processes
    filesystem_type = staticmethod(_filesystem_type)
    room = staticmethod(_room)
    """Return how many bytes and how many inodes a filesystem, or this user's share of it, has left."""

    def each(self, work: Callable[[T], None], items: list[T], threads: int) -> None:
        """Run work on every item, so many at a time; the first error is raised after all have ended."""
        futures: list[Future[None]] = []
        if min(len(items), threads) > 1:
            with suppress(RuntimeError):  # the interpreter is shutting down, and starts no threads any more
                futures += (_pool(threads).submit(work, item) for item in items)
        for item in items[len(futures) :]:
            work(item)
        if not futures:
            return
        from concurrent.futures import wait

        try:
            wait(futures)
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            raise
        for future in futures:
            future.result()

    def sync_all(self, fds: list[int], threads: int) -> None:
        """Make the content of several files durable.

        The kernel is told first to start writing all of them, so that the fsyncs that follow share journal commits.
        """
        if len(fds) > 1 and hasattr(os, "posix_fadvise"):
            with suppress(OSError):  # advice, no more
                for fd in fds:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        self.each(self.fsync, fds, threads)

    def forget(self, fd: int) -> None:
        """Drop what this client has cached of an open file's content, as far as it takes advice."""
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close_read(self, fd: int) -> None:
        """Close a descriptor that nothing was written through: whatever the mount says of that, it is closed.

        GlusterFS says ESTALE where another mount has removed or replaced the file meanwhile.
        """
        try:  # noqa: SIM105  # the hot path cannot afford `suppress`
            self.close(fd)
        except OSError:
            pass

    def close_written(self, fd: int) -> None:
        """Close a descriptor that was written through; that the file is gone is told by whoever looks for its name.

        Raises:
            OSError: what was written may not have come to the disk.
        """
        try:
            self.close(fd)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise

    def pwrite_all(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        """Write all of data at offset, however many calls that takes."""
        done = self.pwrite(fd, data, offset)
        while done < len(data):
            done += self.pwrite(fd, data[done:], offset + done)

    def create(self, dir_fd: int, name: str, data: bytes) -> int:
        """Create a file with this content; returns its open descriptor.

        No O_EXCL: the caller's names are unique, and on NFS it costs a round trip.
        """
        fd = self.open(name, _CREATE, 0o666, dir_fd=dir_fd)
        try:
            done = self.write(fd, data) if data else 0
            while done < len(data):
                done += self.write(fd, data[done:])
        except BaseException:
            self.close_read(fd)  # the error that led here is the one to report
            raise
        return fd

    def open_to_read(self, dir_fd: int, name: str) -> int:
        """Return a descriptor on a file, which may still turn out to be a directory or a FIFO.

        Raises:
            CorruptRefError: it is a symbolic link, or a device without a driver.
        """
        try:
            return self.open_uncached(name, _READ, dir_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):
                raise CorruptRefError("not a regular file") from None
            raise

    def open_uncached(self, name: str, flags: int, dir_fd: int) -> int:
        """Return a descriptor on a file; see `without_delegations`."""
        return self.open(name, flags, 0o666, dir_fd=dir_fd)

    def is_cached_now(self, fd: int) -> bool:
        """Return whether a descriptor that refused to be read may be read now."""
        return False

    def pread_uncached(self, fd: int, count: int, offset: int) -> bytes:
        """Read from a file that `open_uncached` has opened."""
        try:
            return self.pread(fd, count, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not self.is_cached_now(fd):
                raise
        return self.pread(fd, count, offset)

    def open_folder(self, dir_fd: int, name: str) -> int:
        """Return a descriptor on a directory in a directory; NotADirectoryError where a symbolic link is there."""
        return self.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)

    def read_file(self, dir_fd: int, name: str) -> bytes:
        """Return the content of a regular file.

        Raises:
            CorruptRefError: it is a symbolic link, a directory or a device.
            TooLongError: it is larger than any ref's with its history.
        """
        fd = self.open_to_read(dir_fd, name)
        try:
            return self.read_regular(fd)
        finally:
            self.close_read(fd)

    def read_regular(self, fd: int) -> bytes:
        """Return what an open file holds, from its start.

        A small file costs one read; only where more is to come does a stat ask whether it is a regular file.
        """
        try:
            data = self.read(fd, _CHUNK)
            if len(data) < _CHUNK:
                return data
        except OSError as error:
            if error.errno == errno.EINVAL and self.is_cached_now(fd):
                return self.read_regular(fd)
            if error.errno in (errno.EISDIR, errno.EAGAIN, errno.EINVAL):
                raise CorruptRefError("not a regular file") from None
            raise
        status = self.fstat(fd)
        if not stat_module.S_ISREG(status.st_mode):
            raise CorruptRefError("not a regular file")
        if status.st_size > FILE_LIMIT_BYTES:
            raise TooLongError(f"a file of {status.st_size} bytes, at most {FILE_LIMIT_BYTES} are read")
        parts = [data]
        while parts[-1]:
            parts.append(self.read(fd, _CHUNK))
        return b"".join(parts)

    def update_in_place(self, fd: int, data: bytes, offset: int, size: int) -> None:
        """Replace the content of a file of this size from offset on."""
        self.pwrite_all(fd, data, offset)
        if offset + len(data) < size:
            self.ftruncate(fd, offset + len(data))

    def open_for_update(self, dir_fd: int, name: str) -> int:
        return self.open_uncached(name, _UPDATE, dir_fd)

    def fresh_mtime(self, dir_fd: int, name: str) -> float | None:
        """Return a file's mtime in seconds, as the server knows it; None where there is no such file."""
        status = self.fresh_status(dir_fd, name)
        return status.st_mtime if status else None

    def fresh_status(self, dir_fd: int, name: str) -> os.stat_result | None:
        """Return a file's status; None where there is no such file.

        NFS: `stat` may answer from the attribute cache, seconds old; open + fstat asks the server.
        """
        try:
            fd = self.open_uncached(name, _READ, dir_fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO):
                raise
            return self.status(dir_fd, name)
        try:
            return self.fstat(fd)
        finally:
            self.close_read(fd)

    def status(self, dir_fd: int, name: str) -> os.stat_result | None:
        """Return a file's status; None where there is no such file."""
        try:
            return self.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def is_there(self, dir_fd: int, name: str) -> bool:
        """Do as `exists`, at half the cost; an error of the filesystem reads as no."""
        return self.access(name, os.F_OK, dir_fd=dir_fd, follow_symlinks=False)

    def exists(self, dir_fd: int, name: str) -> bool:
        return self.status(dir_fd, name) is not None

    def remove(self, dir_fd: int, name: str) -> bool:
        """Unlink a file; False when it was gone already."""
        try:
            self.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            return False
        return True


class _DirectOps(FileOps):
    """Read files without keeping a copy of their content on this client (see `without_delegations`)."""

    __slots__ = ("_direct",)

    @property
    def uncached(self) -> bool:  # type: ignore[override]
        return bool(self._direct)

    def __init__(self, ops: FileOps) -> None:
        self.__dict__ = ops.__dict__
        self._direct = getattr(os, "O_DIRECT", 0)

    def open_uncached(self, name: str, flags: int, dir_fd: int) -> int:
        direct = self._direct
        try:
            return self.open(name, flags | direct, 0o666, dir_fd=dir_fd)
        except OSError as error:
            if error.errno != errno.EINVAL or not direct:
                raise
        fd = self.open(name, flags, 0o666, dir_fd=dir_fd)
        if stat_module.S_ISREG(self.fstat(fd).st_mode):  # directories and FIFOs have no direct access anywhere
            self._direct = 0
        return fd

    def is_cached_now(self, fd: int) -> bool:
        flags, direct = fcntl.fcntl(fd, fcntl.F_GETFL), getattr(os, "O_DIRECT", 0)
        if not flags & direct:
            return False
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~direct)
        self._direct = 0
        return True


def without_delegations(ops: FileOps) -> FileOps:
    """Return the same table of calls, but read and update files with O_DIRECT.

    NFS 4: whoever opens a file to read it may be promised that nobody changes it unasked (a delegation). Others'
    renames and stamps of that file wait until he has answered, or, where he is dead, until his lease on the server
    ends, 90 s later. An open with O_DIRECT asks for no such promise, and there its reads need no alignment. A mount
    that refuses it is read as ever from then on. The table is shared: what is changed in one holds in both.
    """
    if type(ops) is FileOps:
        return _DirectOps(ops)
    kind = type("_DirectOps", (_DirectOps, type(ops)), {"__slots__": ()})
    return kind(ops)  # type: ignore[no-any-return]


def wrapped(ops: FileOps, around: Callable[..., Any]) -> FileOps:
    """Return a copy of the table in which every file operation runs as ``around(name, call, *args, **kwargs)``."""
    copy = FileOps()
    copy.__dict__.update(ops.__dict__)

    def wrap(name: str) -> Callable[..., Any]:
        call = getattr(ops, name)
        return lambda *args, **kwargs: around(name, call, *args, **kwargs)

    for name in CALLS:
        setattr(copy, name, wrap(name))
    return copy


_default = FileOps()
_override = threading.local()


def current() -> FileOps:
    """Return the table that handles opened by this thread use from now on."""
    return getattr(_override, "ops", _default)


@contextmanager
def using(ops: FileOps) -> Iterator[None]:
    """Let handles that are opened in this block use another table."""
    before = current()
    _override.ops = ops
    try:
        yield
    finally:
        _override.ops = before


_CALLERS = "_raised_by_the_caller"
F = TypeVar("F", bound=Callable[..., object] | None)


def callers(call: F) -> F:
    """Return a function of the caller's whose errors are its own: `explained` lets them pass."""
    if call is None:
        return call

    def called(*args: Any) -> object:
        try:
            return call(*args)
        except OSError as error:
            setattr(error, _CALLERS, True)
            raise

    return cast(F, called)


def is_callers(error: BaseException) -> bool:
    """Return whether a function of the caller's raised it."""
    return hasattr(error, _CALLERS)


class explained:
    """Turn an OSError of a block into a QueueIOError that says what was tried, where, and what to do.

    A class, since the hot path cannot afford a generator's context manager.
    """

    __slots__ = ("_path", "_what")

    def __init__(self, what: str, path: str) -> None:
        self._what = what
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, FsQueueError) and not is_callers(error):
            raise QueueIOError(self._what, self._path, error) from error


def despite_errors(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Do the work for every item, then raise the first OSError: one bad file must not stop the others."""
    first: OSError | None = None
    for item in items:
        try:
            work(item)
        except OSError as error:
            first = first or error
    if first is not None:
        raise first


def silently_remove(ops: FileOps, dir_fd: int, names: Iterable[str]) -> None:
    """Unlink files that nobody needs; what cannot be removed is left to `fsqueue check --repair`."""
    for name in names:
        try:
            ops.unlink(name, dir_fd=dir_fd)
        except OSError:
            continue
