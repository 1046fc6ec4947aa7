"""Say how far something long has come, to whoever called it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int | None], object]
"""Called as ``progress(done, total)``; the total is None where it is not known."""


def unheard(done: int, total: int | None) -> None:
    """Do nothing: nobody asked how far it has come."""
