"""Compute the rates between two looks at a queue."""

from __future__ import annotations

from typing import NamedTuple

from fsqueue.operate import Status


class Rates(NamedTuple):
    """Hold rates in refs a second.

    Attributes:
        seconds: between the two looks.
        put_per_s: what all states together gained.
        pending_per_s: what pending alone gained; negative where the backlog shrinks.
    """

    seconds: float
    put_per_s: float
    done_per_s: float
    failed_per_s: float
    pending_per_s: float

    def texts(self) -> dict[str, str]:
        """Return what is shown beside each state, and beside "put"."""
        gains = {"put": self.put_per_s, "done": self.done_per_s, "failed": self.failed_per_s}
        return {name: f"{gain:.1f}/s" for name, gain in gains.items()} | {"pending": f"{self.pending_per_s:+.1f}/s"}

    def __str__(self) -> str:
        return ", ".join(f"{name} {text}" for name, text in self.texts().items())


def rates(before: Status, after: Status) -> Rates:
    """Return the rates between two looks."""
    seconds = max(after.at - before.at, 1e-9)
    old, new = before.counts, after.counts
    return Rates(
        seconds=seconds,
        put_per_s=(sum(new) - sum(old)) / seconds,
        done_per_s=(new.done - old.done) / seconds,
        failed_per_s=(new.failed - old.failed) / seconds,
        pending_per_s=(new.pending - old.pending) / seconds,
    )
