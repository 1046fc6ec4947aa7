"""Train in generations of ranks that take each step together, each sample once into the surviving state.

One optimizer step is one all_reduce: the summed gradients, a count for every sample that went into them, and an
end-of-stream flag. A rank that has nothing contributes zeros, so ranks with unequal shares never wait for each other
for good. The counts add up in the training state and are saved with it: the state itself knows what it has seen.

    lease -> load -> all_reduce -> apply -> ack at this step -> (all acked) checkpoint

After a kill the surviving ranks keep their state and their leases, and hand the state to the rank that is started
again (agreement.py). A sample that is in the state and comes again is acknowledged, not trained. What was acked at a
step that no rank's state has reached is taken back, `rewind`: after the kill of a single rank that is at most one
step, after the kill of all of them everything since the last checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.demo_dir import Plan
from fsqueue.demo.draft import Frozen, draft_loss
from fsqueue.demo.generations import FinishedError, Generations
from fsqueue.demo.group import Group, PeerLostError
from fsqueue.demo.rank_queue import RankQueue
from fsqueue.demo.worker import Worker
from fsqueue.features import Batch, FeatureDataLoader, SharedDirFeatureStore
from fsqueue.records import SampleRef


class Trainer:
    """Works for one rank."""

    def __init__(self, worker: Worker, plan: Plan) -> None:
        self._worker = worker
        self._rank = worker.index
        self._ranks = plan.options.trainers
        self._checkpoint_every = plan.options.checkpoint_every_steps
        self._frozen = Frozen.load(worker.demo)
        self._state = TrainingState(plan)
        self._state.load(worker.demo)
        self._generations = Generations(worker.demo)
        self._queue = RankQueue(worker, self._state.has_seen, lambda: self._state.step)
        self._loader: FeatureDataLoader[SampleRef] = FeatureDataLoader(
            SharedDirFeatureStore(worker.demo.features),
            queue=self._queue,
            batch_size=plan.options.batch_size,
            ack="deferred",
        )
        self._batches = iter(self._loader)
        self._batch: Batch[SampleRef] | None = None  # leased and not trained; it survives the loss of a peer

    def run(self) -> None:
        """Train until the stream has ended, through as many generations as it takes."""
        generation, ended = 0, False
        while not ended:
            try:
                generation = self._generations.wait_for_peers(self._rank, self._ranks, generation, self._worker.parent)
            except FinishedError:
                break
            ended = self._run_generation(Group(self._rank, self._ranks, generation))
        self._loader.close()
        self._worker.journal.write("finished", step=self._state.step, note=self._state.digest())

    def _run_generation(self, group: Group) -> bool:
        """Train until the stream has ended (True) or a peer is lost (False)."""
        try:
            group.connect(self._generations)
            self._worker.journal.write("joined", step=self._state.step, note=f"generation {group.generation}")
            self._synchronise(group)
            while not self._step(group):
                self._worker.parent.check()
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
        self._drop_trained()
        if self._rank == 0:
            self._rewind(step)
        group.barrier()  # nobody may take the stream for ended before the refs are back

    def _drop_trained(self) -> None:
        """Samples of a batch whose step this rank did not live to see, though another rank took it, are done with.

        The others stay in hand: of a lease that was lost meanwhile, another rank trained that one sample alone.
        """
        if self._batch is None:
            return
        if seen := [sample_id for sample_id in self._batch.ids if self._state.has_seen(sample_id)]:
            self._loader.ack_ids(seen, step=self._state.step)
            self._batch = _without(self._batch, seen)

    def _rewind(self, step: int) -> None:
        """Take back acknowledgements of steps that no rank's state has reached, and settle what a dead process left.

        Leases are no obstacle: the other ranks' acks will carry steps that this generation takes.
        """
        before = self._worker.controller.store.acked_steps(self._worker.controller.store.all_committed_ids())
        self._worker.controller.rewind(after_step=step, force=True)
        if back := [sample_id for sample_id, at in before.items() if at is not None and at > step]:
            self._worker.journal.write("rewound", back, step=step)

    def _step(self, group: Group) -> bool:
        """Lease, and take one optimizer step together with all ranks; returns whether the stream has ended."""
        if self._batch is None:
            self._batch = self._next_batch()
        loss, ids = self._compute(), self._batch.ids if self._batch else []
        ended = float(self._batch is None and self._queue.ended())
        numbers = torch.tensor([loss, len(ids), ended])
        summed = torch.cat([self._state.gradient(), self._state.counts_of(ids), numbers])
        self._state.clear_gradient()
        group.sum(summed)
        total_loss, samples, ended = (float(value) for value in summed[-3:])
        if samples:
            self._state.apply(summed[:-3], samples)
            own_loss = loss / len(ids) if ids else None
            self._worker.journal.write(
                "step", ids, step=self._state.step, loss=own_loss, global_loss=total_loss / samples
            )
            self._settle(group)
        return ended > 0

    def _next_batch(self) -> Batch[SampleRef] | None:
        """Load the next batch; None where nothing came."""
        batch = next(self._batches, None)
        if batch is None:
            self._batches = iter(self._loader)
        return batch

    def _compute(self) -> float:
        """Leave the gradient of the batch's summed loss in the draft; returns that sum."""
        if self._batch is None:
            return 0.0
        features: dict[str, Tensor] = self._batch.features
        loss = draft_loss(self._state.draft, self._frozen, features["tokens"], features["hidden_state"])
        loss = loss * len(self._batch.refs)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def _settle(self, group: Group) -> None:
        """Ack what this step trained, and save the state where that is due.

        CRASH: a checkpoint is written once all ranks have acked what is in it, each at its step or an earlier one. So
        after the kill of all ranks, what was acked later is exactly what the checkpoint has not seen.
        """
        self._loader.ack(step=self._state.step)
        self._batch = None
        if self._state.step % self._checkpoint_every == 0:
            group.barrier()
            if self._rank == 0:
                self._state.save(self._worker.demo)

    def _finish(self, group: Group) -> None:
        """Write the last checkpoint; the others stay until it is there."""
        if self._rank == 0:
            self._state.save(self._worker.demo)
            self._generations.finish()
        group.barrier()


def _without(batch: Batch[SampleRef], ids: list[str]) -> Batch[SampleRef] | None:
    """Return the rest of a batch; None where nothing is left."""
    kept = [number for number, sample_id in enumerate(batch.ids) if sample_id not in ids]
    features = {name: tensor[kept] for name, tensor in batch.features.items()}
    return Batch([batch.refs[number] for number in kept], features) if kept else None
