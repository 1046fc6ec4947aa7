"""A trainer process: one data-parallel rank that leases refs, trains the draft on them, and acks each at its step.

    python -m fsqueue.demo.trainer DIR --index RANK --start N [--parent PID]

The work is in training.py, which loads torch.
"""

from __future__ import annotations

from fsqueue.demo.part import taking_part


def main() -> None:
    with taking_part("trainer") as part:
        if part.index == 0:
            part.queue.publish_quantum(dp_size=part.options.trainers, batch_size=part.options.batch_size)
        from fsqueue.demo.training import Trainer  # by now the others see this rank

        Trainer(part, part.parent.wait_for_plan(part.demo)).run()


if __name__ == "__main__":
    main()
