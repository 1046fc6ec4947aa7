"""Take part in a stream as one member: show it by a file, and say how it ends.

    stream/<role>@<name>-<owner>@<state>.json     role: producer or consumer; state: open, closed or failed

A member's file is its record; its mtime is the member's heartbeat. Leaving is one rename from open to closed; a
member that fails writes its reason into a failed file first and removes the open one then.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from types import TracebackType
from typing import Literal, NamedTuple, NoReturn

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, explained, silently_remove
from fsqueue.disk.publish import replace_file
from fsqueue.engine import heartbeat
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import open_root, read_json
from fsqueue.engine.owners import OwnerRecord
from fsqueue.format import names
from fsqueue.format.codec import tidy

Role = Literal["producer", "consumer"]
State = Literal["open", "closed", "failed"]

BEAT_S = 5.0
DEAD_AFTER_S = 30.0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a member's file says.

    Attributes:
        name: what the user called it; a restarted member takes its dead namesake's place.
        expected: how many members of this role the stream has in all; 0 where nobody said.
        reason, traceback: of a failed member.
    """

    name: str
    process: OwnerRecord
    expected: int = 0
    reason: str | None = None
    traceback: str | None = None


class Member(NamedTuple):
    """Describe a member of the stream as its file shows it.

    Attributes:
        age_s: seconds since its last heartbeat, by the filesystem's clock.
        beat_at: when that was.
    """

    role: Role
    state: State
    record: Record
    age_s: float
    beat_at: float

    @property
    def is_dead(self) -> bool:
        """True where it is open, but gone or silent for `DEAD_AFTER_S` seconds; a restart has had that long."""
        if self.state != "open" or self.age_s <= DEAD_AFTER_S:
            return False
        return self.record.process.liveness() != "alive"

    @property
    def is_merely_silent(self) -> bool:
        """True where nothing but its silence says that it is dead."""
        return self.state == "open" and self.age_s > DEAD_AFTER_S and self.record.process.liveness() == "unknown"

    @property
    def keeps_its_name(self) -> bool:
        """True where it is open and not known to be gone: no namesake may take its place yet."""
        return self.state == "open" and self.record.process.liveness() != "dead" and self.age_s <= DEAD_AFTER_S

    def describe(self) -> str:
        process = self.record.process
        return (
            f"{self.role} {self.record.name!r} (pid {process.pid} on {process.host}, last seen {self.age_s:.0f} s ago)"
        )


class Membership:
    """Take one member's part in the stream: a context manager that says how it ended.

    Leaving the block normally closes this member's end, and an exception marks it failed with its reason and
    traceback. A thread keeps the heartbeat, whose end shows that the process was killed. A forked child has no part in
    this: however it leaves the block, the member is still its parent.
    """

    def __init__(self, handle: Handle, directory: Directory, role: Role, record: Record) -> None:
        self._handle = handle
        self._directory = directory
        self._role: Role = role
        self._record = record
        self._ended = False
        self._beat_key: int | None = None
        try:
            with explained(f"joining as {role}", directory.path):
                self._write("open", record)
            self._beat_key = heartbeat.heartbeats.new_key()
            heartbeat.heartbeats.register(self._beat_key, self.beat, BEAT_S, handle.awake, directory.mount())
        except BaseException:
            self.withdraw()
            raise

    @property
    def name(self) -> str:
        return self._record.name

    def beat(self) -> None:
        """Show that this member lives."""
        if not self._handle.closed:
            self._handle.clock.stamp(self._directory, self._file("open"))

    def close(self) -> None:
        """Leave, having produced, or consumed, all there is for this member."""
        if self._is_over():
            return
        with explained("leaving", self._directory.path), self._opened() as directory, suppress(FileNotFoundError):
            fd = directory.fd
            self._handle.ops.rename(self._file("open"), self._file("closed"), src_dir_fd=fd, dst_dir_fd=fd)
        self._end()

    def fail(self, reason: str, trace: str | None = None) -> None:
        """Mark this member failed: the other side stops with an error that carries the reason.

        CRASH: between the two steps the member is both open and failed, and failed counts.
        """
        if self._is_over():
            return
        record = msgspec.structs.replace(self._record, reason=tidy(reason), traceback=tidy(trace) if trace else None)
        with explained("marking a failure in", self._directory.path), self._opened() as directory:
            if directory is self._directory:
                self._write("failed", record)
            else:
                data = msgspec.json.encode(record) + b"\n"
                replace_file(self._handle.ops, directory, self._file("failed"), data, self._handle.durable)
            self._remove_from(directory)

    def _is_over(self) -> bool:
        return self._ended or self._record.process.pid != os.getpid()

    def withdraw(self) -> None:
        """Be a member no longer, as if this one had never joined."""
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
        data, write = msgspec.json.encode(record) + b"\n", self._handle.moves.write
        if self._role == "producer":
            write(data, self._directory, self._file(state))
        else:  # whoever takes refs out of the queue is given room to
            self._handle.layout.reserve.retrying(lambda: write(data, self._directory, self._file(state)))

    def _end(self) -> None:
        if self._beat_key is not None:
            heartbeat.heartbeats.unregister(self._beat_key)
        self._ended = True

    def _file(self, state: State) -> str:
        return f"{self._role}@{names.owner_name(self.name)}-{self._record.process.owner}@{state}{names.SUFFIX}"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self._role} {self.name!r} of {self._directory.path} cannot be copied or pickled: join the stream under "
            "another name where the copy would be used"
        )

    def __enter__(self) -> Membership:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._leave(error)
        except OSError:
            raise
        except BaseException:
            with suppress(OSError):
                self._leave(error)  # nobody else will: an interrupt here would leave a member that lives for ever
            raise

    def _leave(self, error: BaseException | None) -> None:
        if error is None:
            self.close()
        else:
            self.fail(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


def parse_member(name: str) -> tuple[Role, State] | None:
    """Return role and state in a member's file name; None for other names."""
    parts = name.removesuffix(names.SUFFIX).split("@")
    if not name.endswith(names.SUFFIX) or len(parts) != 3:
        return None
    role, _, state = parts
    if role not in ("producer", "consumer") or state not in ("open", "closed", "failed"):
        return None
    return role, state  # type: ignore[return-value]


def read_members(ops: FileOps, directory: Directory, listing: list[str], now: float) -> Iterator[tuple[str, Member]]:
    """Yield each member that a listing of stream/ names, with its file, unless it is gone or holds no record."""
    for name in listing:
        parsed = parse_member(name)
        if parsed is None:
            continue
        beat = ops.fresh_mtime(directory.fd, name)
        record = read_json(ops, directory, name, Record)
        if record is not None:
            yield name, Member(*parsed, record, now - (beat or 0.0), beat or 0.0)
