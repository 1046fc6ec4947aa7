"""Say what a check found: a verdict, a plain sentence, and the figures behind it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Judgement = Literal["holds", "lives with it", "weaker", "broken", "measured"]
Weakness = Literal["order", "deduplication", "wake-up"]
SEVERITY: tuple[Judgement, ...] = ("measured", "holds", "lives with it", "weaker", "broken")


@dataclass(frozen=True)
class Verdict:
    """Say what became of one promise.

    Attributes:
        judgement: "lives with it": the filesystem does not do what was asked, and the queue has its own way round, so
            that nothing is promised in vain. "weaker": something in `weakens` is not to be relied on, and nothing is
            lost. "broken": refs may be lost, held by two, or stuck. "measured": nothing is promised.
        weakens: what becomes weaker.
        figures: numbers under stable keys.
    """

    promise: str
    judgement: Judgement
    text: str
    figures: dict[str, Any] = field(default_factory=dict)
    weakens: tuple[Weakness, ...] = ()

    @property
    def broken(self) -> bool:
        return self.judgement == "broken"

    def as_json(self) -> dict[str, Any]:
        """Return plain values under stable keys."""
        return {**asdict(self), "weakens": list(self.weakens)}


def worst(*judgements: Judgement) -> Judgement:
    """Return the gravest of some judgements."""
    return max(judgements, key=SEVERITY.index)
