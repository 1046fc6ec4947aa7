"""Figures that the proof suite gathers while it runs: what was tried, and how often."""

from __future__ import annotations

from collections import Counter

figures: Counter[str] = Counter()


def count(what: str, number: int = 1) -> None:
    """Add to a figure; `proof.summary` prints them at the end of the run."""
    figures[what] += number
