"""Keep the contract of `FileSampleRefQueue` within one process, for tests and small runs."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, is_dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from fsqueue.disk.counting import Counts
from fsqueue.engine import arguments
from fsqueue.engine.attempts import MAX_DELIVERIES, Limits
from fsqueue.engine.waiting import StopEvent
from fsqueue.errors import InvalidRefError
from fsqueue.format.codec import Codec
from fsqueue.format.roundtrip import full_name
from fsqueue.format.wire import RefCodec, codec_of
from fsqueue.records import Put, SampleRef, dp_partition, id_of_ref

if TYPE_CHECKING:
    from fsqueue.engine.states import RefState

R = TypeVar("R")


@dataclass
class _Entry:
    """Hold a live ref.

    Attributes:
        ended: the claims on it that failed or expired, as a file's history tells them.
    """

    data: bytes
    attempts: int = 0
    expiries: int = 0
    leased_at: float = 0.0
    ended: set[int] = field(default_factory=set)


class MemorySampleRefQueue(Generic[R]):
    """Queue sample refs in memory. One object is one handle and all of the queue.

    Refs are kept as bytes and pass the same checks as in a file queue: code that works here works there.

    Args:
        lease_timeout_s, ref_type, max_attempts, max_deliveries, keep_done, clock, poll_interval_s, codec:
            as for `FileSampleRefQueue`. ref_type=None: the class of the first ref that is put.
    """

    def __init__(
        self,
        *,
        lease_timeout_s: float | None = None,
        ref_type: type[R] | None = cast(Any, SampleRef),  # noqa: B008
        max_attempts: int | None = None,
        max_deliveries: int | None = MAX_DELIVERIES,
        keep_done: bool = True,
        clock: Callable[[], float] | None = None,
        poll_interval_s: float = 0.05,
        codec: RefCodec[R, Any] | None = None,
    ) -> None:
        for name, seconds in (("lease_timeout_s", lease_timeout_s), ("poll_interval_s", poll_interval_s)):
            arguments.seconds(name, seconds)
        for name, limit in (("max_attempts", max_attempts), ("max_deliveries", max_deliveries)):
            if limit is not None:
                arguments.at_least(name, limit, 1)
        arguments.flag("keep_done", keep_done)
        arguments.call_or_none("clock", clock)
        self._codec: Codec[R] | None = None
        if ref_type is not None or codec is not None:
            self._codec = codec_of(cast(Any, ref_type), codec)
        self._timeout_s = lease_timeout_s
        self._limits = Limits(max_attempts, max_deliveries)
        self._keep_done = keep_done
        self._clock = clock or time.monotonic
        self._poll_interval_s = poll_interval_s
        self._changed = threading.Condition()
        self._pending: OrderedDict[str, _Entry] = OrderedDict()  # its front can be taken away at no cost
        self._leased: dict[str, _Entry] = {}
        self._done: set[str] = set()
        self._failed: set[str] = set()
        self._lost: set[str] = set()
        self._serial = itertools.count(1)
        self._claims: dict[str, int] = {}  # the latest on each ref since it was put

    def put(self, refs: Iterable[R], *, partition_key: str | None = None) -> Put:
        """Add refs at the tail; an id that is pending or leased is skipped."""
        entries: dict[str, _Entry] = {}
        added, refs = 0, list(arguments.batch("put", refs))
        if self._codec is None:
            if not refs:
                return Put(0, 0)
            self._take_class_of(refs[0])
        assert self._codec is not None
        for ref, (_, data) in zip(refs, self._codec.encode_all(refs), strict=True):
            entries.setdefault(id_of_ref(ref), _Entry(data))
        with self._changed:
            for sample_id, entry in entries.items():
                if sample_id not in self._leased and sample_id not in self._pending:
                    added += 1
                    self._pending[sample_id] = entry
                    self._lost.discard(sample_id)
                    self._claims.pop(sample_id, None)
            self._changed.notify_all()
        return Put(added, len(refs) - added)

    def _take_class_of(self, ref: R) -> None:
        if not is_dataclass(ref):
            raise InvalidRefError("<root>", f"expected a dataclass, found {full_name(type(ref))}")
        codec = codec_of(cast(Any, type(ref)), None)
        with self._changed:
            self._codec = self._codec or codec

    def get(
        self,
        max_refs: int,
        timeout_s: float | None = None,
        *,
        partition_key: str | None = None,
        partition: tuple[int, int] | None = None,
        stop_event: StopEvent | None = None,
    ) -> list[R]:
        """Lease up to max_refs refs, the oldest first; see `FileSampleRefQueue.get`."""
        max_refs = arguments.integer("get(max_refs)", max_refs)
        arguments.patience("get(timeout_s=)", timeout_s)
        if partition is not None:
            arguments.partition("get", partition)
        deadline = time.monotonic() + (timeout_s or 0.0)
        with self._changed:
            while stop_event is None or not stop_event.is_set():
                self._reclaim_locked()
                refs = self._take_locked(max_refs, partition)
                left_s = deadline - time.monotonic()
                if refs or left_s <= 0 or max_refs <= 0 or (partition and self._pending):
                    return refs
                self._changed.wait(min(left_s, self._poll_interval_s))
            return []

    def _take_locked(self, max_refs: int, partition: tuple[int, int] | None) -> list[R]:
        mine = (i for i in self._pending if partition is None or dp_partition(i, partition[1]) == partition[0])
        taken = list(islice(mine, max(0, max_refs)))
        for sample_id in taken:
            entry = self._leased[sample_id] = self._pending.pop(sample_id)
            entry.leased_at = self._clock()
            self._claims[sample_id] = next(self._serial)
            self._lost.discard(sample_id)
        # What is pending was encoded, so that the class is known.
        return [cast(Codec[R], self._codec).decode(self._leased[sample_id].data) for sample_id in taken]

    def _reclaim_locked(self) -> int:
        if self._timeout_s is None:
            return 0
        limit = self._clock() - self._timeout_s
        expired = [sample_id for sample_id, entry in self._leased.items() if entry.leased_at <= limit]
        for sample_id in expired:
            self._lost.add(sample_id)
            self._return_locked(sample_id, expiry=True)
        return len(expired)

    def _return_locked(self, sample_id: str, attempt: bool = False, expiry: bool = False) -> None:
        entry = self._leased.pop(sample_id)
        entry.attempts += attempt
        entry.expiries += expiry
        if attempt or expiry:
            entry.ended.add(self._claims[sample_id])
        if (attempt or expiry) and self._limits.used_up_by(entry):
            self._failed.add(sample_id)
        else:
            self._pending[sample_id] = entry

    def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]:
        """Settle refs; return the ids whose lease had expired before."""
        lost = []
        with self._changed:
            for sample_id in arguments.ids("ack", refs):
                if sample_id in self._lost and sample_id not in self._leased:
                    lost.append(sample_id)
                if sample_id in self._leased or self._was_leased_locked(sample_id):
                    self._forget_locked(sample_id)
                    self._done |= {sample_id} if self._keep_done else set()
        return lost

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> list[str]:
        """Count an attempt: retryable refs go to the tail, others are dead letters."""
        with self._changed:
            ids = list(arguments.ids("fail", refs))
            lost = self._lost_locked(ids)
            for sample_id in ids:
                if retryable and sample_id in self._leased:
                    self._return_locked(sample_id, attempt=True)
                elif retryable or sample_id in lost or self._gave_back_locked(sample_id):
                    continue
                elif self._forget_locked(sample_id):
                    self._failed.add(sample_id)
            self._changed.notify_all()
        return lost

    def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back to the tail without counting an attempt."""
        with self._changed:
            ids = list(arguments.ids("release", refs))
            lost = self._lost_locked(ids)
            for sample_id in ids:
                if sample_id in self._leased:
                    self._return_locked(sample_id)
            self._changed.notify_all()
        return lost

    def renew(self, refs: Iterable[R]) -> list[str]:
        """Start the lease timeout anew; return the ids that are not leased."""
        with self._changed:
            now, ids = self._clock(), list(arguments.ids("renew", refs))
            for entry in (self._leased[i] for i in ids if i in self._leased):
                entry.leased_at = now
            return [sample_id for sample_id in ids if sample_id not in self._leased]

    def _was_leased_locked(self, sample_id: str) -> bool:
        """Return whether a pending ref's latest claim, or where none is known any, failed or expired in this life."""
        entry = self._pending.get(sample_id)
        claim = self._claims.get(sample_id)
        return entry is not None and bool(entry.ended if claim is None else claim in entry.ended)

    def _gave_back_locked(self, sample_id: str) -> bool:
        """Return whether a pending ref was released, and so is no more its former owner's to fail."""
        pending = sample_id in self._pending and sample_id in self._claims
        return pending and not self._was_leased_locked(sample_id)

    def _forget_locked(self, sample_id: str) -> bool:
        return any(state.pop(sample_id, None) is not None for state in (self._leased, self._pending))

    def _lost_locked(self, ids: Iterable[str]) -> list[str]:
        return [i for i in ids if i in self._lost and i not in self._leased]

    def reclaim(self) -> int:
        """Bring back all refs whose lease has expired; return how many."""
        with self._changed:
            return self._reclaim_locked()

    def depth(self) -> int:
        """Count the pending refs."""
        return len(self._pending)

    def in_flight(self) -> int:
        """Count the leased refs."""
        return len(self._leased)

    def unsettled(self, sample_ids: Iterable[str]) -> list[str]:
        """Return those of these ids that are pending or leased; see `FileSampleRefQueue.unsettled`."""
        ids = dict.fromkeys(arguments.sample_ids("unsettled", sample_ids))
        with self._changed:
            return [sample_id for sample_id in ids if sample_id in self._pending or sample_id in self._leased]

    def counts(self) -> Counts:
        """Count the refs in each state."""
        with self._changed:
            return Counts(len(self._pending), len(self._leased), len(self._done), len(self._failed))

    def states(self, ids: Iterable[str]) -> dict[str, RefState]:
        """Tell where refs are, by id; those that are nowhere are left out."""
        with self._changed:
            places: list[tuple[RefState, Container[str]]] = [
                ("pending", self._pending),
                ("leased", self._leased),
                ("done", self._done),
                ("failed", self._failed),
            ]
            found: dict[str, RefState] = {}
            for sample_id in arguments.sample_ids("states", ids):
                state = next((state for state, place in places if sample_id in place), None)
                if state is not None:
                    found[sample_id] = state
            return found

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def __enter__(self) -> MemorySampleRefQueue[R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
