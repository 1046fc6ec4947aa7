"""Rates between two looks at a queue."""

from __future__ import annotations

from typing import NamedTuple

from fsqueue.operate.status import Status


class Rates(NamedTuple):
    """Refs a second.

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

    def __str__(self) -> str:
        return (
            f"put {self.put_per_s:.1f}/s, done {self.done_per_s:.1f}/s, failed {self.failed_per_s:.1f}/s, "
            f"pending {self.pending_per_s:+.1f}/s"
        )


def rates(before: Status, after: Status) -> Rates:
    seconds = max(after.at - before.at, 1e-9)
    old, new = before.counts, after.counts
    return Rates(
        seconds=seconds,
        put_per_s=(sum(new) - sum(old)) / seconds,
        done_per_s=(new.done - old.done) / seconds,
        failed_per_s=(new.failed - old.failed) / seconds,
        pending_per_s=(new.pending - old.pending) / seconds,
    )
