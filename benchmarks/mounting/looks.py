"""Run the checks between the two mounts: what weakens, and for how long an old name is believed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fsqueue import FsQueueError
from fsqueue.operate.doctor.advice import rounded_up
from fsqueue.operate.doctor.diagnosis import scratch_directory
from fsqueue.operate.doctor.peer import MODULE, PeerError, Peers
from mounting.namespaces import on_second_node
from verifying.files import file_checks
from verifying.leases import lease_checks
from verifying.queues import queue_checks
from verifying.sides import Options, Sides, start

_LOOKS = 3
_STALE_LIMIT_S = 40.0
_TICK_S = 0.02
_LEAST_S = 2.0
_SLOW_WAKE_MS = 250.0
_STAMPS = 5
_MARKS = {True: "holds", False: "FAILS", None: "info"}


@dataclass
class Found:
    """What the checks found.

    Attributes:
        weakens: of order, deduplication and wake-up, those that cannot be relied on.
        stale_s: for how long a name that is gone goes on answering.
        step_s: how coarse time stamps are.
        broken: promises that do not hold, one line each.
    """

    stale_s: float
    step_s: float
    weakens: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def lease_s(self) -> float:
        """Return the shortest lease that is no nuisance: two times of a stale name, and some steps of the stamps."""
        return rounded_up(max(_LEAST_S, 2 * self.stale_s + 2 * self.step_s))


def look(a: Path, b: Path, python: list[str], say: Callable[[str], None]) -> Found:
    """Run them all; side B is a process of a second node."""
    found = Found(stale_s=max(_stale_s(a, b, number) for number in range(_LOOKS)), step_s=step_s(a))
    say(f"an old name is believed for {found.stale_s:.2f} s, stamps move in steps of {found.step_s:g} s")
    with scratch_directory(str(a), ".fsqueue-mounts-") as scratch, Peers() as peers:
        there = str(b / os.path.basename(scratch))
        command = on_second_node([*python, "-m", MODULE])
        options = Options("flock", 60, 200, 10, 3.0)
        sides = Sides(
            scratch, start(peers, "A", scratch), start(peers, "B", there, command),
            lambda: start(peers, "victim", there, command), options,
        )  # fmt: skip
        for name, group in (("files", file_checks), ("queues", queue_checks), ("leases", lease_checks)):
            try:
                for verdict in group(sides):
                    found.verdicts.append(asdict(verdict))
                    say(f"{_MARKS[verdict.holds]} {verdict.promise}: {verdict.text}")
            except (OSError, PeerError, FsQueueError) as error:
                found.broken.append(f"{name}: {error}")
                say(f"FAILS {name}: {error}")
    _judge(found)
    return found


def _judge(found: Found) -> None:
    figures = {verdict["promise"]: verdict["figures"] for verdict in found.verdicts}
    if figures.get("FIFO", {}).get("out_of_place"):
        found.weakens.append("order")
    if figures.get("an id is queued once", {}).get("doubled"):
        found.weakens.append("deduplication")
    if figures.get("put to get", {}).get("median_ms", 0.0) > _SLOW_WAKE_MS:
        found.weakens.append("wake-up")


def _stale_s(a: Path, b: Path, number: int) -> float:
    """B knows a name and A moves it away: for how long stat on B goes on finding it."""
    old, new = f"stale-{number}", f"moved-{number}"
    (a / old).write_bytes(b"x")
    _wait(lambda: (b / old).exists())
    os.listdir(b)
    os.rename(a / old, a / new)
    waited_s = _wait(lambda: not (b / old).exists())
    (a / new).unlink()
    return waited_s


def _wait(condition: Callable[[], bool]) -> float:
    started = time.monotonic()
    while not condition() and time.monotonic() - started < _STALE_LIMIT_S:
        time.sleep(_TICK_S)
    waited_s = time.monotonic() - started
    return waited_s if waited_s > _TICK_S else 0.0


def step_s(directory: Path) -> float:
    """Tell whether time stamps are cut to whole seconds."""
    path = directory / "stamped"
    path.touch()
    whole = 0
    for _ in range(_STAMPS):
        os.utime(path)
        whole += path.stat().st_mtime_ns % 1_000_000_000 == 0
        time.sleep(_TICK_S)
    path.unlink()
    return 1.0 if whole == _STAMPS else 0.01
