"""The rows: what was found of each filesystem, as a table and as verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from measuring.tables import table

_HEADER = (
    "filesystem", "fit", "weakens", "stale name", "lease from", "x first", "refs", "kills", "lost", "twice", "crashes",
    "stuck",
)  # fmt: skip
FAULTS = ("lost", "twice", "crashes", "stuck")


def verdict(row: dict[str, Any]) -> str:
    """Say in a word what became of a filesystem: fit, refused, absent, or not fit."""
    if "missing" in row:
        return "not here"
    if "refused" in row:
        return "refused"
    if "failed" in row or "torture" not in row or faults(row):
        return "NOT FIT"
    return "fit"


def faults(row: dict[str, Any]) -> list[str]:
    """Return everything that must not be, one line each."""
    lines = [row["failed"]] if "failed" in row else []
    lines += [f"checks: {line}" for line in row.get("checks", {}).get("broken", ())]
    return lines + [f"{kind}: {line}" for kind in FAULTS for line in row.get("torture", {}).get(kind, ())]


def rows(found: Sequence[dict[str, Any]]) -> str:
    """All rows as one table, and below it why a filesystem is not there, is refused, or is not fit."""
    lines = [table(_HEADER, [_line(row) for row in found])]
    for row in found:
        reasons = faults(row) or [row.get("missing") or row.get("refused") or ""]
        lines += [f"{row['name']}: {reason}" for reason in reasons if reason]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> list[str]:
    checks, torture, rate = row.get("checks"), row.get("torture"), row.get("rate")
    cells = [f"{row['name']} {row['version']}", verdict(row)]
    cells.append("-" if checks is None else ", ".join(checks["weakens"]) or "nothing")
    cells += ["-", "-"] if checks is None else [f"{checks['stale_s']:.2f} s", f"{checks['lease_s']:g} s"]
    cells.append("-" if rate is None else f"{rate['relative']:.2f}")
    if torture is None:
        return [*cells, *["-"] * 6]
    return [*cells, str(torture["put"]), str(torture["kills"]), *(str(len(torture[kind])) for kind in FAULTS)]
