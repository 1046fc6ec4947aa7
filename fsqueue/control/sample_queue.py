"""Acknowledging, failing and giving back on a sample queue of whatever kind, by ids that the ledger knows."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from fsqueue.engine.memory import MemorySampleRefQueue
from fsqueue.queue import FileSampleRefQueue


class _Named(NamedTuple):
    """All that fsqueue's own queues look at in a ref that is acknowledged or failed."""

    sample_id: str


def refs_of(queue: Any, store: Any, sample_ids: Iterable[str]) -> list[Any]:
    """Refs to acknowledge or fail by; for a foreign queue whole ones, of which the ledger must know."""
    if isinstance(queue, (FileSampleRefQueue, MemorySampleRefQueue)):
        return [_Named(sample_id) for sample_id in sample_ids]
    return [ref for ref in map(store.get_committed, sample_ids) if ref is not None]


def ack(queue: Any, store: Any, steps: Mapping[str, int | None]) -> list[str]:
    """Acknowledge ids, each at its step where the queue takes one; returns those that were lost, where it tells."""
    lost: list[str] = []
    kind: Any = type(queue)
    takes_step = _takes_step(kind)
    for step in dict.fromkeys(steps.values()):
        refs = refs_of(queue, store, [sample_id for sample_id, found in steps.items() if found == step])
        if refs:
            lost += queue.ack(refs, **({"step": step} if takes_step else {})) or ()
    return lost


def give_back(queue: Any, refs: list[Any]) -> None:
    """Return what an error kept from the trainer; should that fail too, the first error is the one to report."""
    with suppress(Exception):
        if hasattr(queue, "release"):
            queue.release(refs)
        else:
            queue.fail(refs, "the ledger could not be asked", True)


@lru_cache(maxsize=64)
def _takes_step(kind: Any) -> bool:
    """Whether a queue class's ack has a parameter ``step``; the contract does not ask for one."""
    try:
        return "step" in inspect.signature(kind.ack).parameters
    except (TypeError, ValueError, AttributeError):
        return False
