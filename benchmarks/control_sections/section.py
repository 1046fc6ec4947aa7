"""What a section of the control-plane benchmark hands in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from measuring import tables

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """The size of a run; quick ones show that it runs and measure nothing."""

    directory: str
    quick: bool


@dataclass
class Findings:
    """One section's results.

    Attributes:
        title: the heading of its table.
        rows: the table, one dict a line, all with the same keys.
        targets: what was wanted, in words, and whether it was reached.
        faults: what did not verify; a run with any fails.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    targets: list[tuple[str, bool]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


Section = Callable[[Options], Findings]


def table(rows: list[Row]) -> str:
    """Return the rows as aligned text."""
    return tables.table(list(rows[0]), [[_shown(value) for value in row.values()] for row in rows]) if rows else ""


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return "-" if value is None else str(value)
