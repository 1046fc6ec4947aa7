"""One run of a stream's plan, and what came of it.

Checked are: the stream ends only when it may; nobody who lives and beats is called silent or missing; no sample is
trained by two who both hold it; each member ends by itself, in the time that the policy gives after the last thing that
anybody did or that befell anybody; and where all came back, each sample is done once, and nothing is damaged. (Of
ranks that train in step, one that comes back after the others had come to the end leaves the rest to a later run.)
"""

from __future__ import annotations

import random
import warnings
from collections import Counter
from dataclasses import dataclass, field
from unittest import mock

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.disk.fileops import using
from fsqueue.errors import FsQueueError
from fsqueue.format import names
from fsqueue.operate.check import check_queue
from history.recording import Log
from simulation.cache import Cache
from simulation.hearts import Hearts
from simulation.member import MemberScript
from simulation.node import Process
from simulation.observer import Observer
from simulation.plan import LEASE_S
from simulation.rules import DEAD_NODE_LOCK_S
from simulation.run import deterministic
from simulation.script import QUEUE
from simulation.stream_plan import LONG_AWAIT_S, SILENCE_S, StreamPlan
from simulation.truth import Truth
from simulation.world import Machine, World

_SLACK_S = 60.0
_MOST_CALLS = 300_000


@dataclass
class StreamOutcome:
    """What came of a run: problems must be empty.

    Attributes:
        ends: how members ended, and how often each of these ends came.
    """

    plan: StreamPlan
    problems: list[str]
    ends: Counter[str]
    successions: int = 0
    withdrawals: int = 0
    trained: int = 0
    calls: int = 0
    trace: list[str] = field(default_factory=list)


def run_stream(plan: StreamPlan, traced: bool = False) -> StreamOutcome:
    """Run a plan from an empty server until all members have ended, and check it."""
    hearts = Hearts()
    with deterministic(), mock.patch("fsqueue.engine.heartbeat.heartbeats", hearts), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        this = _Run(plan, hearts, traced)
        try:
            return this.outcome()
        finally:
            this.end()


class _Run:
    def __init__(self, plan: StreamPlan, hearts: Hearts, traced: bool) -> None:
        self._plan = plan
        self._world = world = World(plan.rules, traced, _MOST_CALLS)
        self._observer = Observer(world, Log(lambda line: None, lambda: world.now))
        self._truth = Truth(world, self._observer)
        self._scripts: list[MemberScript] = []
        for part in plan.parts:
            script = MemberScript(world, plan, part, self._truth, hearts)
            self._scripts.append(script)
            if part.understudy or part.twin_after:
                self._scripts.append(MemberScript(world, plan, part, self._truth, hearts, instead_of=script))

    def outcome(self) -> StreamOutcome:
        world, plan, truth = self._world, self._plan, self._truth
        world.say(f"mount {plan.rules.describe()}")
        world.rules = plan.rules.on_a_good_day()
        self._create()
        world.rules = plan.rules
        world.run([script.run for script in self._scripts] + [self._watch])
        problems = [f"{type(error).__name__}: {error}" for error in world.failures] + truth.problems
        if not problems:
            problems += self._left_over()
        ends = Counter(script.ended or "did not end" for script in self._scripts)
        return StreamOutcome(
            plan,
            problems,
            ends,
            truth.successions,
            truth.withdrawals,
            len(truth.trained),
            world.calls,
            world.trace or [],
        )

    def end(self) -> None:
        """Nothing that is left of this run makes calls any more."""
        self._truth.is_over = True
        for machine in self._world.machines:
            machine.dead = True

    def _machine(self, name: str) -> Machine:
        rng = random.Random(f"{self._plan.seed}/{name}")
        cache = Cache(self._world.server, self._world.rules, lambda: self._world.now, rng)
        return Machine(self._world, Process(self._world, cache, rng), name, 0.0, [], rng)

    def _create(self) -> None:
        with using(self._machine("creator").ops):
            queue = FileSampleRefQueue[SampleRef](QUEUE, lease_timeout_s=LEASE_S, durable=False, lock=self._plan.lock)
        queue.configure_stream(
            silence_s=SILENCE_S, await_s=self._plan.await_s, restart_s=LONG_AWAIT_S, quorum=self._plan.quorum
        )
        queue.close()

    def _watch(self) -> None:
        """Stop the run where nothing has happened for longer than the policy lets anybody wait."""
        longest_s = SILENCE_S + LEASE_S + DEAD_NODE_LOCK_S + _SLACK_S
        if self._plan.has_losses or self._plan.in_step:
            longest_s += self._plan.await_s
        while any(script.ended is None for script in self._scripts):
            self._world.wait(1.0)
            if self._world.now - self._truth.moved_at > longest_s:
                waiting = [script.name for script in self._scripts if script.ended is None]
                self._truth.problems.append(
                    f"not over: {', '.join(waiting)}, {longest_s:.0f} s after anything happened"
                )
                self.end()
                return

    def _left_over(self) -> list[str]:
        """What is done is what was acked, once; where all came to their end, that is everything that was put."""
        truth = self._truth
        done = Counter(parsed[0] for name in self._observer.entries("done") if (parsed := names.parse_done(name)))
        problems = [f"done {number} times: {stem}" for stem, number in done.items() if number > 1]
        problems += [f"done, and acked by nobody: {stem}" for stem in done if stem not in truth.acking]
        problems += [f"trained, and not done: {stem}" for stem in truth.trained if not done[stem]]
        if not (self._plan.has_losses or self._plan.in_step):
            wanted = {sample_id for part in self._plan.parts for sample_id in part.ids}
            problems += [f"not trained: {stem}" for stem in sorted(wanted - set(done))]
        return problems + self._damage()

    def _damage(self) -> list[str]:
        self._world.rules = self._plan.rules.on_a_good_day()
        try:
            with using(self._machine("check").ops):
                found = [violation for violation in check_queue(QUEUE) if violation.kind != "torn"]
        except FsQueueError as error:
            return [f"check: {type(error).__name__}: {error}"]
        return [f"damage {violation.kind}: {violation.path}: {violation.problem}" for violation in found]
