"""Define every error that fsqueue raises on purpose.

Each is an `FsQueueError` and also the built-in that fits, so that callers who know only `ValueError` or
`OSError` catch it too. Each carries its facts as attributes and survives pickling. The text says what is
wrong, where, what was found and expected, and what to do about it.
"""

from __future__ import annotations

import errno as _errno
import os
from collections.abc import Collection
from typing import Any, ClassVar

_SHOWN = 60
_RUNS = "alive: the process runs on this host"
_DOUBTED = "not known to be dead from this host"
DISTRIBUTION = "fsqueue-shared"  # on PyPI, `fsqueue` is somebody else's package


def install_command(extra: str) -> str:
    """Return what to type to install one of this distribution's extras."""
    return f"pip install '{DISTRIBUTION}[{extra}]' (in a checkout: pip install '.[{extra}]')"


class FsQueueError(Exception):
    """The base of all errors of this package."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[FsQueueError], args: tuple[Any, ...], facts: dict[str, Any]) -> FsQueueError:
    error = OSError.__new__(cls, *args) if issubclass(cls, OSError) else cls.__new__(cls, *args)
    if isinstance(error, OSError):
        OSError.__init__(error, *args)  # which reads them here where cls has an __init__ of its own
    error.__dict__.update(facts)
    return error


class InvalidRefError(FsQueueError, ValueError):
    """A ref that put refuses: nothing of the batch was written.

    Attributes:
        where: the path inside the ref, such as ``<root>.metadata['x'][3]``.
        sample_id: the ref's, where it has one that is known.
        index: its place among the refs that were put, from 0, where it is known.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.sample_id: str | None = None
        self.index: int | None = None

    def locate(self, index: int, sample_id: object) -> None:
        """Add which ref of a batch it is."""
        self.index = index
        self.sample_id = sample_id if isinstance(sample_id, str) else None
        which = f"refs[{index}]" if self.sample_id is None else f"refs[{index}], {self.sample_id!r}"
        self.args = (f"{self.args[0]} (in {which})",)


class NameTooLongError(InvalidRefError, OSError):
    """A ref's files would have names that the queue's mount does not take; nothing of the batch was written.

    Attributes:
        path: the queue's directory.
        limit: how long a name may be there, in bytes.
        longest_id: how long a sample_id may be there, in bytes once percent-encoded.
        errno: ENAMETOOLONG.
    """

    errno = _errno.ENAMETOOLONG

    def __init__(self, path: str, sample_id: str, limit: int, longest_id: int) -> None:
        fits = f"sample_ids of up to {longest_id} bytes fit" if longest_id > 0 else "no sample_id fits"
        super().__init__(
            "<root>.sample_id",
            f"{sample_id!r} is too long for queue {path}: this mount takes names of up to {limit} bytes, so {fits} "
            "(percent-encoded; the name of a lease has 95 more): choose shorter ids, or keep the queue on another "
            "filesystem",
        )
        self.path = path
        self.sample_id = sample_id
        self.limit = limit
        self.longest_id = longest_id


class CaseCollisionError(InvalidRefError):
    """A ref's id differs in case only from another's, on a filesystem that ignores case; nothing of the batch was put.

    Attributes:
        path: the queue's directory.
        other: the other id.
        state: where the other ref is, "in the same put" or in the queue.
    """

    def __init__(self, path: str, sample_id: str, other: str, state: str) -> None:
        super().__init__(
            "<root>.sample_id",
            f"queue {path} lies on a filesystem that ignores case: {sample_id!r} and {other!r} ({state}) would be one "
            "file: use ids that differ by more than case, or keep the queue on another filesystem",
        )
        self.path = path
        self.sample_id = sample_id
        self.other = other
        self.state = state


class TensorInRefError(InvalidRefError, TypeError):
    """A ref carries a tensor or an array; refs are metadata only.

    Attributes:
        type_name: the offending value's type.
    """

    def __init__(self, where: str, type_name: str) -> None:
        super().__init__(
            where,
            f"a {type_name} does not belong in a sample ref, which is metadata only: "
            "put the tensor into the feature store and its key into the ref",
        )
        self.type_name = type_name


class CorruptRefError(FsQueueError, ValueError):
    """A file does not hold a ref of the expected type.

    Attributes:
        reason: what the decoder found.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"this is no ref: {reason}")
        self.reason = reason


class UnreadableRefError(CorruptRefError):
    """A file holds a ref that the handle's class does not take: another reader may.

    Attributes:
        sample_id: the ref's.
        ref_type: the class.
        reason: what the decoder, or the class itself, says.
    """

    def __init__(self, sample_id: str, ref_type: str, reason: str) -> None:
        FsQueueError.__init__(self, f"the ref {sample_id!r} cannot be read as a {ref_type}: {reason}")
        self.sample_id = sample_id
        self.ref_type = ref_type
        self.reason = reason


class TooLongError(CorruptRefError):
    """A file is longer than any ref's: its bytes were not read, and stay as they are."""


class InvalidArgumentError(FsQueueError, TypeError, ValueError):
    """An argument is of a kind that cannot be meant.

    Attributes:
        call: what was called.
        expected: what it takes.
    """

    def __init__(self, call: str, expected: str, found: object, advice: str = "") -> None:
        shown = repr(found) if len(repr(found)) <= _SHOWN else f"{repr(found)[:_SHOWN]}..."
        super().__init__(f"{call} expected {expected}, found {shown}, a {type(found).__name__}{advice}")
        self.call = call
        self.expected = expected


class QueueConfigError(FsQueueError, ValueError):
    """A handle's argument contradicts what the queue's fsqueue.json says, or is not valid by itself.

    Attributes:
        path: the queue's directory.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"queue {path} {problem}")
        self.path = path


class NotAQueueError(QueueConfigError):
    """The directory is no queue and is not empty, so it is not made one."""


class ReadOnlyError(QueueConfigError):
    """A call would write into a queue that was opened with ``read_only=True``; nothing was done.

    Attributes:
        call: what was called.
    """

    def __init__(self, path: str, call: str) -> None:
        super().__init__(path, f"was opened with read_only=True, and {call} writes: open it without, or leave that out")
        self.call = call


class QueueReplacedError(QueueConfigError):
    """The path leads to another queue, where a handle has to reach the one that it was opened on.

    Attributes:
        opened: the queue_id of that one; None where it has none.
        found: that of the queue which lies there now.
    """

    def __init__(self, path: str, opened: str | None, found: str | None) -> None:
        super().__init__(
            path,
            f"was replaced: this handle belongs to the queue with queue_id {opened}, and the one that lies there now "
            f"has {found}; find out who moved or removed the former, and open a new handle on the one that is meant",
        )
        self.opened = opened
        self.found = found


class UnsupportedFormatError(NotAQueueError):
    """The queue was written in a format that this version does not read.

    Attributes:
        found: the format number in fsqueue.json.
        reads: the format number that this version reads.
    """

    def __init__(self, path: str, found: object, reads: int) -> None:
        older = isinstance(found, int) and found < reads
        then = (
            "drain it with the fsqueue that made it, and put what is left into a new one"
            if older
            else "upgrade fsqueue"
        )
        super().__init__(path, f"has format {found!r}, this fsqueue reads {reads}: {then}")
        self.found = found
        self.reads = reads


class RefTypeError(QueueConfigError, TypeError):
    """A handle would put or get refs as a class that does not fit those in the queue; none was touched.

    Attributes:
        stored: the name of the class that the queue's type.json describes.
        given: the name of the handle's.
    """

    def __init__(self, path: str, stored: str, given: str, why: str) -> None:
        super().__init__(
            path,
            f"holds refs of {stored}, which {given} does not fit: {why}. Open it with ref_type= set to a class that "
            "fits, or give new fields a default; once nothing of the former class is left in it, remove its type.json",
        )
        self.stored = stored
        self.given = given


class QueueClosedError(FsQueueError, ValueError):
    """A handle, or a view, was used after close().

    Attributes:
        path: the queue's directory.
    """

    def __init__(self, path: str, what: str = "handle") -> None:
        super().__init__(f"this {what} of queue {path} is closed: open another one")
        self.path = path


class OtherProcessError(FsQueueError, RuntimeError):
    """A part in a stream, or a loader's iteration, was used in a forked child of the process that has it.

    Attributes:
        pid: of that process.
    """

    def __init__(self, what: str, pid: int) -> None:
        super().__init__(f"{what} belongs to process {pid}, not to a fork of it: make one in the process that uses it")
        self.pid = pid


class QueueIOError(FsQueueError, OSError):
    """The filesystem refused an operation; the queue is unchanged, or one repeated call away from done.

    Attributes:
        path: the file or directory that was worked on.
        errno: the system's error number, as on any OSError.
    """

    def __init__(self, what: str, path: str, cause: OSError, advice: str | None = None) -> None:
        code = cause.errno or 0
        symbol = _errno.errorcode.get(code, "unknown error")
        files = [repr(name) for name in (cause.filename, cause.filename2) if isinstance(name, str) and name != path]
        at = f" at {' -> '.join(files)}" if files else ""
        OSError.__init__(
            self, code, f"{what} {path} failed{at}: {symbol} ({os.strerror(code)}){advice or _ADVICE.get(code, '')}"
        )
        self.path = path

    def __str__(self) -> str:
        return str(self.args[1]) if len(self.args) > 1 else str(self.args[0])


class LockUnsupportedError(QueueIOError):
    """The filesystem does not support the lock that the queue is configured with."""

    advice: ClassVar[str] = (
        ": this mount has no flock; mount Lustre with -o flock, NFS without nolock, "
        "or create the queue with lock='lease' or lock='none'"
    )

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__("locking", path, cause, self.advice)


class LockTimeoutError(FsQueueError, TimeoutError):
    """The lock could not be had, and the process that holds it is alive.

    Attributes:
        path: the lock file.
        waited_s: for how long it was tried.
    """

    text: ClassVar[str] = (
        "lock {path} was held, and its lease refreshed, by another process for {waited_s:.0f} s: "
        "find that process (the file names it), then call again"
    )

    def __init__(self, path: str, waited_s: float) -> None:
        super().__init__(self.text.format(path=path, waited_s=waited_s))
        self.path = path
        self.waited_s = waited_s


class LeasesHeldError(FsQueueError, RuntimeError):
    """A rewind was refused because consumers still hold leases.

    Attributes:
        path: the queue's directory.
        owners: who holds them.
        alive: those of them whose processes run on this host; of the others it is not known that they are dead.
    """

    def __init__(self, path: str, owners: list[str], alive: Collection[str] = ()) -> None:
        doubted = [owner for owner in owners if owner not in alive]
        who = [
            f"{', '.join(found[:5])} ({what})" for found, what in ((list(alive), _RUNS), (doubted, _DOUBTED)) if found
        ]
        super().__init__(
            f"queue {path} is not rewound while others hold leases: {'; '.join(who)}. Stop them first, wait until "
            "their leases expire, take these away with `fsqueue release --owner`, or force it"
        )
        self.path = path
        self.owners = owners
        self.alive = list(alive)


class MemberFailedError(FsQueueError, RuntimeError):
    """A producer or consumer of the stream failed or died: what the others wait for will not come.

    Attributes:
        member: its role, name, process, and when it was last seen.
        reason: its own words.
        traceback: of the exception that ended it, where there was one.
    """

    def __init__(self, member: str, reason: str, traceback: str | None) -> None:
        super().__init__(
            f"{member} failed: {reason}; start it again under the same name, or remove its file in stream/"
        )
        self.member = member
        self.reason = reason
        self.traceback = traceback


class MemberMissingError(MemberFailedError):
    """A member of the stream is gone or has withdrawn, and the others cannot go on, or have waited, without it.

    Attributes:
        waited_s: for how long it was awaited, seconds; None where it is required, and nobody waits.
        absent: how many expected members never came; `member` says then who did. 0: it is one that came.
    """

    def __init__(self, member: str, reason: str, waited_s: float | None, absent: int = 0) -> None:
        waited = "it is required" if waited_s is None else f"it was awaited for {waited_s:.0f} s"
        advice = (
            "make it replaceable for the others to wait"
            if waited_s is None
            else "to wait longer, configure_stream(await_s=...)"
        )
        text = f"{member} is missing: {reason}; {waited}. Start it again under the same name; {advice}"
        if absent:
            text = f"{member}; {reason}. Start what is missing, or expect fewer; {advice}"
        FsQueueError.__init__(self, text)
        self.member = member
        self.reason = reason
        self.traceback = None
        self.waited_s = waited_s
        self.absent = absent

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.member, self.reason, self.waited_s, self.absent)


class MemberReplacedError(FsQueueError, RuntimeError):
    """A successor has taken this member's place, while its process was silent for too long."""

    def __init__(self, path: str, role: str, name: str) -> None:
        super().__init__(
            f"queue {path}: the place of this process as {role} {name!r} was taken while it gave no sign of life, or "
            "its file in stream/ was removed: end this process, the other one goes on"
        )
        self.path, self.role, self.name = path, role, name

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.role, self.name)


class StreamEndedError(FsQueueError, RuntimeError):
    """The other side has left the stream."""


class StreamStalledError(FsQueueError, TimeoutError):
    """Nothing has come, or no room was made, for too long."""


_UNSUPPORTED = (
    ": this filesystem, or a sandbox around the process, does not support that; `fsqueue doctor` tries what is needed"
)
_ADVICE = {
    _errno.ENOSPC: ": free space on this filesystem (of a queue by `fsqueue purge` or `pack`), then call again",
    _errno.EDQUOT: ": the quota is used up; free space or inodes, then call again",
    _errno.EROFS: ": the filesystem is mounted read-only",
    _errno.EACCES: ": check the owner and mode; users who share a queue need a common group, umask 002 and setgid",
    _errno.EPERM: ": check the owner and mode; users who share a queue need a common group, umask 002 and setgid",
    _errno.EMFILE: ": too many open files in this process; raise `ulimit -n`",
    _errno.ENFILE: ": too many open files on this host",
    _errno.ENOMEM: ": out of memory, or of memory mappings (`sysctl vm.max_map_count`)",
    _errno.ESTALE: ": the server no longer knows this file; call again, and remount if it stays",
    _errno.EIO: ": the storage reported an error; check the server, then call again",
    _errno.ENOENT: ": the queue's directory was moved or removed while it was open",
    _errno.EISDIR: ": a directory lies where a ref's file belongs; move it away",
    _errno.EXDEV: ": this mount did not move a file between two of its directories; call again, and let `fsqueue "
    "doctor` try what it can do",
    _errno.ENOSYS: _UNSUPPORTED,
    _errno.EOPNOTSUPP: _UNSUPPORTED,
}
