"""`FileMetadataStore`: the ledger in a directory, shared by processes and nodes."""

from __future__ import annotations

import errno
import operator
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, Concatenate, Generic, Literal, NoReturn, ParamSpec, TypeVar, cast

from fsqueue.control.errors import LedgerClosedError, LedgerDamagedError, LedgerError
from fsqueue.control.ledger.entries import Ack
from fsqueue.control.ledger.files import Settings
from fsqueue.control.ledger.index import NO_STEP, UNACKED
from fsqueue.control.ledger.log import Log
from fsqueue.control.ledger.metadata_store import Marker, MetadataStore, weight_of
from fsqueue.control.ledger.noted import OnFiles, note_ledger
from fsqueue.control.ledger.replica import Replica
from fsqueue.disk import fileops
from fsqueue.disk.directory import UNREACHABLE
from fsqueue.disk.fileops import explained
from fsqueue.disk.mutex import Mutex
from fsqueue.disk.publish import absolute
from fsqueue.engine import arguments
from fsqueue.errors import CorruptRefError, FsQueueError
from fsqueue.format.codec import Codec
from fsqueue.records import SampleRef, id_of_ref

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Store = TypeVar("Store", bound="FileMetadataStore[Any]")

LOCK_TIMEOUT_S = 120.0
_STEP_LIMIT = 2**63


def _lets_go(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """Make a method let go of the ledger's locks wherever an exception ends it."""

    @wraps(method)
    def guarded(store: Store, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(store, *args, **kwargs)
        except BaseException as error:
            store._drop_leftovers()
            if isinstance(error, OSError) and error.errno in UNREACHABLE:
                store._drop_out_of_reach()
            raise

    return guarded


class FileMetadataStore(MetadataStore[R], Generic[R]):
    """Keep a ledger in a directory of its own, durably; several processes may have it open.

    What was found true stays in memory: `is_committed` of a known id costs no file operation, everything else one
    look at what others have written since. An object may be used by several threads, and by a forked child.

    Args:
        path: the ledger's directory; created where it is missing or empty.
        ref_type: the dataclass that is committed and given back.
        durable: whether a transaction is fsynced before the call returns.
        lock_timeout_s: how long to wait for other processes' transactions. A node that dies in the middle of one
            blocks the ledger until the file server frees its lock.

    Raises:
        InvalidArgumentError: an argument is of a kind that cannot be meant.
        LedgerFormatError: the directory is no ledger, or one of another format.
        LedgerLockUnsupportedError: the mount has no flock.
        QueueIOError: the filesystem refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ref_type: type[R] = cast(Any, SampleRef),  # noqa: B008
        durable: bool = True,
        lock_timeout_s: float = LOCK_TIMEOUT_S,
    ) -> None:
        arguments.flag("durable", durable)
        arguments.wait("lock_timeout_s", lock_timeout_s, float("inf"))
        self.path = absolute(path)
        self._ops = fileops.current()
        self._codec: Codec[R] = Codec(ref_type)
        self._durable = durable
        self._lock_timeout_s = lock_timeout_s
        self._mutex = Mutex()
        self._closed = False
        self._underway = False
        self._settings: Settings | None = None
        with explained("opening ledger", self.path):
            self._replica: Replica | None = self._open()
        try:
            self.refresh()
            self._here().save_if_worthwhile()
        except BaseException:
            self.close()
            raise
        _live.add(self)

    def _open(self) -> Replica:
        replica = Replica(self._ops, self.path, self._durable, self._lock_timeout_s, self._settings)
        self._settings = replica.settings
        return replica

    @_lets_go
    def refresh(self) -> None:
        """Read what others have written since."""
        with self._held("commits"):
            pass
        with self._held("acks"):
            pass

    @property
    def ref_type(self) -> type[R]:
        """Return the class that is committed and given back."""
        return self._codec.ref_type

    # -- commits ------------------------------------------------------------------------------------------------

    @_lets_go
    def commit_samples(self, refs: Iterable[R]) -> list[bool]:
        """Record samples in one transaction: one write, one fsync, however many there are.

        Raises:
            InvalidRefError: a ref holds a tensor or a value that JSON would change; nothing was written.
            QueueIOError: the filesystem refused; the ledger is unchanged.
        """
        wanted = [(sample_id, ref) for ref, sample_id in arguments.with_ids("commit_samples", refs)]
        encoded: dict[str, tuple[bytes, int]] = {}
        for sample_id, ref in wanted:
            if sample_id not in encoded:
                encoded[sample_id] = (self._encode(ref), weight_of(ref))
        with self._held("commits", "writing") as replica:
            known = replica.index.numbers
            fresh = {sample_id: found for sample_id, found in encoded.items() if sample_id not in known}
            if fresh:
                replica.commit(list(fresh), [data for data, _ in fresh.values()], [n for _, n in fresh.values()])
            else:
                replica.commits.confirm()
        return [fresh.pop(sample_id, None) is not None for sample_id, _ in wanted]

    def _encode(self, ref: R) -> bytes:
        # The codec begins bookkeeping on a line of its own; a record is one line.
        return self._codec.encode(ref)[:-1].replace(b"\n", b" ")

    @_lets_go
    def is_committed(self, sample_id: str) -> bool:
        with self._mutex:
            if sample_id in self._here().index.numbers:
                return True
            with self._held("commits") as replica:
                return sample_id in replica.index.numbers

    @_lets_go
    def get_committed(self, sample_id: str) -> R | None:
        """Read a ref from the ledger.

        Raises:
            LedgerDamagedError: what is read back is not that ref.
        """
        with self._mutex:
            if not self.is_committed(sample_id):
                return None
            with explained("reading ledger", self.path):
                place = self._read_ref(sample_id)
        return self._decode_as(sample_id, *place)

    @_lets_go
    def files_of(self, sample_ids: Iterable[str]) -> dict[str, bytes]:
        """Read committed refs as the files that a queue of the same class, without a codec, keeps them in; by id.

        Raises:
            LedgerDamagedError: what is read back is not one of them.
        """
        with self._mutex, explained("reading ledger", self.path):
            places = {sample_id: self._read_ref(sample_id) for sample_id in sample_ids}
        for sample_id, place in places.items():
            self._decode_as(sample_id, *place)
        return {sample_id: _as_file(data) for sample_id, (_, data) in places.items()}

    def _decode_as(self, sample_id: str, offset: int, data: bytes) -> R:
        try:
            ref = self._codec.decode(_as_file(data))
        except CorruptRefError:
            ref = None
        if ref is None or id_of_ref(ref) != sample_id:
            raise LedgerDamagedError(self.path, "commits", offset, f"this is not the ref of {sample_id!r}")
        return ref

    def _read_ref(self, sample_id: str) -> tuple[int, bytes]:
        """Return a committed ref's offset and bytes."""
        commits = self._here().commits
        try:
            return self._read_place(sample_id)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        # NFS: another node has replaced the file; everything is read anew.
        commits.close()
        return self._read_place(sample_id)

    def _read_place(self, sample_id: str) -> tuple[int, bytes]:
        commits, index = self._here().commits, self._here().index
        if commits.fd < 0:
            self.refresh()
        offset, size_bytes = index.place(index.numbers[sample_id])
        return offset, commits.read(size_bytes, offset)

    @_lets_go
    def committed_count(self) -> int:
        with self._held("commits") as replica:
            return len(replica.index.numbers)

    @_lets_go
    def all_committed_ids(self) -> list[str]:
        """Return every committed id, in commit order; what is returned is durable."""
        with self._held("commits") as replica:
            replica.commits.confirm()
            return list(replica.index.numbers)

    # -- acknowledgements ---------------------------------------------------------------------------------------

    @_lets_go
    def record_train_ack(
        self, sample_ids: Iterable[str], *, global_step: int | None = None, optimizer_durable: bool = False
    ) -> None:
        """Record ids, step and marker in one transaction: one write, one fsync.

        Raises:
            QueueIOError: the filesystem refused; the ledger is unchanged.
        """
        ids = list(dict.fromkeys(arguments.sample_ids("record_train_ack", sample_ids)))
        if global_step is not None:
            global_step = self._step("global_step", global_step)
        with self._held("acks", "writing") as replica:
            replica.acknowledge(Ack(ids, global_step, bool(optimizer_durable)))

    @_lets_go
    def forget_acks(self, *, after_step: int) -> list[str]:
        """Take back every acknowledgement of a later step, as one record; returns the ids, in commit order."""
        after_step = self._step("after_step", after_step)
        with self._held("commits"):
            pass
        with self._held("acks", "writing") as replica:
            return replica.acknowledge(Ack(forget_after_step=after_step))

    def _step(self, name: str, step: object) -> int:
        """Return an optimizer step as the log keeps it."""
        try:
            found = operator.index(step)  # type: ignore[arg-type]
        except TypeError:
            found = -1
        if not 0 <= found < _STEP_LIMIT:
            raise LedgerError(self.path, f"takes a {name} of 0 or more, an integer below 2**63; found {step!r}")
        return found

    @_lets_go
    def durable_marker(self) -> Marker:
        """Return acknowledged ids, step and marker, all of it durable. Costs a set of all acknowledged ids."""
        with self._held("acks") as replica:
            replica.acks.confirm()
            return Marker(
                acked=replica.index.acked_ids(),
                global_step=replica.global_step,
                optimizer_durable=replica.optimizer_durable,
            )

    @_lets_go
    def acked_steps(self, sample_ids: Sequence[str]) -> dict[str, int | None]:
        with self._held("acks") as replica:
            steps = {sample_id: replica.index.step_of(sample_id) for sample_id in sample_ids}
        return {i: None if step == NO_STEP else step for i, step in steps.items() if step != UNACKED}

    @_lets_go
    def progress(self) -> tuple[int, int | None]:
        with self._held("acks") as replica:
            return replica.index.acked, replica.global_step

    @_lets_go
    def backlog(self) -> tuple[int, int]:
        with self._held("acks"):
            pass
        with self._held("commits") as replica:
            return replica.index.waiting, replica.index.waiting_bytes

    @_lets_go
    def compact(self) -> None:
        """Rewrite the acknowledgements into as few records as say the same; done without asking where it pays."""
        with self._held("acks", "compacting") as replica:
            replica.compact()

    # -- one process's use --------------------------------------------------------------------------------------

    def _held(self, kind: Literal["commits", "acks"], what: str = "reading") -> _Transaction:
        """Hold one of the logs, read up to its end."""
        return _Transaction(self, kind, what)

    def _drop_leftovers(self) -> None:
        """Let go of all that an interrupted call of this thread has left locked.

        What such a call has written need not be in this copy of the ledger yet: the next call reads it anew.
        """
        try:
            if self._mutex.try_acquire() and self._underway:
                replica, self._replica = self._replica, None
                self._underway = False
                if replica is not None:
                    replica.drop()
        finally:
            self._mutex.drop_leftovers()

    def _drop_out_of_reach(self) -> None:
        """Let descriptors go that lead nowhere any more: the next call opens the same ledger by its path again."""
        with self._mutex:
            if self._replica is not None and self._replica.is_out_of_reach():
                replica, self._replica = self._replica, None
                replica.drop()

    def _here(self) -> Replica:
        if self._closed:
            raise LedgerClosedError(self.path)
        if self._replica is None:
            self._replica = self._open()
        return self._replica

    def note_in(self, queue: object) -> None:
        if isinstance(queue, OnFiles):
            note_ledger(queue, self.path)

    @_lets_go
    def close(self) -> None:
        with self._mutex:
            self._closed = True
            if self._replica is not None:
                self._replica.save_if_worthwhile()
                self._replica.close()
                self._replica = None

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"ledger {self.path} is open here and cannot be copied or pickled: open it anew by its path")

    def __enter__(self) -> FileMetadataStore[R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FileMetadataStore({self.path!r})"

    def _after_fork_in_child(self) -> None:
        # A flock belongs to the open file, which parent and child would share: the child opens its own.
        self._mutex = Mutex()
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.close()


def _as_file(data: bytes) -> bytes:
    """Return what the codec made of a ref, from what is in a record."""
    return data.replace(b' ,"_fsqueue":', b'\n,"_fsqueue":') + b"\n"


class _Transaction:
    """Hold the store's mutex and the lock of one log for a with block; nothing else takes them or gives them back.

    An exception other than a refusal, which leaves the ledger as it was, marks the store's copy as not to be trusted.
    """

    def __init__(self, store: FileMetadataStore[Any], kind: Literal["commits", "acks"], what: str) -> None:
        self._store = store
        self._kind = kind
        self._explained = explained(f"{what} ledger", store.path)
        self._log: Log | None = None

    def __enter__(self) -> Replica:
        store = self._store
        store._mutex.__enter__()
        try:
            with self._explained:
                replica = store._here()
                store._underway = True
                self._log = replica.commits if self._kind == "commits" else replica.acks
                self._log.acquire()
        except BaseException as error:
            self._end(error)
            raise
        return replica

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._log is not None:
            self._log.release()
        self._end(error)
        self._explained.__exit__(kind, error, trace)

    def _end(self, error: BaseException | None) -> None:
        if error is None or isinstance(error, FsQueueError) or (isinstance(error, OSError) and error.errno):
            self._store._underway = False
        self._store._mutex.release()


_live: weakref.WeakSet[FileMetadataStore[Any]] = weakref.WeakSet()


def _reopen_in_child() -> None:
    for store in list(_live):
        store._after_fork_in_child()


os.register_at_fork(after_in_child=_reopen_in_child)
