"""A controller's own record types, as another package would define them: annotations are postponed strings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Span:
    """A nested record with a tuple of its own."""

    offsets: tuple[int, int]
    kind: Literal["prompt", "answer"] = "prompt"


@dataclass(frozen=True)
class Feature:
    """A nested record that holds nested records."""

    name: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...] = ()
    target_repr: Literal["logits", "hidden_state"] | None = None


@dataclass(frozen=True)
class SampleRef:
    """Same name as fsqueue's, other fields: what a controller's own package brings."""

    sample_id: str
    features: dict[str, Feature]
    weights: list[float] = field(default_factory=list)
    pair: tuple[str, int] = ("none", 0)
    anything: Any = None
    note: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def foreign_ref(sample_id: str, **fields: Any) -> SampleRef:
    """A ref that uses every kind of field."""
    features = {
        "hidden": Feature("hidden", (1, 8, 4), (Span((0, 3)), Span((3, 8), "answer")), "hidden_state"),
        "ids": Feature("ids", (8,)),
    }
    given: dict[str, Any] = {"weights": [0.5, 1.5], "pair": ("a", 2), "anything": {"deep": [1, None, True]}, **fields}
    return SampleRef(sample_id, features, **given)


@dataclass(frozen=True)
class Loose:
    """A record whose types say so little that only the values tell tuples from lists."""

    sample_id: str
    value: Any = None


@dataclass(frozen=True, eq=False)
class Incomparable:
    """A record without a generated ``==``."""

    sample_id: str
    value: Any = None
