"""Virtual time, and who runs next: one actor at a time, switched at file operations only.

Actors are threads that hand one token on: an actor runs until it waits, and then the one whose time comes first
goes on. So a run depends on its plan alone.
"""

from __future__ import annotations

import heapq
import random
import threading
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from fsqueue.disk.fileops import CALLS, FileOps
from simulation.node import OpenFile, Process
from simulation.rules import Rules
from simulation.server import Server

if TYPE_CHECKING:
    from simulation.hearts import Pulse
    from simulation.plan import Fault

START_S = 1_700_000_000.0
CALL_LIMIT = 60_000
_POLLING_S = 0.2


class Died(BaseException):
    """The process is dead: none of its later operations happens."""


class Stuck(BaseException):
    """The run makes more calls than any run should."""


class Actor:
    """One thread of control: a process's, or the simulation's own."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.gate = threading.Lock()
        self.gate.acquire()


class World:
    """The server, the time, and the actors.

    Attributes:
        machines: all that ever were.
        trace: a line for each call, when it is wanted.
        overlaps: when two open files had the order lock at once; [from, to], to is None while they do.
        failures: errors that ended an actor.
    """

    def __init__(self, rules: Rules, traced: bool = False, most_calls: int = CALL_LIMIT) -> None:
        self.rules = rules
        self.most_calls = most_calls
        self.now = START_S
        self.server = Server(lambda: self.now, rules)
        self.trace: list[str] | None = [] if traced else None
        self.overlaps: list[list[float | None]] = []
        self.failures: list[BaseException] = []
        self.calls = 0
        self.machines: list[Machine] = []
        self._inside: set[OpenFile] = set()
        self._main = Actor(-1)
        self._due: list[tuple[float, int, Actor]] = []  # the actors that sleep, in the order in which they wake
        self._running = self._main

    def wait(self, seconds: float) -> None:
        """The running actor sleeps; others run meanwhile."""
        me = self._running
        heapq.heappush(self._due, (self.now + seconds, me.index, me))
        self._hand_on(me)

    def _hand_on(self, me: Actor | None) -> None:
        wakes_at, _, following = heapq.heappop(self._due)
        if wakes_at < inf:
            self.now = max(self.now, wakes_at)
        if following is me:
            return
        self._running = following
        following.gate.release()
        if me is not None:
            me.gate.acquire()

    def run(self, works: list[Callable[[], None]]) -> None:
        """Run these side by side, each as an actor; returns when all have ended."""
        actors = [Actor(index) for index in range(len(works))]
        threads = [
            threading.Thread(target=self._act, args=(actor, work), daemon=True)
            for actor, work in zip(actors, works, strict=True)
        ]
        self._due = [*((self.now, actor.index, actor) for actor in actors), (inf, self._main.index, self._main)]
        for thread in threads:
            thread.start()
        self._hand_on(self._main)
        for thread in threads:
            thread.join()

    def _act(self, actor: Actor, work: Callable[[], None]) -> None:
        actor.gate.acquire()
        try:
            work()
        except BaseException as error:
            self.failures.append(error)
        finally:
            self._hand_on(None)

    def pause_inside(self, process: Process) -> None:
        """Others run in the middle of a call."""
        self.wait(self.rules.latency_s)

    def say(self, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now - START_S:10.4f}  {text}")

    def entered(self, file: OpenFile) -> None:
        """An open file has the order lock."""
        self._inside.add(file)
        if len(self._inside) == 2:
            self.overlaps.append([self.now, None])
            self.say("two hold the order lock")

    def left(self, file: OpenFile) -> None:
        if file in self._inside:
            self._inside.remove(file)
            if len(self._inside) == 1:
                self.overlaps[-1][1] = self.now


class Machine:
    """The operating system as one process sees it: calls that take time, and the faults of its plan.

    Attributes:
        pulse: its heartbeat thread; None where it has none.
        stopped: it is, for now, since stopped_at.
    """

    def __init__(
        self, world: World, process: Process, name: str, skew_s: float, faults: list[Fault], rng: random.Random
    ) -> None:
        self.process = process
        self.name = name
        self.dead = False
        self.died_of: Fault | None = None
        self.calls = 0
        self.pulse: Pulse | None = None
        self.stopped = False
        self.stopped_at = 0.0
        self._world = world
        self._skew_s = skew_s
        self._faults = {fault.call: fault for fault in faults}
        self._rng = rng
        self._lock_refused = False
        self.ops = self._table()
        world.machines.append(self)

    def _table(self) -> FileOps:
        ops: Any = _SequentialOps()
        for name in CALLS:
            setattr(ops, name, partial(self._call, name, getattr(self.process, name)))
        ops.forget = partial(self._call, "forget", self.process.forget)
        ops.time = lambda: self._world.now + self._skew_s
        ops.monotonic = lambda: self._world.now - START_S + 1000.0
        ops.sleep = self._sleep
        ops.random = self._rng.random
        ops.filesystem_type = lambda path: self._world.rules.type
        ops.room = lambda fd: (1 << 40, 1 << 40)
        table: FileOps = ops
        return table

    def _sleep(self, seconds: float) -> None:
        """At least as long as asked; who polls the lock gets its turn less often, which saves the host's time."""
        if self.dead:
            raise Died
        seconds += _POLLING_S * self._rng.random() if self._lock_refused else 0.0
        until = self._world.now + seconds
        while self.pulse is not None and (due_s := self.pulse.due_in_s()) < until - self._world.now:
            self._world.wait(due_s)
            self.pulse.go_on()
        self._world.wait(seconds if self.pulse is None else max(0.0, until - self._world.now))

    def _call(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        world = self._world
        if self.dead:
            if name == "close":
                return None  # what its objects do when they are collected
            raise Died
        if self.pulse is not None and not self.pulse.due_in_s():
            self.pulse.go_on()
        self.calls += 1
        world.calls += 1
        if world.calls > world.most_calls:
            raise Stuck(f"more than {world.most_calls} calls")
        if self.calls in self._faults:
            self._suffer(self._faults[self.calls])
        world.server.caller = self.process.cache
        try:
            result = call(*args, **kwargs)
        except OSError as error:
            self._traced(name, args, kwargs, error)
            self._took(name, args, kwargs, error)
            raise
        self._traced(name, args, kwargs, result)
        self._lock_refused = name == "lock" and not result
        self._took(name, args, kwargs, result)
        return result

    def _took(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        """Spend the time that a call took."""
        hang_s, self.process.hang_s = self.process.hang_s, 0.0
        latency_s = self._world.rules.latency_s
        if hang_s or self._rng.random() < 0.4:
            self._world.wait(hang_s + self._rng.expovariate(1.0) * latency_s)

    def _suffer(self, fault: Fault) -> None:
        self._world.say(f"{self.name}  ** {fault.kind} {fault.seconds or ''} before call {self.calls}")
        if fault.kind == "pause":
            self.stopped, self.stopped_at = True, self._world.now
            self._world.wait(fault.seconds)
            self.stopped = False
            return
        self.dead, self.died_of = True, fault
        self.process.die(node_dies=fault.kind == "node")
        raise Died

    def _traced(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> None:
        if self._world.trace is not None:
            self._world.say(f"{self.name} {self.calls:4d} {self._described(name, args, kwargs)} -> {_short(result)}")

    def _described(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        folders = [self._folder(kwargs[key]) for key in ("dir_fd", "src_dir_fd", "dst_dir_fd") if kwargs.get(key)]
        words = [_short(arg) for arg in args]
        if words and isinstance(args[0], int):
            words[0] = self._folder(args[0])
        if folders:
            words = [f"{folder}/{word}" for folder, word in zip(folders, words, strict=False)] + words[len(folders) :]
        return " ".join([name, *words[:2]])

    def _folder(self, fd: int) -> str:
        file = self.process.files.get(fd)
        return self._world.server.name_of(file.inode) if file else f"fd{fd}"


class _SequentialOps(FileOps):
    """No threads of its own: everything happens in the actor's turn."""

    def each(self, work: Callable[[Any], None], items: list[Any], threads: int) -> None:
        for item in items:
            work(item)


def _short(value: object) -> str:
    if isinstance(value, OSError):
        return str(value.strerror)
    text = value if isinstance(value, str) else "" if callable(value) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
