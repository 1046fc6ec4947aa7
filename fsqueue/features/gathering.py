"""Gather a batch's samples, as they are loaded, into what a trainer gets. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

Collate = Callable[[Sequence[Any]], Any]


class Gathering(Protocol):
    """Takes the samples of one batch, one by one."""

    def add(self, sample: Any) -> None: ...

    def batch(self) -> Any:
        """Return what the samples make together."""


class InOneCall:
    """Keeps the samples until there are all, for a function that makes a batch of them."""

    def __init__(self, collate: Collate) -> None:
        self._collate = collate
        self._samples: list[Any] = []

    def add(self, sample: Any) -> None:
        self._samples.append(sample)

    def batch(self) -> Any:
        samples, self._samples = self._samples, []
        return self._collate(samples)
