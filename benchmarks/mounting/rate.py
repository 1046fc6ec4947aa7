"""Measure refs a second through both mounts of a filesystem, in turn with the one that the rows are compared with."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsqueue import FileSampleRefQueue
from soaking.site import make_ref

_BATCH = 16
_BATCHES = 10
_WAIT_S = 60.0
_ROUNDS = 5
_FEWEST = 2
_BUDGET_S = 90.0


@dataclass(frozen=True)
class Rates:
    """Refs a second, the medians of all rounds; relative is the median of the rounds' own ratios."""

    refs_s: float
    first_refs_s: float
    relative: float


def rates(sides: tuple[Path, Path], first: tuple[Path, Path]) -> Rates:
    """Put through side A, get and ack through side B; a round here, a round in the first filesystem, and so on.

    The round before the others warms up, and does not count. Where a round takes minutes, there are fewer.
    """
    here: list[float] = []
    there: list[float] = []
    ends_at = time.monotonic() + _BUDGET_S
    for number in range(_ROUNDS + 1):
        if len(here) < _FEWEST or time.monotonic() < ends_at:
            here.append(_refs_a_second(*sides, number))
            there.append(_refs_a_second(*first, number))
    here, there = here[1:], there[1:]
    ratios = [one / other for one, other in zip(here, there, strict=True)]
    return Rates(statistics.median(here), statistics.median(there), statistics.median(ratios))


def _refs_a_second(a: Path, b: Path, number: int) -> float:
    """Put everything, wait for the first ref on the other side, which is not timed, then get and ack everything."""
    wanted = _BATCH * _BATCHES
    with FileSampleRefQueue[Any](a / "rate", keep_done=False) as putting, \
            FileSampleRefQueue[Any](b / "rate", keep_done=False) as getting:  # fmt: skip
        started = time.perf_counter()
        for batch in range(_BATCHES):
            putting.put([make_ref(f"rate-{number}-{batch}-{index}") for index in range(_BATCH)])
        put_s = time.perf_counter() - started
        refs = getting.get(1, _WAIT_S)
        started = time.perf_counter()
        count = len(refs)
        getting.ack(refs)
        while count < wanted:
            refs = getting.get(_BATCH, _WAIT_S)
            if not refs:
                raise TimeoutError(f"{count} of {wanted} refs came to side B, and no other within {_WAIT_S:g} s")
            getting.ack(refs)
            count += len(refs)
        return wanted / (put_s + time.perf_counter() - started)
