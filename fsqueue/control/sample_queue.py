"""Say what a controller asks of any queue, and acknowledge, fail and give back on it by ids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, cast, runtime_checkable

from fsqueue.control.ledger.metadata_store import MetadataStore
from fsqueue.engine.picking import Partition

R = TypeVar("R")
Lost = Iterable[str] | None
"""The ids whose lease was lost before, from queues that tell."""


class SampleQueue(Protocol[R]):
    """Do all that a controller asks of a queue.

    ``partition`` is passed only where the trainer gives one, and so is a ``stop_event``, which few queues take.
    """

    def put(self, refs: list[R]) -> object: ...
    def get(self, max_refs: int, timeout_s: float | None = None, *, partition: Partition | None = None) -> list[R]: ...
    def ack(self, refs: list[R]) -> Lost: ...
    def fail(self, refs: list[R], reason: str, retryable: bool) -> Lost: ...
    def depth(self) -> int: ...
    def in_flight(self) -> int: ...


@runtime_checkable
class Releases(Protocol):
    """Take refs back without counting an attempt."""

    def release(self, refs: list[Any]) -> Lost: ...


@runtime_checkable
class Renews(Protocol):
    """Start the lease timeout of refs anew."""

    def renew(self, refs: list[Any]) -> Lost: ...


@runtime_checkable
class OwnQueue(Releases, Renews, Protocol):
    """Settle refs as fsqueue's own queues do, by nothing but their ``sample_id``, keeping the step of an ack."""

    def ack(self, refs: list[Any], *, step: int | None = None) -> Lost: ...
    def reclaim(self) -> int: ...
    def counts(self) -> Any: ...


class _Named(NamedTuple):
    """Stand for a ref in an `OwnQueue`."""

    sample_id: str


def refs_of(queue: SampleQueue[R], store: MetadataStore[R], sample_ids: Iterable[str]) -> list[R]:
    """Return refs to acknowledge or fail by; for a foreign queue whole ones, of which the ledger must know."""
    if isinstance(queue, OwnQueue):
        return cast("list[R]", [_Named(sample_id) for sample_id in sample_ids])
    return [ref for ref in map(store.get_committed, sample_ids) if ref is not None]


def ack(queue: SampleQueue[R], store: MetadataStore[R], steps: Mapping[str, int | None]) -> list[str]:
    """Acknowledge ids, each at its step where the queue takes one; returns those that were lost, where it tells."""
    lost: list[str] = []
    for step in dict.fromkeys(steps.values()):
        refs = refs_of(queue, store, [sample_id for sample_id, found in steps.items() if found == step])
        if refs:
            lost += _ack_at(queue, refs, step) or ()
    return lost


def _ack_at(queue: SampleQueue[R], refs: list[R], step: int | None) -> Lost:
    if isinstance(queue, OwnQueue):
        return queue.ack(refs, step=step)
    try:
        return queue.ack(refs, step=step)  # type: ignore[call-arg]
    except TypeError:
        # The contract has no step, and a call that does not fit the signature has done nothing.
        return queue.ack(refs)


def give_back(queue: SampleQueue[R], refs: list[R], reason: str) -> list[str]:
    """Release refs, or fail them as retryable where the queue cannot; returns those that were lost, where it tells."""
    return list((queue.release(refs) if isinstance(queue, Releases) else queue.fail(refs, reason, True)) or ())
