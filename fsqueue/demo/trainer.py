"""A trainer process: one data-parallel rank that leases refs, trains the draft on them, and acks each at its step.

    python -m fsqueue.demo.trainer DIR --index RANK --start N [--parent PID]

The work is in training.py, which loads torch.
"""

from __future__ import annotations

from fsqueue.demo.worker import taking_part


def main() -> None:
    with taking_part("trainer") as worker:
        if worker.index == 0:
            worker.queue.publish_quantum(dp_size=worker.options.trainers, batch_size=worker.options.batch_size)
        from fsqueue.demo.training import Trainer  # by now the others see this rank

        Trainer(worker, worker.parent.wait_for_plan(worker.demo)).run()


if __name__ == "__main__":
    main()
