"""What a section of the control-plane benchmark hands in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
    """The rows as aligned text."""
    if not rows:
        return ""
    lines = [list(rows[0]), *([_shown(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
    return "-" if value is None else str(value)
