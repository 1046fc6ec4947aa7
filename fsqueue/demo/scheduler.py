"""Do to a run's members what a scheduler does: kill them, or tell them to leave and start them again later.

--kill       one rollout and one trainer get SIGKILL, and are started again at once
--preempt    one after the other is preempted; each is started again after a delay, as the next attempt:

    SIGTERM -> it withdraws                     -> requeued -> started again -> back in its place
    SIGTERM -> its time of grace ends: SIGKILL  -> requeued -> ...
    SIGKILL at once                             -> requeued -> ...

A member that withdraws gives back what it leases; the leases of one that is killed come back since its process is gone.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from fsqueue.demo.crew import Crew, Process
from fsqueue.demo.options import DemoOptions, Kill, Preemption
from fsqueue.demo.report import Totals
from fsqueue.stream.stream import Stream

Say = Callable[[str], None]
How = Literal["asked", "hung", "killed"]

_LOOK_S = 0.3
_HANG_GRACE_S = 2.0


@dataclass(frozen=True)
class _Order:
    """Say what is done to one of the rollouts or trainers, once so much of their work is done.

    Attributes:
        how: asked to leave, asked to leave while it hangs, or killed at once.
    """

    kind: Literal["rollout", "trainer"]
    at: float
    how: How


PREEMPTIONS = (
    _Order("rollout", 0.1, "asked"),
    _Order("trainer", 0.15, "asked"),
    _Order("rollout", 0.4, "killed"),
    _Order("trainer", 0.45, "killed"),
    _Order("trainer", 0.7, "hung"),
)


class Killer:
    """Kill one rollout and one trainer in mid-run.

    Attributes:
        kills: what was done.
    """

    def __init__(self, options: DemoOptions, crew: Crew, totals: Totals, say: Say) -> None:
        self._options = options
        self._crew = crew
        self._totals = totals
        self._say = say
        self._random = random.Random(options.seed)
        self._began_at = time.monotonic()
        self._due = [self._rollout, self._trainer] if options.kill else []
        self.kills: list[Kill] = []

    def tick(self) -> None:
        for choose in list(self._due):
            if victim := choose():
                self._due.remove(choose)
                self._kill(victim)

    def _rollout(self) -> Process | None:
        """Choose a rollout, once a quarter of the chunks is captured."""
        due = len(self._totals.all_known) >= max(1, self._options.samples // 4)
        return _one_running(self._random, self._crew.rollouts) if due else None

    def _trainer(self) -> Process | None:
        """Choose a trainer that holds leases, once a quarter of all refs is trained."""
        due = len(self._totals.acked_by) >= max(1, self._options.total // 4)
        holding = [it for it in self._crew.trainers if self._totals.held[it.name]]
        return _one_running(self._random, holding) if due else None

    def _kill(self, victim: Process) -> None:
        pid, held = victim.pid, len(self._totals.held[victim.name])
        victim.kill()
        self.kills.append(Kill(victim.name, pid, round(time.monotonic() - self._began_at, 1), held))
        self._say(f"killed {victim.name}, pid {pid}, with {_leases(held)}")


class Scheduler:
    """Preempt one member after the other.

    Attributes:
        preemptions: what was done; the last one may still be going on.
    """

    def __init__(self, options: DemoOptions, crew: Crew, totals: Totals, stream: Stream, say: Say) -> None:
        self._options = options
        self._crew = crew
        self._totals = totals
        self._stream = stream
        self._say = say
        self._random = random.Random(options.seed)
        self._began_at = time.monotonic()
        self._orders = list(PREEMPTIONS) if options.preempt else []
        self._going_on: Iterator[None] | None = None
        self.preemptions: list[Preemption] = []

    def tick(self) -> None:
        """Go on with the preemption that is going on, or begin the next that is due."""
        self._going_on = self._going_on or self._next()
        if self._going_on is None:
            return
        try:
            next(self._going_on)
        except StopIteration:
            self._going_on = None

    def _next(self) -> Iterator[None] | None:
        for order in self._orders:
            done = len(self._totals.all_known if order.kind == "rollout" else self._totals.acked_by)
            if done >= max(1, int(order.at * self._options.total)) and (victim := self._victim(order)):
                self._orders.remove(order)
                return self._preempt(victim, order.how)
        return None

    def _victim(self, order: _Order) -> Process | None:
        if order.kind == "rollout":
            return _one_running(self._random, self._crew.rollouts)
        return _one_running(self._random, [it for it in self._crew.trainers if self._totals.held[it.name]])

    def _preempt(self, victim: Process, how: How) -> Iterator[None]:
        """Take one through its preemption, a look at a time."""
        told_at, attempt, held = time.monotonic(), victim.starts, len(self._totals.held[victim.name])
        self.preemptions.append(
            Preemption(victim.name, victim.pid, how, round(told_at - self._began_at, 1), held, attempt)
        )
        yield from self._put_out(victim, how, held)
        if not victim.was_killed():
            self._say(f"{victim.name} had come to its end")
            return
        self._say(f"{victim.name} is requeued, and starts again in {self._options.requeue_s:.0f} s")
        yield from _for(self._options.requeue_s)
        victim.held_back = False
        while victim.starts == attempt or not self._is_in_its_place(victim):
            if victim.finished:
                return
            yield from _for(_LOOK_S)
        away_s = time.monotonic() - told_at
        self.preemptions[-1] = replace(self.preemptions[-1], back_after_s=round(away_s, 1))
        self._say(f"{victim.name} is back in its place as attempt {victim.starts}, after {away_s:.1f} s")

    def _put_out(self, victim: Process, how: How, held: int) -> Iterator[None]:
        """End a process, with time to leave or without, and keep it from being started again at once."""
        victim.held_back = True
        who = f"{victim.name}, pid {victim.pid}" + (f", with {_leases(held)}" if held else "")
        if how == "killed":
            self._say(f"preempts {who}: SIGKILL at once")
        else:
            grace_s = _HANG_GRACE_S if how == "hung" else self._options.grace_s
            hangs = ", which hangs" if how == "hung" else ""
            self._say(f"preempts {who}{hangs}: SIGTERM, and {grace_s:.0f} s to leave")
            if how == "hung":
                victim.signal(signal.SIGSTOP)
            victim.signal(signal.SIGTERM)
            began_at = time.monotonic()
            while victim.running and time.monotonic() - began_at < grace_s:
                yield
            if not victim.running:
                left = "withdrew" if victim.withdrew else "ended"
                self._say(f"{victim.name} {left} after {time.monotonic() - began_at:.1f} s")
                return
            self._say(f"{victim.name} did not leave in time: SIGKILL")
        victim.kill()

    def _is_in_its_place(self, victim: Process) -> bool:
        return any(
            (member.record.name, member.record.process.pid, member.state) == (victim.name, victim.pid, "open")
            for member in self._stream.members()
        )


def _leases(held: int) -> str:
    return "1 lease" if held == 1 else f"{held} leases"


def _for(seconds: float) -> Iterator[None]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        yield


def _one_running(chance: random.Random, workers: list[Process]) -> Process | None:
    running = [worker for worker in workers if worker.running]
    return chance.choice(running) if running else None
