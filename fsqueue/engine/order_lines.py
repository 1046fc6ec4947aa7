"""Find refs in lines of the order that were read together: pure, no I/O."""

from __future__ import annotations

import re

Ahead = tuple[str, int, int]
"""Whole lines that were read ahead, where in them the cursor stands, and the offset in the file at which they end."""
NOTHING: Ahead = "", 0, 0

find_line = re.compile(r"^([A-Za-z0-9_%-][A-Za-z0-9._%~-]*)(?: [^\n]{4})?(?:\n|\Z)", re.MULTILINE).search
"""Find the next line that may be a stem, its first group: one that is neither blank nor handed out."""


def dead_bytes(lines: str) -> int:
    """Return how long those of the lines are, with their line feeds, that were handed out already."""
    return sum(len(line) + 1 for line in lines.split("\n") if line.startswith("#"))
