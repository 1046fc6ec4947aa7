"""The processes of the torture: one is run as ``-m mounting.worker <job as JSON>`` until SIGTERM.

Producers put their share, each id once; consumers lease, and acknowledge, fail, release, forget, or hold for longer
than the lease lasts. What a call raises is noted, and the process goes on.
"""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsqueue import FileSampleRefQueue
from history.recording import Log, Recorded, read
from soaking.site import append_line, make_ref

_BATCHES = (1, 2, 5, 16)
_PAUSE_S = 0.05
_PRODUCER_PAUSE_S = 0.25
_OUTCOMES = {"ack": 84, "fail": 5, "release": 6, "forget": 3, "stall": 2}
_STALL_IN_LEASES = 1.3
_DRAINED = 64


@dataclass(frozen=True)
class Job:
    """What a worker process is told.

    Attributes:
        role: producer, consumer, or drainer, which ends by itself once the queue is empty.
        name: of the worker; its successors have the same.
        log, errors: where its calls go, and what they raised; on a disk of this host's own.
        before: the log of the process that was this worker before and was killed.
        share: how many refs a producer puts in all.
        keep_done: False where there is no room for what is done.
    """

    role: str
    name: str
    incarnation: int
    queue: str
    log: str
    errors: str
    before: tuple[str, ...]
    seed: int
    share: int
    lease_timeout_s: float
    keep_done: bool

    def command(self) -> list[str]:
        return [sys.executable, "-m", "mounting.worker", json.dumps(asdict(self))]


class Worker:
    """One process's loop.

    Args:
        stopped: not empty any more once the process was asked to leave.
    """

    def __init__(self, job: Job, stopped: list[int]) -> None:
        self._job = job
        self._stopped = stopped
        self._rng = random.Random(f"{job.seed}/{job.name}/{job.incarnation}")
        self._log = Log.to_file(job.log)
        self._queue: Recorded | None = None
        self._stopping = False
        self._next = self._already_put()
        self._again: list[Any] = []

    def run(self) -> None:
        turn = {"producer": self._produce, "consumer": self._consume, "drainer": self._drain}[self._job.role]
        while not (self._stopping or self._stopped):
            try:
                queue = self._queue = self._queue or self._open()
                turn(queue)
            except Exception as error:
                self._complain(error)
                time.sleep(_PAUSE_S)
            if self._rng.random() < 0.01:
                self._close()
        self._close()
        self._log.saw("died", self._job.name)

    def _open(self) -> Recorded:
        """A handle with options of its own."""
        rng, lease_s = self._rng, self._job.lease_timeout_s
        queue = FileSampleRefQueue(
            self._job.queue,
            lease_timeout_s=lease_s,
            owner=rng.choice((None, self._job.name)),
            durable=rng.random() < 0.5,
            keep_done=self._job.keep_done,
            heartbeat_s=rng.choice((None, None, lease_s / 4)),
        )
        return Recorded(queue, self._log)

    def _close(self) -> None:
        queue, self._queue = self._queue, None
        if queue is None:
            return
        try:
            queue.queue.close()
        except Exception as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        """Note what was raised, with the line of fsqueue that raised it first."""
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        frames = traceback.extract_tb(root.__traceback__)
        places = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames[-6:]]
        number = getattr(error, "errno", None)
        facts = {
            "who": self._job.name, "error": type(error).__name__, "code": errno.errorcode.get(number or 0),
            "text": str(error), "root": repr(root), "from": places,
        }  # fmt: skip
        append_line(Path(self._job.errors), facts)

    def _already_put(self) -> int:
        """Count what the predecessors have begun to put: what a kill cut short may be there, or not."""
        calls = [call for path in self._job.before if os.path.exists(path) for call in read(path)]
        numbers = [int(i.rpartition("-")[2]) for call in calls if call.kind == "put" for i in call.ids]
        return max(numbers, default=-1) + 1

    def _produce(self, queue: Recorded) -> None:
        if not self._again:
            last = min(self._job.share, self._next + self._rng.choice(_BATCHES))
            self._again = [make_ref(f"{self._job.name}-{number}") for number in range(self._next, last)]
            self._next = last
        if not self._again:
            self._stopping = True
            return
        queue.put(self._again)
        self._again = []
        time.sleep(self._rng.uniform(0.0, _PRODUCER_PAUSE_S))

    def _consume(self, queue: Recorded) -> None:
        rng, lease_s = self._rng, self._job.lease_timeout_s
        refs = queue.get(rng.choice(_BATCHES), rng.choice((None, 0.1, 0.5)))
        if not refs:
            return
        outcome = rng.choices(list(_OUTCOMES), list(_OUTCOMES.values()))[0]
        if outcome == "forget":
            return
        time.sleep(lease_s * _STALL_IN_LEASES if outcome == "stall" else rng.uniform(0.0, _PAUSE_S))
        if outcome == "fail":
            queue.fail(refs, "torture", True)
        elif outcome == "release":
            queue.release(refs)
        else:
            queue.ack(refs)

    def _drain(self, queue: Recorded) -> None:
        queue.ack(queue.get(_DRAINED, 0.5))
        counts = queue.queue.counts()
        self._stopping = self._stopping or counts.pending == counts.leased == 0


def main() -> None:
    facts = json.loads(sys.argv[1])
    job = Job(**{**facts, "before": tuple(facts["before"])})
    stopped: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    Worker(job, stopped).run()  # its log, which is there from now on, says that it listens


if __name__ == "__main__":
    main()
