"""`FileMetadataStore`: the ledger in a directory, shared by processes and nodes.

Two logs: ``commits`` holds the refs, each once, and never shrinks; ``acks`` holds acknowledgements and is
compacted when most of it says what fewer records could say::

    {"crc":..,"len":..,"ids":["s17"],"sizes":[412],"weights":[128],"refs":[{...}]}
    {"crc":..,"len":..,"global_step":7,"optimizer_durable":true,"ids":["s17"]}
    {"crc":..,"len":..,"forget_after_step":6}

A transaction is one record. Reading them: ``jq -c '.refs[]?' ledger/commits-*.jsonl``.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar, cast

import msgspec

from fsqueue import fileops
from fsqueue.codec import Codec
from fsqueue.control import record
from fsqueue.control.errors import LedgerClosedError, LedgerDamagedError, LedgerError, LedgerFormatError
from fsqueue.control.index import NO_STEP, UNACKED, Index
from fsqueue.control.log import Log, Spans, wait_for_lock
from fsqueue.control.segments import open_directory
from fsqueue.control.store import Marker, MetadataStore, id_of, weight_of
from fsqueue.errors import CorruptRefError
from fsqueue.fileops import explained
from fsqueue.records import SampleRef

R = TypeVar("R")

LOCK_TIMEOUT_S = 120.0
COMPACT_FROM_BYTES = 1 << 22
_IDS_A_RECORD = 4096
_REFS = b',"refs":['


class _Commit(msgspec.Struct):
    ids: list[str]
    sizes: list[int]
    weights: list[int]


class _Ack(msgspec.Struct):
    ids: list[str] = []
    global_step: int | None = None
    optimizer_durable: bool = False
    forget_after_step: int | None = None


_decode_commit = msgspec.json.Decoder(_Commit).decode
_decode_ack = msgspec.json.Decoder(_Ack).decode
_encode = msgspec.json.Encoder().encode


class _Parts:
    """What a store is made of in one process."""

    def __init__(self, ops: fileops.FileOps, path: str, durable: bool, lock_timeout_s: float) -> None:
        def lock(fd: int, name: str) -> None:
            wait_for_lock(ops, fd, os.path.join(path, name), ops.monotonic(), lock_timeout_s)

        self.index = Index()
        self.global_step: int | None = None
        self.optimizer_durable = False
        self.root = open_directory(ops, path, durable, lock)
        self.commits = Log(
            ops,
            self.root,
            "commits",
            reader=self._read_commits,
            reset=self.index.forget_commits,
            durable=durable,
            lock_timeout_s=lock_timeout_s,
        )
        self.acks = Log(
            ops,
            self.root,
            "acks",
            reader=self._read_acks,
            reset=self._forget_all_acks,
            durable=durable,
            lock_timeout_s=lock_timeout_s,
        )

    def _read_commits(self, data: bytes, spans: Spans, offset: int) -> None:
        ids: list[str] = []
        sizes: list[int] = []
        weights: list[int] = []
        offsets: list[int] = []
        for start, end in spans:
            refs_at = data.find(_REFS, start, end)
            try:
                head = _decode_commit(b"{" + data[start + record.PREFIX_BYTES : refs_at] + b"}")
            except msgspec.DecodeError as error:
                raise self._unknown("commits", offset + start, error) from None
            ids += head.ids
            sizes += head.sizes
            weights += head.weights
            offsets += _offsets(head.sizes, offset + refs_at + len(_REFS))
        self.index.commit(ids, offsets, sizes, weights)

    def _read_acks(self, data: bytes, spans: Spans, offset: int) -> None:
        for start, end in spans:
            try:
                ack = _decode_ack(record.fields(data, start, end))
            except msgspec.DecodeError as error:
                raise self._unknown("acks", offset + start, error) from None
            self.apply(ack)

    def apply(self, ack: _Ack) -> list[str]:
        """Apply one record of the acks; returns the ids whose acknowledgement it takes back."""
        if ack.forget_after_step is not None:
            if self.global_step is not None:
                self.global_step = min(self.global_step, ack.forget_after_step)
            return self.index.forget_acks(ack.forget_after_step)
        step = NO_STEP if ack.global_step is None else ack.global_step
        self.index.ack(ack.ids, step)
        if ack.global_step is not None:
            self.global_step = ack.global_step
        self.optimizer_durable = ack.optimizer_durable
        return []

    def _forget_all_acks(self) -> None:
        self.index.forget_all_acks()
        self.global_step, self.optimizer_durable = None, False

    def _unknown(self, kind: str, offset: int, error: Exception) -> LedgerFormatError:
        return LedgerFormatError(
            self.root.path,
            f"has a record in {kind} at byte {offset} that this fsqueue does not know ({error}): upgrade fsqueue",
        )

    def close(self) -> None:
        self.commits.close()
        self.acks.close()
        self.root.close()


class FileMetadataStore(MetadataStore[R], Generic[R]):
    """A durable ledger in a directory of its own, which several processes may have open.

    What was found true stays in memory: `is_committed` of a known id costs no file operation, everything else one
    look at what others have written since. An object may be used by several threads, and by a forked child.

    Args:
        path: the ledger's directory; created where it is missing or empty.
        ref_type: the dataclass that is committed and given back.
        durable: whether a transaction is fsynced before the call returns.
        lock_timeout_s: how long to wait for other processes' transactions. A node that dies in the middle of one
            blocks the ledger until the file server frees its lock.

    Raises:
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
        self.path = os.path.abspath(os.fspath(path))
        self._ops = fileops.current()
        self._codec: Codec[R] = Codec(ref_type)
        self._durable = durable
        self._lock_timeout_s = lock_timeout_s
        self._mutex = threading.RLock()
        self._closed = False
        with explained("opening ledger", self.path):
            self._parts: _Parts | None = self._open()
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise
        _live.add(self)

    def _open(self) -> _Parts:
        return _Parts(self._ops, self.path, self._durable, self._lock_timeout_s)

    def refresh(self) -> None:
        """Read what others have written since."""
        with self._commits():
            pass
        with self._acks():
            pass

    # -- commits ------------------------------------------------------------------------------------------------

    def commit_samples(self, refs: Iterable[R]) -> list[bool]:
        """Record samples in one transaction: one write, one fsync, however many there are.

        Raises:
            InvalidRefError: a ref holds a tensor or a value that JSON would change; nothing was written.
            QueueIOError: the filesystem refused; the ledger is unchanged.
        """
        wanted = list(refs)
        encoded = {id_of(ref): (self._encode(ref), weight_of(ref)) for ref in reversed(wanted)}
        with self._commits() as parts:
            fresh = {i: encoded[i] for i in map(id_of, wanted) if i not in parts.index.numbers}
            if fresh:
                self._append_commits(parts, fresh)
            else:
                parts.commits.confirm()
        return [fresh.pop(id_of(ref), None) is not None for ref in wanted]

    def _append_commits(self, parts: _Parts, fresh: dict[str, tuple[bytes, int]]) -> None:
        refs = [data for data, _ in fresh.values()]
        head = _Commit(list(fresh), [len(data) for data in refs], [weight for _, weight in fresh.values()])
        body = _encode(head)[1:-1] + _REFS
        offset = self._append(parts.commits, body + b",".join(refs) + b"]")
        offsets = _offsets(head.sizes, offset + record.PREFIX_BYTES + len(body))
        parts.index.commit(head.ids, offsets, head.sizes, head.weights)

    def _encode(self, ref: R) -> bytes:
        # The codec begins bookkeeping on a line of its own; a record is one line.
        return self._codec.encode(ref)[:-1].replace(b"\n", b" ")

    def _decode(self, data: bytes) -> R:
        return self._codec.decode(data.replace(b' ,"_fsqueue":', b'\n,"_fsqueue":') + b"\n")

    def is_committed(self, sample_id: str) -> bool:
        with self._mutex:
            if sample_id in self._here().index.numbers:
                return True
            with self._commits() as parts:
                return sample_id in parts.index.numbers

    def get_committed(self, sample_id: str) -> R | None:
        """The ref, read from the ledger.

        Raises:
            LedgerDamagedError: what is read back is not that ref.
        """
        with self._mutex:
            if not self.is_committed(sample_id):
                return None
            parts = self._here()
            offset, size_bytes = parts.index.place(parts.index.numbers[sample_id])
            try:
                with explained("reading ledger", self.path):
                    ref = self._decode(parts.commits.read(size_bytes, offset))
                if id_of(ref) == sample_id:
                    return ref
            except CorruptRefError:
                pass
            raise LedgerDamagedError(self.path, "commits", offset, f"this is not the ref of {sample_id!r}")

    def committed_count(self) -> int:
        with self._commits() as parts:
            return len(parts.index.numbers)

    def all_committed_ids(self) -> list[str]:
        """Every committed id, in commit order; what is returned is durable."""
        with self._commits() as parts:
            parts.commits.confirm()
            return list(parts.index.numbers)

    # -- acknowledgements ---------------------------------------------------------------------------------------

    def record_train_ack(
        self, sample_ids: Iterable[str], *, global_step: int | None = None, optimizer_durable: bool = False
    ) -> None:
        """Record ids, step and marker in one transaction: one write, one fsync.

        Raises:
            QueueIOError: the filesystem refused; the ledger is unchanged.
        """
        ids = list(dict.fromkeys(sample_ids))
        if not all(isinstance(sample_id, str) for sample_id in ids):
            raise LedgerError(self.path, f"takes sample ids, which are strings; found {ids!r}")
        if global_step is not None and (not isinstance(global_step, int) or global_step < 0):
            raise LedgerError(self.path, f"takes a global_step of 0 or more, or None; found {global_step!r}")
        ack = _Ack(ids, global_step, bool(optimizer_durable))
        with self._acks() as parts:
            self._append_ack(parts, ack)

    def forget_acks(self, *, after_step: int) -> list[str]:
        """Take back every acknowledgement of a later step, as one record; returns the ids, in commit order."""
        with self._commits():
            pass
        with self._acks() as parts:
            return self._append_ack(parts, _Ack(forget_after_step=after_step))

    def _append_ack(self, parts: _Parts, ack: _Ack) -> list[str]:
        self._append(parts.acks, _ack_body(ack))
        forgotten = parts.apply(ack)
        self._compact_if_worthwhile(parts)
        return forgotten

    def durable_marker(self) -> Marker:
        """Acknowledged ids, step and marker; what is returned is durable. Costs a set of all acknowledged ids."""
        with self._acks() as parts:
            parts.acks.confirm()
            return Marker(
                acked=parts.index.acked_ids(),
                global_step=parts.global_step,
                optimizer_durable=parts.optimizer_durable,
            )

    def acked_steps(self, sample_ids: Sequence[str]) -> dict[str, int | None]:
        with self._acks() as parts:
            steps = {sample_id: parts.index.step_of(sample_id) for sample_id in sample_ids}
        return {i: None if step == NO_STEP else step for i, step in steps.items() if step != UNACKED}

    def progress(self) -> tuple[int, int | None]:
        with self._acks() as parts:
            return parts.index.acked, parts.global_step

    def backlog(self) -> tuple[int, int]:
        with self._acks():
            pass
        with self._commits() as parts:
            return parts.index.waiting, parts.index.waiting_bytes

    # -- compaction ---------------------------------------------------------------------------------------------

    def compact(self) -> None:
        """Rewrite the acknowledgements into as few records as say the same."""
        with self._acks() as parts, explained("compacting ledger", self.path):
            parts.acks.replace(_compacted(parts))

    def _compact_if_worthwhile(self, parts: _Parts) -> None:
        least_bytes = parts.index.acked_chars + 3 * parts.index.acked
        if parts.acks.end_bytes > max(COMPACT_FROM_BYTES, 2 * least_bytes):
            with explained("compacting ledger", self.path):
                parts.acks.replace(_compacted(parts))

    # -- one process's use --------------------------------------------------------------------------------------

    @contextmanager
    def _commits(self) -> Iterator[_Parts]:
        """Hold the commit log, read up to its end."""
        with self._mutex:
            parts = self._here()
            with explained("using ledger", self.path), parts.commits.hold():
                yield parts

    @contextmanager
    def _acks(self) -> Iterator[_Parts]:
        """Hold the acks log, read up to its end."""
        with self._mutex:
            parts = self._here()
            with explained("using ledger", self.path), parts.acks.hold():
                yield parts

    def _append(self, log: Log, body: bytes) -> int:
        with explained("writing ledger", self.path):
            return log.append(body)

    def _here(self) -> _Parts:
        if self._closed:
            raise LedgerClosedError(self.path)
        if self._parts is None:
            self._parts = self._open()
        return self._parts

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            parts, self._parts = self._parts, None
            if parts is not None:
                parts.close()

    def __enter__(self) -> FileMetadataStore[R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FileMetadataStore({self.path!r})"

    def _after_fork_in_child(self) -> None:
        # A flock belongs to the open file, which parent and child would share: the child opens its own.
        self._mutex = threading.RLock()
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()


def _offsets(sizes: list[int], first: int) -> list[int]:
    """Where refs of these sizes lie, one comma apart."""
    if len(sizes) == 1:
        return [first]
    return list(itertools.accumulate((size + 1 for size in sizes[:-1]), initial=first))


def _ack_body(ack: _Ack) -> bytes:
    if ack.forget_after_step is not None:
        return b'"forget_after_step":%d' % ack.forget_after_step
    return b'"global_step":%s,"optimizer_durable":%s,"ids":%s' % (
        _encode(ack.global_step),
        _encode(ack.optimizer_durable),
        _encode(ack.ids),
    )


def _compacted(parts: _Parts) -> Iterator[bytes]:
    """The fewest records that have the same effect as all that were read."""
    for step, ids in parts.index.acked_by_step().items():
        for first in range(0, len(ids), _IDS_A_RECORD):
            yield _ack_body(_Ack(ids[first : first + _IDS_A_RECORD], None if step == NO_STEP else step))
    yield _ack_body(_Ack([], parts.global_step, parts.optimizer_durable))


_live: weakref.WeakSet[FileMetadataStore[Any]] = weakref.WeakSet()


def _reopen_in_child() -> None:
    for store in list(_live):
        store._after_fork_in_child()


os.register_at_fork(after_in_child=_reopen_in_child)
