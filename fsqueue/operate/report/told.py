"""Hold what a report tells; no I/O."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from fsqueue.operate.status import Status

AGES = {"pending": "since it was put, or came back", "leased": "since it was leased, or renewed",
        "done": "from its last lease or renewal to its acknowledgement, unless the queue is a copy"}  # fmt: skip
"""What is measured of the refs in a state."""

BOUNDS_S = (1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0, 604800.0)
_WIDTHS_S = (
    0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800,
)  # fmt: skip
_WEEK_S = 604800.0
_MOST_BINS = 72


@dataclass(frozen=True)
class Spread:
    """Describe many lengths of time, seconds.

    Attributes:
        within: how many are shorter than each of `BOUNDS_S` and not than the one before; the last ones are longer.
    """

    count: int
    least: float
    median: float
    p90: float
    most: float
    within: list[int]

    @classmethod
    def of(cls, lengths: Sequence[float]) -> Spread | None:
        """Describe these; None where there are none."""
        if not lengths:
            return None
        found = sorted(lengths)
        within = [0] * (len(BOUNDS_S) + 1)
        for length in found:
            within[bisect_right(BOUNDS_S, length)] += 1
        last = len(found) - 1
        return cls(len(found), found[0], found[last // 2], found[round(0.9 * last)], found[-1], within)


@dataclass(frozen=True)
class Timeline:
    """Count what happened in each of the equal parts of a run.

    Attributes:
        begins_at: when the first part begins, by the filesystem's clock.
        width_s: how long each is.
        done: refs that were leased for the last time then, and are done.
        dead: refs that became dead letters then.
        ended: leases that ended otherwise then: by failure, expiry or release.
    """

    begins_at: float
    width_s: float
    done: list[int]
    dead: list[int]
    ended: list[int]

    @classmethod
    def of(cls, done: Sequence[float], dead: Sequence[float], ended: Sequence[float]) -> Timeline | None:
        """Sort moments into parts of a round length, 72 of them at most; None where nothing has happened."""
        bounds = [(min(moments), max(moments)) for moments in (done, dead, ended) if moments]
        if not bounds:
            return None
        first, last = min(low for low, _ in bounds), max(high for _, high in bounds)
        width_s = _width(last - first)
        begins_at = first // width_s * width_s
        number = int((last - begins_at) // width_s) + 1

        def counted(moments: Sequence[float]) -> list[int]:
            parts = [0] * number
            for moment in moments:
                parts[min(number - 1, int((moment - begins_at) // width_s))] += 1
            return parts

        return cls(begins_at, width_s, counted(done), counted(dead), counted(ended))


def _width(span_s: float) -> float:
    least = span_s / (_MOST_BINS - 1)
    return next((width for width in _WIDTHS_S if width >= least), -(-least // _WEEK_S) * _WEEK_S)


@dataclass(frozen=True)
class Steps:
    """Describe the optimizer steps that done refs were acknowledged at.

    Attributes:
        first, last: the steps themselves.
        different: how many of them there are.
        refs: how many refs name one.
        without: how many done refs name none.
    """

    first: int
    last: int
    different: int
    refs: int
    without: int


@dataclass(frozen=True)
class DeadReason:
    """Describe the dead letters that have one reason, apart from the numbers in it.

    Attributes:
        first_at, last_at: when the first and the last of them became one.
        examples: some of their ids.
    """

    reason: str
    count: int
    first_at: float
    last_at: float
    examples: list[str]


@dataclass(frozen=True)
class Report:
    """Tell how a run went.

    Attributes:
        timeline: None where nothing was done, and nothing went wrong.
        ages: by state, as `AGES` says; of what is packed, no acknowledgement's time is known.
        steps: None where no acknowledgement named one.
        events: how often each kind of event is in the refs' histories, which hold the last 32 of each ref.
        retried: refs that have a history, and are no dead letters.
        dead: the most frequent reason first.
        unread: files that could not be read.
    """

    status: Status
    created_at: float
    timeline: Timeline | None
    ages: dict[str, Spread]
    steps: Steps | None
    events: dict[str, int]
    retried: int
    dead: list[DeadReason]
    unread: int
