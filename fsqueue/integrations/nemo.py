"""Put a directory in the place of the queue of NVIDIA NeMo Automodel's streaming draft training.

    from fsqueue.integrations.nemo import SharedSampleRefQueue

    queue = SharedSampleRefQueue(store, "/shared/run/queue", producer="rollout-0")   # where features are made
    queue = SharedSampleRefQueue(store, "/shared/run/queue")                         # where they are trained on

Producers and consumers are processes, on one node or many. The calls are those of NeMo's `SampleRefQueue`, so its
pipeline and its loader take one for the other; the store has to be one that the processes share, too. Needs
``pip install 'fsqueue-shared[nemo]'``.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from weakref import WeakValueDictionary

from fsqueue.engine.waiting import SHARE
from fsqueue.errors import FsQueueError, InvalidArgumentError, NotAQueueError
from fsqueue.format import names
from fsqueue.format.codec import split
from fsqueue.lazy import needed_by
from fsqueue.queue import FileSampleRefQueue
from fsqueue.stream.membership import Membership
from fsqueue.stream.pacing import longest_pause_s

with needed_by(__name__, "nemo", "nemo_automodel", "torch"):
    import torch
    from nemo_automodel.components.speculative.streaming.queue import Lease, VisibilityTimeout
    from nemo_automodel.components.speculative.streaming.refs import FeatureAlgorithm, FeatureSpec, SampleRef

_logger = logging.getLogger(__name__)
_ABORTED = "was aborted during shutdown"
_WAITING = "while put was waiting"
_OUTCOME_POLL_S = 0.05


@dataclass(frozen=True)
class WireSpec:
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class WireRef:
    """Say what a NeMo `SampleRef` says, with names for what JSON has no word for.

    Attributes:
        feature_specs: each with its dtype's name in torch, such as ``bfloat16``.
        algorithm: the value of the `FeatureAlgorithm`.
    """

    sample_id: str
    run_id: str
    store_uri: str
    feature_keys: dict[str, str]
    feature_specs: dict[str, WireSpec]
    algorithm: str
    schema_version: int
    num_tokens: int
    estimated_bytes: int
    target_model_version: str
    draft_weight_version: str


class SampleRefCodec:
    """Carry NeMo's `SampleRef` in a `FileSampleRefQueue`, as its ``codec``; the order of features is kept."""

    wire_type = WireRef

    def to_wire(self, ref: Any) -> WireRef:
        specs = {name: WireSpec(spec.shape, _name_of(spec.dtype)) for name, spec in ref.feature_specs.items()}
        mappings = {"feature_keys": dict(ref.feature_keys), "feature_specs": specs, "algorithm": ref.algorithm.value}
        return WireRef(**{name: getattr(ref, name) for name in WireRef.__dataclass_fields__} | mappings)

    def from_wire(self, wire: WireRef) -> Any:
        specs = {name: FeatureSpec(spec.shape, _dtype(spec.dtype)) for name, spec in wire.feature_specs.items()}
        algorithm = FeatureAlgorithm(wire.algorithm)
        return SampleRef(**vars(wire) | {"feature_specs": specs, "algorithm": algorithm})


def _name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"torch {torch.__version__} has no dtype {name!r}")
    return found


class QueueEndedError(FsQueueError, RuntimeError):
    """A ref was put into a queue that was closed here, or whose put was called off while it waited."""


class DuplicateSampleError(FsQueueError, ValueError):
    """A ref was put whose id is pending or leased."""


class SharedSampleRefQueue:
    """Lease, acknowledge and fail NeMo refs that lie in a directory.

    A lease is fenced: what is acknowledged or failed too late touches no later lease, in whatever process. One that is
    not settled in time is given to whoever asks next; so is one whose process is known to have died, at once. The end
    is safe: while other processes lease refs that may yet fail and come back, `acquire` waits for them, where NeMo's
    loader would take the empty queue for the end. Threads may share an object.

    Args:
        store: NeMo's feature store, or anything with ``health()`` and ``gc()``.
        path: the queue's directory; created where it is missing or empty.
        producer: the name under which this process is a producer of the stream. `close` ends its part; the queue is
            closed for the consumers once all producers have. None: this process only consumes, or no other one does.
        visibility_timeout: how long a lease lasts; stored in a new queue. None: what the queue has, whoever changed it;
            in a new one 30 s, as NeMo's.
        high_watermark_bytes, low_watermark_bytes: resident bytes of the store at which `put_blocks_until_below` pauses,
            and goes on; None: as the store's health says.
        on_pause, on_resume: called with the store's health when it does.
        expected: how many producers there are in all; see `FileSampleRefQueue.producer`.
        options: further ones of `FileSampleRefQueue`.

    Attributes:
        queue: the queue in the directory; close it when all is done.
    """

    def __init__(
        self,
        store: Any,
        path: str | os.PathLike[str],
        *,
        producer: str | None = None,
        visibility_timeout: Any = None,
        high_watermark_bytes: int | None = None,
        low_watermark_bytes: int | None = None,
        on_pause: Callable[[Any], object] | None = None,
        on_resume: Callable[[Any], object] | None = None,
        expected: int = 0,
        **options: Any,
    ) -> None:
        _check_watermarks(high_watermark_bytes, low_watermark_bytes)
        self._store = store
        self._high, self._low = high_watermark_bytes, low_watermark_bytes
        self._on_pause, self._on_resume = on_pause, on_resume
        self._paused = False
        self._closed = threading.Event()
        self._idle_since: float | None = None  # since when no ref has come, monotonic
        self._leases: WeakValueDictionary[int, Any] = WeakValueDictionary()  # those that somebody may yet settle
        self._member: Membership | None = None
        self.queue = _opened(path, visibility_timeout, options)
        try:
            if producer is not None:
                self._member = self.queue.producer(producer, expected=expected)
        except BaseException:
            self.queue.close()
            raise

    # -- producing ----------------------------------------------------------------------------------------------

    def put(self, ref: Any) -> None:
        """Enqueue a ref, without waiting.

        Raises:
            QueueEndedError: a RuntimeError: the queue was closed here.
            DuplicateSampleError: a ValueError: its id is pending or leased.
        """
        self._refuse_closed()
        if self.queue.put([ref]).skipped:
            raise DuplicateSampleError(f"queue {self.queue.path} has {ref.sample_id!r} already, pending or leased")
        self._collect_garbage()

    def put_blocks_until_below(
        self, ref: Any, *, poll_interval: float = 0.05, abort_when: Callable[[], bool] | None = None
    ) -> None:
        """Enqueue a ref; where the store has reached its high watermark, wait first until it is down to the low one.

        Args:
            abort_when: asked at each look; once it says so, this gives up.

        Raises:
            QueueEndedError: the queue was closed here, or abort_when said so; nothing was put.
            MemberFailedError: a consumer failed; nothing was put.
        """
        while True:
            if abort_when is not None and abort_when():
                # NeMo's pipeline tells by these words, and by those of a closed queue, that it was stopped itself.
                raise QueueEndedError(f"queue {self.queue.path}: the put of {ref.sample_id!r} {_ABORTED}")
            self._refuse_closed(f": closed {_WAITING}")
            if not self._is_paused():
                return self.put(ref)
            self.queue.stream().watch("consumer")
            self._closed.wait(poll_interval)

    def _is_paused(self) -> bool:
        health = self._store.health()
        if self._paused:
            low, found = self._low, health.resident_bytes
            if health.low_watermark_hit if low is None else found <= low:
                self._paused = False
                self._tell(self._on_resume, health)
        elif health.high_watermark_hit if self._high is None else health.resident_bytes >= self._high:
            self._paused = True
            self._tell(self._on_pause, health)
        return self._paused

    def _tell(self, callback: Callable[[Any], object] | None, health: Any) -> None:
        try:
            if callback is not None:
                callback(health)
        except Exception:
            _logger.exception("a callback of queue %s failed", self.queue.path)

    def _refuse_closed(self, when: str = "") -> None:
        if self._closed.is_set():
            raise QueueEndedError(
                f"queue {self.queue.path} takes no more puts here{when}: make another object to go on"
            )

    # -- consuming ----------------------------------------------------------------------------------------------

    def acquire(self, *, poll_interval: float = 0.05) -> Any:
        """Return NeMo's `Lease` on the oldest ref; None where nothing comes within the interval, and at the end.

        On a shared mount an interval, unless it is 0, lasts for at least a fifth of the time that was waited, up to the
        queue's poll_interval_s. At the end `is_closed` is true. Where all producers have closed while other processes
        still lease refs, this waits for the outcome, also with an interval of 0.

        Raises:
            MemberFailedError: a producer failed or died.
        """
        self._collect_garbage()
        while True:
            refs = self.queue.get(1, max(poll_interval, self._pause_s()) if poll_interval else 0)
            if refs:
                self._idle_since = None
                return self._lease_on(refs[0])
            if not self._may_come_back():
                return None
            poll_interval = max(poll_interval, _OUTCOME_POLL_S)

    def _pause_s(self) -> float:
        """Return for how long at least to wait now, seconds, since no ref has come for some time."""
        handle = self.queue.handle
        now = handle.ops.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        return min(SHARE * (now - self._idle_since), longest_pause_s(handle, 0.0))

    def _may_come_back(self) -> bool:
        stream = self.queue.stream()
        stream.raise_failures("producer")
        mine = frozenset({self.queue.owner})
        return not self._closed.is_set() and stream.all_closed("producer") and not stream.drained(besides=mine)

    def _lease_on(self, ref: Any) -> Any:
        seconds = self.queue.lease_timeout_s
        timeout = VisibilityTimeout(math.inf if seconds is None else seconds)
        lease = Lease(
            ref=ref,
            deadline=time.monotonic() + timeout.seconds,
            visibility_timeout=timeout,
            redelivery_count=self._deliveries_before(ref),
        )
        self._leases[lease.lease_id] = lease
        return lease

    def _deliveries_before(self, ref: Any) -> int:
        handle = self.queue.handle
        claim = handle.held.find(names.stem_of(ref.sample_id), ref)
        with suppress(OSError):  # the lease is gone already, and its settlement will find that out
            if claim is not None:
                told = split(handle.ops.read_file(handle.layout.leased.fd, claim.name))[1]
                return told.attempts + told.expiries
        return 0

    def ack(self, lease: Any) -> None:
        """Acknowledge a lease; one that was lost, or settled before, is left alone."""
        if self._is_live(lease):
            self.queue.ack([lease.ref])
            self._collect_garbage()

    def fail(self, lease: Any) -> None:
        """Give a lease back to the tail, with one delivery more counted; one that was lost is left alone."""
        if self._is_live(lease):
            self.queue.fail([lease.ref], "failed by its consumer", retryable=True)
            self._collect_garbage()

    def _is_live(self, lease: Any) -> bool:
        number = lease.lease_id
        is_live = self._leases.get(number) is lease
        if is_live:
            self._leases.pop(number, None)
        return is_live

    def reclaim_expired(self) -> int:
        """Bring back all refs whose lease has expired, of whatever process; return how many."""
        return self.queue.reclaim()

    def _collect_garbage(self) -> None:
        try:
            self._store.gc()
        except Exception:
            _logger.exception("the feature store of queue %s could not collect its garbage", self.queue.path)

    # -- looking, and the end -----------------------------------------------------------------------------------

    def pending_count(self) -> int:
        return self.queue.depth()

    def outstanding_count(self) -> int:
        """Count the leases of all processes."""
        return self.queue.in_flight()

    @property
    def is_closed(self) -> bool:
        """Tell whether the queue was closed here, or by every producer of the stream."""
        return self._closed.is_set() or self.queue.stream().all_closed("producer")

    def close(self) -> None:
        """End this process's part: no put here any more. What is there is still handed out, and leases stay."""
        self.__exit__(None, None, None)

    def __enter__(self) -> SharedSampleRefQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._member is not None:
            self._member.__exit__(kind, error, trace)


def _opened(path: str | os.PathLike[str], timeout: Any, options: dict[str, Any]) -> FileSampleRefQueue[Any]:
    """Open the queue with this timeout; without one, as it is, or a new one with NeMo's."""
    options = {"codec": SampleRefCodec(), **options}
    if timeout is None:
        with suppress(NotAQueueError):
            return FileSampleRefQueue(path, **options | {"create": False})
        timeout = VisibilityTimeout()
    return FileSampleRefQueue(path, lease_timeout_s=timeout.seconds, **options)


def _check_watermarks(high: int | None, low: int | None) -> None:
    for name, value, least in (("high", high, 1), ("low", low, 0)):
        if value is not None and value < least:
            raise InvalidArgumentError(f"SharedSampleRefQueue({name}_watermark_bytes=)", f"{least} or more", value)
    if high is not None and low is not None and low >= high:
        expected = f"less than the high one, {high}"
        raise InvalidArgumentError("SharedSampleRefQueue(low_watermark_bytes=)", expected, low)
