"""Run rollouts and trainers as Ray actors, which Ray starts again where one is killed.

    python ray_actors.py RUN [--rollouts N] [--ranks W] [--samples K]

The work is that of rollout.py and trainer.py, which lie beside this file; the nodes share RUN, in which prepare.py has
made the queue.
"""

import argparse
from pathlib import Path

import ray
import rollout
import trainer
from sample import Sample

from fsqueue import FileSampleRefQueue
from fsqueue.integrations.ray import QueueActor

BATCH = 4


class Rollout(QueueActor[Sample]):
    """A rollout; Ray starts it again by itself, and calls `work` again."""

    def __init__(self, queue: FileSampleRefQueue[Sample], index: int, rollouts: int) -> None:
        super().__init__(queue)
        self.name = f"rollout-{index}"
        self.join_as_producer(self.name, expected=rollouts)

    def work(self, samples: int) -> None:
        with self.member:
            rollout.put_rest(self.queue, self.name, samples)


class Trainer(QueueActor[Sample]):
    """One rank; the driver makes all ranks anew where one of them is gone."""

    def __init__(self, queue: FileSampleRefQueue[Sample], rank: int, world: int) -> None:
        super().__init__(queue)
        self.rank = rank
        self.join_as_rank(rank, world, batch=BATCH)

    def work(self, run: Path) -> None:
        with self.view:
            trainer.train_all(run, self.queue, self.view, self.rank, BATCH)


def train(queue: FileSampleRefQueue[Sample], run: Path, world: int) -> None:
    """Run all ranks, again and again, until they come to the end."""
    actor = ray.remote(Trainer)
    while True:
        ranks = [actor.options(name=f"trainer-{rank}").remote(queue, rank, world) for rank in range(world)]
        try:
            ray.get([rank.work.remote(run) for rank in ranks])
            return
        except ray.exceptions.RayActorError as error:
            print(f"a rank is gone, all start again: {error}", flush=True)
        finally:
            for rank in ranks:
                ray.kill(rank)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rollouts", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=100)
    given = parser.parse_args()
    run = given.run.absolute()
    # Only prepare.py creates: where this node lacks the share, a second queue would be made beside it.
    queue = FileSampleRefQueue(run / "queue", ref_type=Sample, heartbeat_s=5, create=False)
    beside = {"PYTHONPATH": str(Path(__file__).parent)}
    ray.init(include_dashboard=False, namespace="fsqueue", runtime_env={"env_vars": beside})
    actor = ray.remote(max_restarts=-1, max_task_retries=-1)(Rollout)
    rollouts = [
        actor.options(name=f"rollout-{index}").remote(queue, index, given.rollouts) for index in range(given.rollouts)
    ]
    made = [each.work.remote(given.samples) for each in rollouts]
    train(queue, run, given.ranks)
    ray.get(made)
    print(queue.counts())


if __name__ == "__main__":
    main()
