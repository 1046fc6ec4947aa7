"""The processes of a soak that put and get: one is run as ``-m soaking.worker <job as JSON>`` until SIGTERM.

What a sample id begins with says how it is used: ``u`` is put once and never again, ``r`` is put again by the
successor of a producer that was killed in the middle, ``c`` is put by several producers at the same time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsqueue import FileSampleRefQueue, FsQueueError, SampleRef
from fsqueue.disk.fileops import FileOps, using, wrapped
from history.recording import Log, Recorded, read
from soaking.site import Clock, append_line, make_ref

_BATCHES = (1, 2, 5, 16, 64)
_BACKLOG = 1500
_PRODUCER_PAUSE_S = 0.3
_OUTCOMES = {"ack": 80, "ack with step": 8, "fail": 4, "fail for good": 2, "release": 5, "abandon": 1}


@dataclass(frozen=True)
class Job:
    """What a worker process is told.

    Attributes:
        role: producer, consumer, or drainer, which ends by itself once the queue is empty.
        name: of the worker; its successors have the same.
        log: where its calls go.
        predecessor: the log of the process that was this worker before, and was killed.
        parent: the process that started it; the worker ends when that one is gone.
    """

    role: str
    name: str
    incarnation: int
    queue: str
    log: str
    errors: str
    predecessor: str | None
    parent: int
    seed: int
    offset_s: float
    lease_timeout_s: float

    def command(self) -> list[str]:
        return [sys.executable, "-m", "soaking.worker", json.dumps(asdict(self))]


class Worker:
    """One process's loop. Calls are logged before and after, so that a kill leaves at most one of them open."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._rng = random.Random(f"{job.seed}/{job.name}/{job.incarnation}")
        self._clock = Clock(job.offset_s, 0.0)
        self._log = Log.to_file(job.log, self._clock)
        self._beats = Log.to_file(job.log, self._clock, thread="heartbeat")
        self._queue: Recorded | None = None
        self._held: frozenset[str] = frozenset()
        self._stopping = False
        self._serial = 0
        self._todo: list[SampleRef] = []

    def run(self) -> None:
        loops = {"producer": self._produce, "consumer": self._consume, "drainer": self._drain}
        loop = loops[self._job.role]
        self._take_over()
        while not self._stopping and os.getppid() == self._job.parent:
            try:
                queue = self._queue = self._queue or self._open()
                loop(queue)
            except FsQueueError as error:
                self._complain(error)
                time.sleep(0.05)
            if self._rng.random() < 0.01:
                self._close()
        self._close()
        # From here on others may see that this process is gone, and take its leases.
        self._log.saw("died", self._job.name)

    def stop(self, *_: object) -> None:
        self._stopping = True

    def _open(self) -> Recorded:
        """A handle with options of its own; its heartbeats are recorded too."""
        rng, lease_s = self._rng, self._job.lease_timeout_s
        with using(wrapped(FileOps(), self._around)):
            queue = FileSampleRefQueue(
                self._job.queue,
                lease_timeout_s=lease_s,
                owner=rng.choice((None, self._job.name)),
                durable=rng.random() < 0.4,
                keep_done=rng.random() < 0.7,
                max_attempts=rng.choice((None, 3, 6)),
                heartbeat_s=rng.choice((None, lease_s / 4)),
            )
        return Recorded(queue, self._log)

    def _around(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Record the heartbeats among the file operations: they prolong what was held before they began."""
        queue = self._queue
        if name != "utime" or queue is None or threading.current_thread().name != "fsqueue-heartbeat":
            return call(*args, **kwargs)
        key = self._beats.begin("beat", queue.owner, self._held)
        try:
            result = call(*args, **kwargs)
        except BaseException:
            self._beats.gave_up(key)
            raise
        self._beats.end(key)
        return result

    def _close(self) -> None:
        queue, self._queue, self._held = self._queue, None, frozenset()
        if queue is None:
            return
        try:
            queue.queue.close()
        except FsQueueError as error:
            self._complain(error)

    def _complain(self, error: FsQueueError) -> None:
        number = getattr(error, "errno", None)
        facts = {"at": self._clock(), "who": self._job.name, "error": type(error).__name__}
        append_line(Path(self._job.errors), {**facts, "errno": number, "text": str(error)})

    def _take_over(self) -> None:
        """What the predecessor left undone: a put is put again, what it leased is settled by id, now and then."""
        if self._job.predecessor is None or not os.path.exists(self._job.predecessor):
            return
        calls = read(self._job.predecessor)
        if self._job.role == "producer":
            undone = [call.ids for call in calls if call.kind == "put" and call.returned_at is None]
            self._todo = [make_ref(i) for i in (undone[-1] if undone else ()) if i.startswith("r")]
        elif self._job.role == "consumer" and self._rng.random() < 0.3:
            leased = [call.ids for call in calls if call.kind == "get" and call.ids]
            self._todo = [make_ref(i) for i in (leased[-1] if leased else ())]

    def _produce(self, queue: Recorded) -> None:
        batch, self._todo = self._todo or self._new_batch(), []
        try:
            queue.put(batch)
        except FsQueueError:
            self._todo = [ref for ref in batch if ref.sample_id.startswith("r")]
            raise
        time.sleep(self._rng.uniform(0.0, _PRODUCER_PAUSE_S))
        if self._serial % 8 == 0:
            while queue.queue.depth() > _BACKLOG and not self._stopping:
                time.sleep(0.2)

    def _new_batch(self) -> list[SampleRef]:
        count = self._rng.choice(_BATCHES)
        self._serial += 1
        shared = int(self._clock() * 2)
        kind = self._rng.choices("urc", (60, 25, 15))[0]
        if kind == "c":
            return [make_ref(f"c-{shared}-{number}") for number in range(min(count, 8))]
        first = f"{kind}-{self._job.name}-{self._job.incarnation}-{self._serial}"
        return [make_ref(self._decorated(f"{first}-{number}")) for number in range(count)]

    def _decorated(self, sample_id: str) -> str:
        """Now and then an id that makes a difficult file name."""
        chance = self._rng.random()
        if chance < 0.03:
            return f"{sample_id}/Größe 模型@1.json"
        return sample_id + "-" + "x" * 300 if chance < 0.04 else sample_id

    def _consume(self, queue: Recorded) -> None:
        rng = self._rng
        if self._todo:
            mine, self._todo = self._todo, []
            queue.ack(mine)
        width = rng.choice((None, None, 2, 3))
        partition = None if width is None else (rng.randrange(width), width)
        refs = queue.get(rng.choice(_BATCHES), rng.choice((None, 0.1, 0.4)), partition=partition)
        self._inspect(refs)
        self._held |= {ref.sample_id for ref in refs}
        if refs:
            self._work(queue, refs)

    def _work(self, queue: Recorded, refs: list[SampleRef]) -> None:
        """Hold refs for a while, sometimes for longer than the lease lasts, then settle each in some way."""
        rng, lease_s = self._rng, self._job.lease_timeout_s
        if rng.random() < 0.015:
            time.sleep(lease_s * 1.2)
        elif rng.random() < 0.15:
            time.sleep(rng.uniform(0.0, lease_s / 4))
            lost = set(queue.renew(refs))
            self._held -= lost
        time.sleep(rng.uniform(0.0, 0.04))
        groups = defaultdict(list)
        for ref in refs:
            groups[rng.choices(list(_OUTCOMES), list(_OUTCOMES.values()))[0]].append(ref)
        for outcome, group in groups.items():
            if outcome != "abandon":
                self._held -= {ref.sample_id for ref in group}
                self._settle(queue, outcome, group)

    def _settle(self, queue: Recorded, outcome: str, refs: list[SampleRef]) -> None:
        if outcome == "ack":
            queue.ack(refs)
        elif outcome == "ack with step":
            queue.ack(refs, step=self._rng.randrange(1000))
        elif outcome == "release":
            queue.release(refs)
        else:
            queue.fail(refs, f"soak: {outcome}", retryable=outcome == "fail")

    def _inspect(self, refs: list[SampleRef]) -> None:
        """Note every ref that is not what was put."""
        for ref in refs:
            if ref != make_ref(ref.sample_id):
                facts = {"at": self._clock(), "who": self._job.name, "error": "damaged ref", "errno": None}
                append_line(Path(self._job.errors), {**facts, "text": repr(ref)})

    def _drain(self, queue: Recorded) -> None:
        refs = queue.get(64, 0.2)
        self._inspect(refs)
        queue.ack(refs)
        if not refs:
            counts = queue.queue.counts()
            self._stopping = self._stopping or (counts.pending == counts.leased == 0)


def main() -> None:
    worker = Worker(Job(**json.loads(sys.argv[1])))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGTERM, worker.stop)
    worker.run()


if __name__ == "__main__":
    main()
