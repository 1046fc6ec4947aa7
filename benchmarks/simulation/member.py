"""A member of a run's stream: joins, works, dies or leaves, and is started again by its scheduler."""

from __future__ import annotations

import random
from typing import Any

from fsqueue import (
    FileSampleRefQueue,
    MemberFailedError,
    MemberReplacedError,
    QueueConfigError,
    SampleRef,
    StreamEndedError,
    StreamStalledError,
    TrainerView,
)
from fsqueue.disk.fileops import using
from fsqueue.errors import FsQueueError
from fsqueue.stream.membership import Membership
from simulation.cache import Cache
from simulation.hearts import Hearts
from simulation.node import Process
from simulation.plan import LEASE_S
from simulation.script import QUEUE, make_ref
from simulation.stream_plan import BEAT_S, Part, StreamPlan
from simulation.truth import Truth
from simulation.world import Died, Machine, World

_REQUEUE_S = (0.5, 8.0)
_REBOOT_S = (8.0, 16.0)
_STARTS = 12
_BATCH = 2
_LOOK_S = 0.5


class Preempted(SystemExit):
    """What a handler of SIGTERM raises."""


class MemberScript:
    """Runs one member, start after start.

    Args:
        instead_of: whose place it takes while that one is stopped, or at work; None: it has a place of its own.
    """

    def __init__(
        self,
        world: World,
        plan: StreamPlan,
        part: Part,
        truth: Truth,
        hearts: Hearts,
        instead_of: MemberScript | None = None,
    ) -> None:
        self.name = part.name if instead_of is None else f"{part.name}-understudy"
        self.errors: list[FsQueueError] = []
        self.ended: str | None = None
        self.stopped = False
        self.starts = 0
        self._world = world
        self._plan = plan
        self._part = part
        self._truth = truth
        self._hearts = hearts
        self._instead_of = instead_of
        self._rng = random.Random(f"{plan.seed}/{self.name}")
        self._faults = [] if instead_of else sorted(part.faults, key=lambda fault: fault.call)
        self._withdraws = [] if instead_of else list(part.withdraws)
        self._handled = 0
        self._taken_over = False
        self._has_joined = False
        self._cache = self._new_cache()
        self._machine: Machine | None = None

    def _new_cache(self) -> Cache:
        return Cache(self._world.server, self._world.rules, lambda: self._world.now, self._rng)

    @property
    def is_stopped(self) -> bool:
        return self._machine is not None and self._machine.stopped

    def was_stopped_all_along(self, since: float) -> bool:
        return self._machine is not None and self._machine.stopped and self._machine.stopped_at <= since

    def run(self) -> None:
        if self._instead_of is not None and not self._wait_for_its_cue(self._instead_of):
            self.ended = "was not needed"
            return
        while self.ended is None:
            self.starts += 1
            if self.starts > _STARTS:
                self._truth.problems.append(f"started too often: {self.name}: {self.errors[-1:]}")
                self.ended = "was given up"
                break
            self.ended = self._live()
            self._truth.moved()
        if not self._taken_over:
            self._truth.at_work.pop(self._part.name, None)
            self._truth.ended.add(self._part.name)
        self._world.say(f"{self.name}  == {self.ended}")

    def _wait_for_its_cue(self, other: MemberScript) -> bool:
        while not (self._handled_enough(other) if other._part.twin_after else other.is_stopped):
            if other.ended is not None or self._truth.is_over:
                return False
            self._world.wait(_LOOK_S)
        if other._part.name not in self._truth.at_work:
            return False  # it is stopped before it has joined, or about to be started again
        self.starts = other.starts
        other._taken_over = True
        return True

    @staticmethod
    def _handled_enough(other: MemberScript) -> bool:
        return other._handled >= other._part.twin_after

    def _live(self) -> str | None:
        """Run one process; returns how the member ended for good, None where it is started again."""
        began_at = self._world.now
        self._machine = self._boot()
        try:
            with using(self._machine.ops):
                queue = self._open()
            self._work(queue)
            return "came to its end"
        except Died:
            return self._died()
        except Preempted:
            self._truth.withdrawals += 1
            return self._is_gone() or self._after_a_while()
        except MemberReplacedError as error:
            if not self._taken_over and self._instead_of is None:
                self._truth.problems.append(f"replaced by nobody: {error}")
            return "was replaced"
        except MemberFailedError as error:
            self._truth.judge_error(error, error.member, self._plan.await_s)
            self._truth.gone[self._part.name] = self._world.now  # and others may end because of that
            return "somebody is missing"
        except StreamEndedError as error:
            if not self._plan.has_losses:
                self._truth.problems.append(f"called over: {error}")
            return "all consumers have left"
        except StreamStalledError as error:
            self.errors.append(error)
            others = [part.name for part in self._plan.of("rank") if part is not self._part]
            return "came back too late" if self._truth.ended.issuperset(others) else self._after_a_while()
        except QueueConfigError as error:
            other = self._instead_of
            if other.was_stopped_all_along(began_at) if other is not None else not self._taken_over:
                self._truth.problems.append(f"refused: {error}")
            if other is not None and not self._has_joined:
                other._taken_over = False
            self._truth.refusals += 1
            return "was refused, since the other one lives"
        except FsQueueError as error:
            self._world.say(f"{self.name}  !! {error}")
            self.errors.append(error)
            return self._after_a_while()

    def _boot(self) -> Machine:
        machine = Machine(
            self._world,
            Process(self._world, self._cache, self._rng),
            self.name,
            self._part.skew_s,
            self._faults,
            self._rng,
        )
        self._hearts.run_in(machine, self._truth.beaten)
        self._world.say(f"{self.name}  -- start {self.starts}")
        return machine

    def _died(self) -> str | None:
        """Kernel and caches outlive a process; a node that lost power comes back with nothing."""
        fault = self._machine.died_of if self._machine else None
        if fault is None:
            return "was cut off"
        self._faults = [later for later in self._faults if later.call > fault.call]
        if gone := self._is_gone():
            return gone
        if fault.kind == "node":
            self._cache = self._new_cache()
            self._world.wait(self._rng.uniform(*_REBOOT_S))
        return self._after_a_while()

    def _is_gone(self) -> str | None:
        """Tell how one ended that never comes back; whoever had not joined yet does: nobody would miss it."""
        had_joined = self._truth.at_work.pop(self._part.name, None) is not None
        if not (self._part.gone and had_joined):
            return None
        self._truth.gone[self._part.name] = self._world.now
        return "is gone for good"

    def _after_a_while(self) -> str | None:
        """Wait as a scheduler lets a job wait that it has requeued; None: it is started again then."""
        if self._taken_over:
            return "was taken over"
        self._truth.at_work.pop(self._part.name, None)
        if self._machine is not None:
            self._machine.dead = True
        self._world.wait(self._rng.uniform(*_REQUEUE_S))
        return None

    def _open(self) -> FileSampleRefQueue[SampleRef]:
        return FileSampleRefQueue(
            QUEUE,
            owner=self.name,
            durable=False,
            heartbeat_s=BEAT_S,
            lock=self._plan.lock,
            lease_timeout_s=LEASE_S,
            poll_interval_s=_LOOK_S,
            max_deliveries=None,
        )

    def _work(self, queue: FileSampleRefQueue[SampleRef]) -> None:
        facts: dict[str, Any] = {"attempt": self.starts} if self._part.proof else {}
        if self.starts > 1:
            self._truth.successions += 1
        if self._part.role == "rank":
            self._train_in_step(queue, facts)
            return
        since = self._world.now
        join = queue.producer if self._part.role == "producer" else queue.consumer
        with join(self._part.name, expected=len(self._plan.of(self._part.role)), **facts) as member:
            self._joined(member, since)
            if self._part.role == "producer":
                self._produce(queue)
            else:
                self._consume(queue, member)

    def _joined(self, member: Membership, since: float) -> None:
        self._has_joined = True
        self._truth.joined(member, since)

    def _produce(self, queue: FileSampleRefQueue[SampleRef]) -> None:
        there = queue.states(self._part.ids)
        for sample_id in self._part.ids:
            if sample_id not in there:
                self._spend(3.0 / self._plan.high)
                self._truth.put.add(sample_id)
                queue.put_when_below([make_ref(sample_id)], high=self._plan.high)
                self._truth.moved()
                self._leave_if_told()
        self._truth.closed.add(self._part.name)

    def _consume(self, queue: FileSampleRefQueue[SampleRef], member: Membership) -> None:
        while True:
            refs = queue.get(_BATCH, timeout_s=2.0)
            member.raise_if_replaced()
            self._look_around(queue)
            if refs:
                self._train(refs, queue.ack)
            elif self._has_ended(queue):
                return

    def _has_ended(self, queue: FileSampleRefQueue[SampleRef]) -> bool:
        queue.stream().raise_failures("producer")
        if not queue.drained():
            return False
        self._truth.judge_end([part.name for part in self._plan.of("producer")], self._plan.quorum)
        return True

    def _train_in_step(self, queue: FileSampleRefQueue[SampleRef], facts: dict[str, Any]) -> None:
        """One rank, as fsqueue/recipes/trainer.py is; what is no full batch for all, the first one trains alone."""
        since, ranks = self._world.now, self._plan.of("rank")
        rank = ranks.index(self._part)
        partition = (rank, len(ranks)) if len(ranks) > 1 else None
        with TrainerView(queue, partition=partition, batch=_BATCH, session="trainer", **facts) as view:
            self._joined(view._membership, since)
            while refs := view.get():
                self._look_around(queue)
                self._train(refs, view.ack)
            while rank == 0 and not self._has_ended(queue):
                if rest := queue.get(_BATCH, timeout_s=2.0):
                    self._train(rest, queue.ack)

    def _train(self, refs: list[SampleRef], ack: Any) -> None:
        self._spend(1.0)
        ids = [ref.sample_id for ref in refs]
        self._truth.acking.update(ids)
        lost = ack(refs)
        for sample_id in ids:
            if sample_id not in lost:
                self._truth.has_trained(sample_id, f"{self.name} (start {self.starts})")
        self._truth.moved()
        self._leave_if_told()

    def _look_around(self, queue: FileSampleRefQueue[SampleRef]) -> None:
        since = self._world.now
        self._truth.judge_standings(queue.stream().members(), since)

    def _spend(self, seconds: float) -> None:
        assert self._machine is not None
        self._machine.ops.sleep(seconds * self._rng.uniform(0.2, 1.8))

    def _leave_if_told(self) -> None:
        self._handled += 1
        if self._withdraws and self._handled >= self._withdraws[0]:
            self._withdraws.pop(0)
            self._truth.leaves(self._part.name)
            raise Preempted("preempted")
