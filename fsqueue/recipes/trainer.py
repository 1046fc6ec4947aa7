"""Train in step with the other ranks; stopped or killed anywhere, and started again, go on from the checkpoint.

    python trainer.py RUN [--batch B]

Edit `train`, `save` and `load`. All ranks start again together, in the same number or another; rank and number come
from torchrun or Slurm. The order makes it exact: train, ack, and save once all ranks have acked. What was acked after
the last checkpoint is put back when the ranks start again.
"""

import argparse
import json
import os
import time
import warnings
from pathlib import Path

from sample import Sample

from fsqueue import FileSampleRefQueue, TrainerView
from fsqueue.stream.view import PartialWindowWarning


def train(run: Path, step: int, rank: int, samples: list[Sample]) -> None:
    """Make one optimizer step; here, what this rank has learnt at it is a file, its shard of the checkpoint."""
    time.sleep(float(os.environ.get("TRAIN_S", "0.1")))
    shard = run / "trained" / f"{step:06d}-{rank}.json"
    shard.parent.mkdir(exist_ok=True)
    write(shard, [sample.sample_id for sample in samples])


def save(run: Path, step: int) -> None:
    """Make the shards up to this step the checkpoint."""
    write(run / "checkpoint.json", {"step": step})


def load(run: Path) -> int:
    """Return the step of the last checkpoint; 0 where there is none."""
    file = run / "checkpoint.json"
    return int(json.loads(file.read_text())["step"]) if file.exists() else 0


def forget_after(run: Path, step: int) -> None:
    """Remove the shards of steps that the checkpoint does not have."""
    for shard in (run / "trained").glob("*.json"):
        if int(shard.name.partition("-")[0]) > step:
            shard.unlink()


def write(file: Path, content: object) -> None:
    """Replace a file in one step, so that a kill leaves the one before or this one."""
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(json.dumps(content))
    os.replace(unfinished, file)


def acked_or_again(lost: list[str]) -> None:
    """Leave, to start again from the checkpoint, where others have got samples that this rank has just learnt."""
    if lost:
        print(f"lost the leases of {lost}", flush=True)
        raise SystemExit(143)


def launched(*names: str) -> int | None:
    """Return the first of these variables that the launcher has set."""
    return next((int(os.environ[name]) for name in names if name in os.environ), None)


def train_all(run: Path, queue: FileSampleRefQueue[Sample], view: TrainerView[Sample], rank: int, batch: int) -> None:
    """Train as one rank from the last checkpoint to the end of the stream.

    The ranks before these are gone by now, and none of these passes its first get before rank 0 comes to its own.
    """
    step = load(run)
    if rank == 0:
        forget_after(run, step)
        queue.rewind(after_step=step, force=True)
    print(f"rank {rank}: goes on after step {step}", flush=True)
    while samples := view.get():
        if rank == 0:
            save(run, step)  # all ranks have come here, so all have acked this step
        step += 1
        train(run, step, rank, samples)
        acked_or_again(view.ack(samples, step=step))
    while rank == 0 and not queue.drained():  # the rest, which is no full batch for every rank
        save(run, step)
        if samples := queue.get(batch, timeout_s=1.0):
            step += 1
            train(run, step, rank, samples)
            acked_or_again(queue.ack(samples, step=step))
    if rank == 0:
        save(run, step)
    print(f"rank {rank}: done after step {step}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--attempt", type=int, help="as of rollout.py")
    given = parser.parse_args()
    rank = launched("RANK", "SLURM_PROCID") or 0
    world = launched("WORLD_SIZE", "SLURM_NTASKS") or 1
    # Only prepare.py creates: where this node lacks the share, a second queue would be made beside it.
    queue = FileSampleRefQueue(given.run / "queue", ref_type=Sample, heartbeat_s=5, create=False)
    warnings.simplefilter("ignore", PartialWindowWarning)
    with TrainerView(
        queue, partition=(rank, world), batch=given.batch, attempt=given.attempt, on_sigterm="withdraw"
    ) as view:
        train_all(given.run, queue, view, rank, given.batch)


if __name__ == "__main__":
    main()
