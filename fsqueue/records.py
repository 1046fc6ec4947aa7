"""Define what travels through the queue: metadata records, and the functions that every controller shares.

The records carry no tensors. They name tensors in a feature store, and stay a few hundred bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from fsqueue.errors import TensorInRefError

_SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_ARRAY_ATTRIBUTES = ("dtype", "shape", "device")


@dataclass(frozen=True)
class FeatureSpec:
    """Give the shape and type of one tensor that a sample ref points at.

    Attributes:
        shape: the tensor's dimensions, outermost first.
        dtype: the element type's name, such as ``"float32"``.
        target_repr: what the target model's output is kept as, where the tensor is one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    device_hint: str | None = None
    required: bool = True
    target_repr: Literal["logits", "pruned_logits", "hidden_state"] | None = None
    target_meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleRef:
    """Describe one training sample: where its features lie and what made them.

    Attributes:
        sample_id: the queue's key; any non-empty string.
        feature_store_uri: the store that holds the features.
        feature_keys: feature name to the store's key.
        feature_specs: feature name to shape and type.
        num_tokens: the sample's length, in tokens.
        estimated_bytes: the features' size, for backpressure by bytes.
    """

    sample_id: str
    run_id: str
    source_task_id: str | None
    feature_store_uri: str
    feature_keys: dict[str, str]
    feature_specs: dict[str, FeatureSpec]
    strategy: str
    schema_version: int = 1
    target_model_version: str = "unknown"
    draft_weight_version: str | None = None
    tokenizer_version: str = "unknown"
    num_tokens: int = 0
    estimated_bytes: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptTask:
    """Hold one prompt for a rollout worker.

    Attributes:
        max_length: the longest sequence to roll out, in tokens.
        attempt: how often the prompt has failed before.
    """

    task_id: str
    run_id: str
    source_id: str
    payload: dict[str, Any]
    max_length: int
    chat_template: str | None
    loss_mask_policy: dict[str, Any]
    target_model_version: str
    draft_weight_version: str | None
    attempt: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)


class Put(NamedTuple):
    """Say what a put did.

    Attributes:
        added: how many refs are new in the queue.
        skipped: how many were not put, since their ids were pending or leased already, or came twice in the call.
    """

    added: int
    skipped: int


def dp_partition(sample_id: str, n: int) -> int:
    """Return the data-parallel partition, 0 to n - 1, that a sample belongs to; 0 when n <= 1."""
    return partition_of(sample_id.encode(), n)


def partition_of(encoded: bytes, n: int) -> int:
    """Do as `dp_partition`, of an id in UTF-8."""
    return int.from_bytes(hashlib.sha1(encoded).digest(), "big") % n if n > 1 else 0


def assert_no_tensors(obj: Any) -> None:
    """Refuse tensors and arrays anywhere inside dataclasses, dicts, lists, tuples and sets.

    Neither torch nor numpy is imported: a type counts when its module's root is one of them, or when the
    object has ``dtype``, ``shape`` and ``device``.

    Raises:
        TensorInRefError: a ``TypeError`` that names the path, such as ``<root>.metadata['x'][3]``.
    """
    found = _find_tensor(obj)
    if found is not None:
        steps, type_name = found
        raise TensorInRefError("<root>" + "".join(reversed(steps)), type_name)


def _find_tensor(obj: Any) -> tuple[list[str], str] | None:
    """Return the steps to the first tensor in obj, innermost first, and its type; None when there is none.

    Steps are formatted only once a tensor is found, so that the walk costs a type check a value.
    """
    if type(obj) in _SCALARS:
        return None
    if _is_tensor(obj):
        return [], f"{type(obj).__module__}.{type(obj).__qualname__}"
    for label, child in _children(obj):
        if type(child) in _SCALARS:
            continue
        found = _find_tensor(child)
        if found is not None:
            found[0].append(label if isinstance(label, str) else f"[{label[0]!r}]")
            return found
    return None


def _is_tensor(obj: Any) -> bool:
    root = type(obj).__module__.partition(".")[0]
    return root in ("torch", "numpy") or all(hasattr(obj, name) for name in _ARRAY_ATTRIBUTES)


def _children(obj: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (label, value) for everything directly inside obj; a label is ``.name`` or a one-tuple of the key."""
    if isinstance(obj, Mapping):
        for key, value in obj.items():
            yield (key,), value
            if type(key) not in _SCALARS:
                yield (key,), key
    elif isinstance(obj, (list, tuple, set, frozenset)):
        for index, value in enumerate(obj):
            yield (index,), value
    elif dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        for f in dataclasses.fields(obj):
            yield f".{f.name}", getattr(obj, f.name)


def id_of_ref(ref: object) -> str:
    """Return the id of a ref of whatever class."""
    return ref.sample_id  # type: ignore[attr-defined,no-any-return]
