"""Make samples and put them; stopped or killed anywhere, and started again, go on with the first that is missing.

    python rollout.py RUN --index I --rollouts N [--samples K]

Edit `make`. Each rollout has samples of its own, whose ids are fixed beforehand: so the queue itself tells how far the
process before this one has come.
"""

import argparse
import os
import time
from pathlib import Path

from sample import Sample

from fsqueue import FileSampleRefQueue


def make(sample_id: str) -> Sample:
    """Compute one sample; this is where the model runs."""
    time.sleep(float(os.environ.get("ROLLOUT_S", "0.1")))
    return Sample(sample_id)


def put_rest(queue: FileSampleRefQueue[Sample], name: str, count: int) -> None:
    """Put those of a rollout's samples that are not there yet."""
    ids = [f"{name}-{n:06d}" for n in range(count)]
    there = queue.states(ids)  # of a put that was cut short, only the queue knows whether it was made
    print(f"{name}: {len(there)} of {count} are there", flush=True)
    for sample_id in ids:
        if sample_id in there:
            continue
        queue.put_when_below([make(sample_id)], high=64)
    print(f"{name}: done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--rollouts", type=int, required=True)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--attempt", type=int, help="how often this one was started again, where Slurm does not say")
    given = parser.parse_args()
    name = f"rollout-{given.index}"
    # Only prepare.py creates: where this node lacks the share, a second queue would be made beside it.
    queue = FileSampleRefQueue(given.run / "queue", ref_type=Sample, heartbeat_s=5, create=False)
    with queue.producer(name, expected=given.rollouts, attempt=given.attempt, on_sigterm="withdraw"):
        put_rest(queue, name, given.samples)


if __name__ == "__main__":
    main()
