"""One rank: SpecForge's `Trainer` for EAGLE-3 on the CPU, over the run's directory; it notes all that it trains on."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from specforge.algorithms.builtin import builtin_algorithm_registry
from specforge.optimizer import BF16Optimizer

from fsqueue.integrations.specforge import SharedFeatureStore, build_online_consumer, channel
from specforging.model import target_head, training_model
from specforging.settings import RUN_ID, Generation, Settings

_COLLECTIVES_S = 60.0


class Notes:
    """Write down each micro-batch before the next one, and die where that is planned.

    Args:
        train_step: the trainer's own.
    """

    def __init__(self, trainer: Any, settings: Settings, generation: Generation, rank: int) -> None:
        self._trainer = trainer
        self._train_step = trainer.core.train_step
        self._about = {"generation": generation.number, "rank": rank}
        self._dies_at = generation.dying.get(str(rank))
        path = settings.at(f"trained-{generation.number}-{rank}.jsonl")
        self._file = open(path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115  # for as long as the process lives

    def __call__(self, batch: Any, ctx: Any = None) -> Any:
        result = self._train_step(batch, ctx)
        step = self._trainer.global_step + 1
        line = {"step": step, "ids": batch.sample_ids, "loss": float(result.loss)}
        self._file.write(json.dumps(self._about | line) + "\n")
        if step == self._dies_at:
            os.kill(os.getpid(), signal.SIGKILL)  # inside the window: the optimizer has not stepped
        return result


def main() -> None:
    settings, generation = Settings(**json.loads(sys.argv[1])), Generation(**json.loads(sys.argv[2]))
    rank, resumed = int(sys.argv[3]), generation.resume_from
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{settings.at(f'rendezvous-{generation.number}')}",
        rank=rank,
        world_size=generation.world,
        timeout=timedelta(seconds=_COLLECTIVES_S),
    )
    checkpoints = settings.at("checkpoints")
    trainer = build_online_consumer(
        algorithm=builtin_algorithm_registry().resolve("eagle3"),
        channel=channel(settings.run, restart_s=settings.restart_s),
        feature_store=SharedFeatureStore(settings.features, retain_on_release=True),
        draft_model=training_model(),
        target_head=target_head(settings.at("target")),
        optimizer_factory=partial(BF16Optimizer, lr=1e-2, total_steps=100),
        run_id=RUN_ID,
        output_dir=str(checkpoints),
        batch_size=settings.batch,
        accumulation_steps=settings.accumulation,
        total_steps=100,
        save_interval=settings.save_interval,
        resume_from=None if resumed is None else str(checkpoints / f"{RUN_ID}-step{resumed}"),
    )
    trainer.core.train_step = Notes(trainer, settings, generation, rank)
    print(f"rank {rank}: trained up to step {trainer.fit()}", flush=True)


if __name__ == "__main__":
    main()
