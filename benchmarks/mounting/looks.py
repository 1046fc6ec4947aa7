"""Run the doctor's checks between the two mounts: what weakens, and for how long an old name is believed."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsqueue.operate.doctor.advice import rounded_up
from fsqueue.operate.doctor.sides.sides import Options
from fsqueue.operate.doctor.sides.verdict import Verdict
from fsqueue.operate.doctor.sides.verify import verify
from mounting.namespaces import on_second_node

_GONE = "a name that is gone is gone"
_STALE_LIMIT_S = 30.0
_LEAST_S = 2.0
_STAMPS = 5
_PAUSE_S = 0.013


@dataclass(frozen=True)
class Found:
    """What the checks found.

    Attributes:
        weakens: of order, deduplication and wake-up, those that cannot be relied on.
        broken: promises that do not hold, one line each.
        stale_s: for how long a name that is gone goes on answering, in the slowest of the ways to ask.
        step_s: how coarse time stamps are.
    """

    stale_s: float
    step_s: float
    weakens: list[str]
    broken: list[str]
    verdicts: list[dict[str, Any]] = field(repr=False)

    @property
    def lease_s(self) -> float:
        """Return the shortest lease that is no nuisance: two times of a stale name, and some steps of the stamps."""
        return rounded_up(max(_LEAST_S, 2 * self.stale_s + 2 * self.step_s))


def look(a: Path, b: Path, say: Callable[[str], None]) -> Found:
    """Run them all; side B is a process of a second node."""

    def said(verdict: Verdict) -> None:
        say(f"{verdict.judgement}: {verdict.promise}: {verdict.text}")

    node = shlex.join(on_second_node(["sh", "-c"]))
    options = Options(refs=60, files=200, rounds=10, stale_limit_s=_STALE_LIMIT_S)
    report = verify(str(a), second_mount=str(b), peer=node, options=options, said=said)
    broken = [f"{verdict.promise}: {verdict.text}" for verdict in report.verdicts if verdict.broken]
    verdicts = [verdict.as_json() for verdict in report.verdicts]
    return Found(_stale_s(report.verdicts), step_s(a), list(report.weakens), broken, verdicts)


def _stale_s(verdicts: list[Verdict]) -> float:
    figures = next((verdict.figures for verdict in verdicts if verdict.promise == _GONE), {})
    return max((_STALE_LIMIT_S if seconds is None else float(seconds) for seconds in figures.values()), default=0.0)


def step_s(directory: Path) -> float:
    """Tell whether time stamps are cut to whole seconds."""
    path = directory / "stamped"
    path.touch()
    whole = 0
    for _ in range(_STAMPS):
        os.utime(path)
        whole += path.stat().st_mtime_ns % 1_000_000_000 == 0
        time.sleep(_PAUSE_S)
    path.unlink()
    return 1.0 if whole == _STAMPS else 0.01
