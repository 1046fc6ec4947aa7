"""A trainer process: one data-parallel rank that leases refs, trains the draft on them, and acks each at its step.

    python -m fsqueue.demo.trainer DIR --index RANK --start N [--parent PID]

Every rank leases from its own partition of the ids. One optimizer step is one all_reduce of the summed gradients, the
number of samples behind them and an end-of-stream flag; a rank that has nothing contributes zeros, so ranks with
unequal shares never wait for each other for good. The stream has ended when the queue's counts say that as many refs
are done or failed as the plan has; an empty listing says nothing.

After a kill the surviving ranks keep their weights and their leases, and hand the weights to the rank that is started
again (rendezvous.py). Where all ranks died, they go back to the last checkpoint, and refs that were acked at a later
step are put back: the step is in their name in done/.
"""

from __future__ import annotations

import time
from contextlib import closing

import torch
from torch import Tensor

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.directory import DemoDirectory, Parent, Plan, worker_arguments
from fsqueue.demo.draft import Frozen, draft_loss
from fsqueue.demo.features import FeatureError, FeatureMissingError, FeatureStore
from fsqueue.demo.group import Group, PeerLostError
from fsqueue.demo.journal import Journal
from fsqueue.demo.rendezvous import FinishedError, Rendezvous

_MAX_ATTEMPTS = 5
_WAIT_S = 0.2
_FILL_S = 3.0
_PAUSE_S = 0.05


class Trainer:
    """One rank's work.

    Attributes:
        held: refs that are leased and not trained yet; they survive the loss of a peer.
    """

    def __init__(
        self, demo: DemoDirectory, plan: Plan, rank: int, queue: FileSampleRefQueue[SampleRef], journal: Journal
    ) -> None:
        self._demo = demo
        self._plan = plan
        self._rank = rank
        self._queue = queue
        self._journal = journal
        self._store = FeatureStore(demo.features)
        self._frozen = Frozen.load(demo)
        self._state = TrainingState(plan)
        self._state.load(demo)
        self._rendezvous = Rendezvous(demo)
        self._ranks = plan.options.trainers
        self.held: list[SampleRef] = []

    def run(self, parent: Parent) -> None:
        """Train until the stream has ended, through as many generations as it takes."""
        generation, ended = 0, False
        while not ended:
            try:
                generation = self._rendezvous.wait_for_peers(self._rank, self._ranks, generation, parent)
            except FinishedError:
                break
            ended = self._run_generation(Group(self._rank, self._ranks, generation), parent)
        self._journal.write("finished", step=self._state.step, note=self._state.digest())

    def _run_generation(self, group: Group, parent: Parent) -> bool:
        """Train until the stream has ended (True) or a peer is lost (False)."""
        try:
            group.connect(self._rendezvous)
            self._journal.write("joined", step=self._state.step, note=f"generation {group.generation}")
            self._synchronise(group)
            while not self._step(group):
                parent.check()
            self._finish(group)
            return True
        except PeerLostError:
            self._state.clear_gradient()
            return False
        finally:
            group.leave()

    def _synchronise(self, group: Group) -> None:
        """Give every rank the state of the one that has come furthest; equal steps mean equal states."""
        steps = torch.zeros(self._ranks, dtype=torch.float64)
        steps[self._rank] = self._state.step
        group.sum(steps)
        step, source = int(steps.max()), int(steps.argmax())
        if step != int(steps.min()):
            flat = self._state.flatten()
            group.broadcast(flat, source)
            self._state.restore(flat, step)
        if self._rank == 0:
            self._rewind(step)
        group.barrier()  # nobody may take the stream for ended before the refs are back

    def _rewind(self, step: int) -> None:
        """Put back refs that were acked at a step later than any rank's weights have: their step is lost.

        Leases are no obstacle: the other ranks' acks will carry steps that this generation takes.
        """
        back = self._queue.rewind(after_step=step, force=True)
        if back:
            self._journal.write("rewound", back, step=step)

    def _step(self, group: Group) -> bool:
        """Lease, and take one optimizer step together with all ranks; returns whether the stream has ended."""
        self._gather()
        batch = self._load()
        loss = self._compute(batch)
        summed = torch.cat([self._state.gradient(), torch.tensor([loss, len(batch), self._stream_ended()])])
        self._state.clear_gradient()
        group.sum(summed)
        gradient = summed[:-3]
        loss_sum, samples, ended = (float(value) for value in summed[-3:])
        if samples:
            self._state.apply(gradient / samples)
            own_loss = loss / len(batch) if batch else None
            ids = [ref.sample_id for ref in self.held]
            self._journal.write("step", ids, step=self._state.step, loss=own_loss, global_loss=loss_sum / samples)
            self._settle()
        return ended > 0

    def _gather(self) -> None:
        """Lease a batch: wait until it is full, for as long as more may come soon."""
        deadline = time.monotonic() + _FILL_S
        while len(self.held) < self._plan.options.batch_size:
            partition = (self._rank, self._ranks)
            leased = self._queue.get(self._plan.options.batch_size - len(self.held), _WAIT_S, partition=partition)
            if leased:
                self._journal.write("delivered", [ref.sample_id for ref in leased])
                self.held += leased
            elif time.monotonic() > deadline or self._nothing_to_come():
                return
            else:
                time.sleep(_PAUSE_S)  # a partitioned get does not wait while other ranks' refs are pending

    def _nothing_to_come(self) -> bool:
        counts = self._queue.counts()
        return counts.pending == 0 and counts.leased + counts.done + counts.failed >= self._plan.total

    def _stream_ended(self) -> bool:
        if self.held:
            return False
        counts = self._queue.counts()
        return counts.done + counts.failed >= self._plan.total

    def _load(self) -> list[dict[str, Tensor]]:
        """The features of the held refs; refs whose features cannot be had are failed and no longer held."""
        loaded: list[dict[str, Tensor]] = []
        for ref in list(self.held):
            try:
                loaded.append(self._store.read(ref))
            except (FeatureMissingError, FeatureError) as error:
                self._queue.fail([ref], str(error), retryable=isinstance(error, FeatureMissingError))
                self._journal.write("failed", [ref.sample_id], note=str(error))
                self.held.remove(ref)
        return loaded

    def _compute(self, batch: list[dict[str, Tensor]]) -> float:
        """Leave the gradient of the batch's summed loss in the draft; returns that sum."""
        if not batch:
            return 0.0
        tokens = torch.stack([features["tokens"] for features in batch])
        hidden = torch.stack([features["hidden_state"] for features in batch])
        loss = draft_loss(self._state.draft, self._frozen, tokens, hidden) * len(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _settle(self) -> None:
        """Checkpoint where it is due, and ack what this step trained.

        CRASH: before the ack, the refs are delivered again; they were trained, and will be once more.
        """
        step = self._state.step
        if self._rank == 0 and step % self._plan.options.checkpoint_every_steps == 0:
            self._state.save(self._demo)
        if self.held:
            lost = self._queue.ack(self.held, step=step)
            self._journal.write("acked", [r.sample_id for r in self.held if r.sample_id not in lost], step=step)
            if lost:
                self._journal.write("lease_lost", lost, step=step)
        self.held = []

    def _finish(self, group: Group) -> None:
        """Write the last checkpoint; the others stay until it is there."""
        if self._rank == 0:
            self._state.save(self._demo)
            self._rendezvous.finish()
        group.barrier()


def main() -> None:
    arguments = worker_arguments("trainer")
    demo, parent = DemoDirectory(arguments.directory), Parent(arguments.parent)
    plan = parent.wait_for_plan(demo)
    name = f"trainer-{arguments.index}"
    heartbeat_s = plan.options.lease_timeout_s / 5
    with (
        closing(Journal(demo.log, name, arguments.start)) as journal,
        FileSampleRefQueue(demo.queue, owner=name, heartbeat_s=heartbeat_s, max_attempts=_MAX_ATTEMPTS) as queue,
    ):
        Trainer(demo, plan, arguments.index, queue, journal).run(parent)


if __name__ == "__main__":
    main()
