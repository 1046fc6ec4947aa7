"""Make a run's queue, and say who is missed in it and for how long; once, before anything is started.

python prepare.py RUN [--await-s S] [--restart-s S] [--silence-s S] [--quorum N]
"""

import argparse
from pathlib import Path

from sample import Sample

from fsqueue import FileSampleRefQueue


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--await-s", type=float, help="wait so long for one that was preempted; with its time in line")
    parser.add_argument("--restart-s", type=float, help="wait so long for one whose work raised, as under torchrun")
    parser.add_argument("--silence-s", type=float, help="without a heartbeat for so long, a member has fallen silent")
    parser.add_argument("--quorum", type=int, help="so many rollouts that are done end the run, if no other one works")
    given = vars(parser.parse_args())
    with FileSampleRefQueue(given.pop("run") / "queue", ref_type=Sample, lease_timeout_s=60) as queue:
        print(queue.configure_stream(**given))


if __name__ == "__main__":
    main()
