"""Check a loader's arguments when it is made: hours later, a thread would tell of the slip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fsqueue.engine import arguments
from fsqueue.errors import InvalidArgumentError

_LEAST = {"batch_size": 1, "prefetch": 0, "ahead": 1, "prefetch_bytes": 1}
_CHOICES = {"ack": ("auto", "deferred"), "on_error": ("skip", "raise")}


def check_source(store: Any, queue: Any, refs: Any, partition: Any, timeout_s: Any) -> None:
    """Refuse what no refs, or no features, can be had of."""
    arguments.with_call(_named("store"), "a feature store, with get()", store, "get")
    if (queue is None) == (refs is None):
        given = "neither" if queue is None else "both"
        raise InvalidArgumentError("FeatureDataLoader()", "either queue= or refs=", given)
    if queue is None:
        arguments.batch(_named("refs"), refs)
    else:
        arguments.with_call(_named("queue"), "a queue, with get(), ack() and fail()", queue, "get", "ack", "fail")
    if partition is not None:
        arguments.partition("FeatureDataLoader", partition)
    arguments.patience(_named("timeout_s"), timeout_s)


def check_counts(counts: Mapping[str, Any]) -> None:
    """Refuse counts, by the names of their arguments, that are none or too small; ahead may be None, for instance."""
    for name, count in counts.items():
        if count is not None or name in ("batch_size", "prefetch"):
            arguments.at_least(_named(name), count, _LEAST[name])


def check_rest(drop_last: Any, pin_memory: Any, transform: Any, collate: Any, choices: Mapping[str, Any]) -> None:
    """Refuse flags, functions and words, the last by the names of their arguments, that are none of them."""
    arguments.flag(_named("drop_last"), drop_last)
    if pin_memory is not None:
        arguments.flag(_named("pin_memory"), pin_memory)
    arguments.call_or_none(_named("transform"), transform)
    arguments.call_or_none(_named("collate"), collate)
    for name, word in choices.items():
        if word not in _CHOICES[name]:
            raise InvalidArgumentError(_named(name), " or ".join(map(repr, _CHOICES[name])), word)


def _named(name: str) -> str:
    return f"FeatureDataLoader({name}=)"
