"""Take part in a stream as one member, and say how that ends."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from types import TracebackType
from typing import NoReturn

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import explained, silently_remove
from fsqueue.disk.publish import replace_file
from fsqueue.engine import heartbeat
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import open_root
from fsqueue.errors import MemberFailedError, MemberReplacedError
from fsqueue.format.codec import tidy
from fsqueue.log import tell
from fsqueue.stream.members import Record, Role, State, has_namesake_in, member_file
from fsqueue.stream.sigterm import SigtermHandler


class Membership:
    """Take one member's part in the stream: a context manager that says how it ended.

    Leaving the block normally closes this member's end. An exception of the work marks it failed, with its reason and
    traceback. `SystemExit`, `KeyboardInterrupt`, and the error that says that somebody else failed, are none: they
    withdraw the member, whose place is kept for a successor. A thread keeps the heartbeat, whose end shows that the
    process was killed. A forked child has no part in this: however it leaves the block, the member is still its parent.

    Args:
        release: gives back what the member leases, where it withdraws.
        sigterm: has SIGTERM run the handler that was there before, or where that was the default one, raise
            SystemExit, once; the member withdraws then, however the block is left.
        before_it: the files of those whose place it takes.
    """

    def __init__(
        self,
        handle: Handle,
        directory: Directory,
        role: Role,
        record: Record,
        release: Callable[[], object] = lambda: None,
        sigterm: SigtermHandler | None = None,
        before_it: Collection[str] = (),
    ) -> None:
        self._handle = handle
        self._directory = directory
        self.role: Role = role
        self._record = record
        self._release = release
        self._sigterm = sigterm or SigtermHandler(None)
        self._before_it = before_it
        self._is_in_block = False
        self._replaced = False
        self._is_leaving = False
        self._has_left = False
        self._ended = False
        self._beat_key: int | None = None
        try:
            with explained(f"joining as {role}", directory.path):
                self._write("open", record)
            self._beat_key = heartbeat.heartbeats.new_key()
            beat_s = record.process.heartbeat_s
            heartbeat.heartbeats.register(self._beat_key, self.beat, beat_s or 1.0, handle.awake, directory.mount())
            self._tell("joined")
        except BaseException:
            self.vanish()
            raise

    @property
    def name(self) -> str:
        return self._record.name

    def beat(self) -> None:
        """Show that this member lives; where its file is gone, a successor has taken its place.

        RACE: or this member renames it in another thread, as it closes: what became of the file is that one's to say.
        """
        if self._handle.closed or self.is_over():
            return
        stamp, file = self._handle.moves.stamp, self._file("open")
        if stamp(self._directory, file) or self.is_over():
            return
        self._directory.refresh()  # NFS: the file may be remembered as missing from before it was made
        if not stamp(self._directory, file) and not self._is_leaving and not self.is_over():
            self._replaced = True
            self._end()

    def raise_if_replaced(self) -> None:
        """Raise a MemberReplacedError where a successor has taken this member's place."""
        if self._replaced and self._record.process.pid == os.getpid():
            raise MemberReplacedError(self._handle.layout.path, self.role, self.name)

    def close(self) -> None:
        """Leave, having produced, or consumed, all there is for this member.

        Raises:
            MemberReplacedError: a successor has taken its place, so that it was not this one to say so; raised once.
        """
        if not self.is_over():
            with explained("leaving", self._directory.path), self._opened() as directory:
                self._replaced = not self._has_closed_in(directory)
            self._end()
        if not self._has_left:
            self._leaves()
            self.raise_if_replaced()
            self._tell("closed")

    def _leaves(self) -> None:
        """Note that it has said how its part ends; in its block, SIGTERM still has the handler up to the end."""
        self._has_left = True
        if not self._is_in_block:
            self._sigterm.restore()

    def _has_closed_in(self, directory: Directory) -> bool:
        """Make the member's file say that it closed; False where that file is gone.

        NFS: a rename that was made may be answered by ENOENT, where the request was sent again.
        """
        self._is_leaving = True
        try:
            fd = directory.fd
            self._handle.ops.rename(self._file("open"), self._file("closed"), src_dir_fd=fd, dst_dir_fd=fd)
        except FileNotFoundError:
            directory.refresh()
            return self._file("closed") in directory.listing()
        except BaseException:
            self._is_leaving = False
            raise
        return True

    def withdraw(self, reason: str = "withdrew") -> None:
        """Leave before the end: leases go back without counting an attempt, and the place is kept for a successor.

        The others wait for that one, unless this member is required.
        """
        self._leaves()
        if self.is_over():
            return
        try:
            if not self._handle.closed:
                self._release()
        finally:
            record = msgspec.structs.replace(self._record, reason=tidy(reason))
            self._replace_by("withdrawn", record, "withdrawing from")

    def fail(self, reason: str, trace: str | None = None) -> None:
        """Mark this member failed: the other side stops with an error that carries the reason.

        CRASH: between the two steps the member is both open and failed, and failed counts.
        """
        self._leaves()
        if self.is_over():
            return
        record = msgspec.structs.replace(self._record, reason=tidy(reason), traceback=tidy(trace) if trace else None)
        self._replace_by("failed", record, "marking a failure in")

    def _replace_by(self, state: State, record: Record, what: str) -> None:
        """Show another state; a member whose place a successor has taken leaves no mark of its own any more.

        RACE: the successor may take the place between the look and the mark. It looks for such a mark once it has
        joined, and this member looks for the successor once it has made the mark: one of them sees the other.
        """
        with explained(what, self._directory.path), self._opened() as directory:
            directory.refresh()
            if not self._handle.ops.exists(directory.fd, self._file("open")):
                self._replaced = True
                self._end()
                return
            self._tell(f"{state}: {record.reason}")
            if directory is self._directory:
                self._write(state, record)
            else:
                data = msgspec.json.encode(record) + b"\n"
                replace_file(self._handle.ops, directory, self._file(state), data, self._handle.durable)
            self._remove_from(directory)
            if self._has_successor(directory):
                silently_remove(self._handle.ops, directory.fd, [self._file(state)])

    def _has_successor(self, directory: Directory) -> bool:
        listing = directory.listing()
        return any(
            name not in self._before_it and has_namesake_in(directory, name, self.role, self._record)
            for name in listing
        )

    @property
    def file(self) -> str:
        """Return the name of its file while it has not left."""
        return self._file("open")

    @property
    def place(self) -> tuple[Role, str]:
        return self.role, self.name

    @property
    def has_left(self) -> bool:
        """True where it has said how its part ended, or has heard that it was replaced, or has no part."""
        return self._has_left or (self.is_over() and not self._replaced)

    def is_over(self) -> bool:
        """Tell whether this member has left, or belongs to the process that this one was forked from."""
        return self._ended or self._record.process.pid != os.getpid()

    def _tell(self, what: str) -> None:
        tell(__name__, "info", self._handle.layout.path, f"{self.role} %s {what}", self.name)

    def vanish(self) -> None:
        """Be a member no longer, as if this one had never joined."""
        self._leaves()
        self._remove_from(self._directory)

    def _remove_from(self, directory: Directory) -> None:
        silently_remove(self._handle.ops, directory.fd, [self._file("open")])
        self._end()

    @contextmanager
    def _opened(self) -> Iterator[Directory]:
        """Lend the stream's directory, also where the queue object was closed before its members left.

        A handler of SIGTERM closes the queue in the midst of a block, for instance; the others have to learn how it
        ended all the same.
        """
        if not self._handle.closed:
            yield self._directory
            return
        layout = self._handle.layout
        root, _ = open_root(layout.ops, layout.path, layout.settings)
        with closing(root), closing(Directory(layout.ops, self._directory.path, root)) as directory:
            yield directory

    def _write(self, state: State, record: Record) -> None:
        takes_out = self.role != "producer"  # whoever takes refs out of the queue is given room to
        data = msgspec.json.encode(record) + b"\n"
        self._handle.moves.write(data, self._directory, self._file(state), vital=takes_out)

    def _end(self) -> None:
        if self._beat_key is not None:
            heartbeat.heartbeats.unregister(self._beat_key)
        self._ended = True

    def _file(self, state: State) -> str:
        return member_file(self.role, self._record, state)

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self.role} {self.name!r} of {self._directory.path} cannot be copied or pickled: join the stream under "
            "another name where the copy would be used"
        )

    def __enter__(self) -> Membership:
        self._is_in_block = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(error)
        except MemberReplacedError:
            raise
        except OSError as failed:
            if error is None:
                raise
            self._note(error, failed)
        except BaseException:
            with suppress(OSError):
                self._leave(error)  # nobody else will: an interrupt here would leave a member that lives for ever
            raise
        finally:
            self._sigterm.restore()

    def _note(self, error: BaseException, failed: OSError) -> None:
        """Say with what ended the block that the others were not told, on a disk that went read-only for instance."""
        text = f"{self.role} {self.name!r} could not say how it ended, so that the others wait for it: {failed}"
        if hasattr(error, "add_note"):  # Python 3.11
            error.add_note(text)
        tell(__name__, "warning", self._handle.layout.path, "%s", text)

    def _leave(self, error: BaseException | None) -> None:
        if error is not None and not is_no_failure(error):
            self.fail(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
        elif error is not None or self._sigterm.told_to_stop:
            self.withdraw(_why(error))
        else:
            self.close()


def is_no_failure(error: BaseException) -> bool:
    """Tell whether an exception ends a member's part without a failure of its own: it was told to stop, or had to."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (MemberFailedError, MemberReplacedError)):
            return True
        seen = seen.__cause__
    return isinstance(error, (SystemExit, KeyboardInterrupt, GeneratorExit))


def _why(error: BaseException | None) -> str:
    if error is None:
        return "withdrew after SIGTERM"
    return f"withdrew: {type(error).__name__}: {error}" if str(error) else f"withdrew: {type(error).__name__}"
