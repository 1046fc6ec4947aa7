"""One process of builds.py: cycles of put, get, ack at one queue, for as long as it is told.

A line on stdin is a command, a JSON list; a line on stdout its answer.
"""

from __future__ import annotations

import json
import sys
import time

from fsqueue import FileSampleRefQueue, SampleRef
from subjects.sample import LEASE_TIMEOUT_S, sample

_STEPS = ("put", "get", "ack")


class Worker:
    """Use one queue.

    Attributes:
        put, got: the ids of all refs so far.
    """

    def __init__(self, path: str, name: str, durable: bool) -> None:
        self._queue: FileSampleRefQueue[SampleRef] = FileSampleRefQueue(
            path, lease_timeout_s=LEASE_TIMEOUT_S, durable=durable
        )
        self._name = name
        self.put: list[str] = []
        self.got: list[str] = []

    def fill(self, count: int) -> None:
        self._queue.put(self._refs(count))

    def run(self, batch: int, seconds: float) -> dict[str, float]:
        """Return the refs that went through, the seconds that it took, and the CPU seconds; by step, of wall time."""
        took_s = dict.fromkeys(_STEPS, 0.0)
        refs, began, cpu = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - began < seconds:
            given = self._refs(batch)
            started = time.perf_counter()
            self._queue.put(given)
            put = time.perf_counter()
            taken = self._queue.get(batch)
            got = time.perf_counter()
            self._queue.ack(taken)
            acked = time.perf_counter()
            for step, spent_s in zip(_STEPS, (put - started, got - put, acked - got), strict=True):
                took_s[step] += spent_s
            self.got += [ref.sample_id for ref in taken]
            refs += len(taken)
        return {"refs": refs, "wall_s": sum(took_s.values()), "cpu_s": time.process_time() - cpu, **took_s}

    def drain(self) -> None:
        while taken := self._queue.get(1_000):
            self.got += [ref.sample_id for ref in taken]
            self._queue.ack(taken)

    def ids(self) -> tuple[list[str], list[str]]:
        return self.put, self.got

    def _refs(self, count: int) -> list[SampleRef]:
        first = len(self.put)
        ids = [f"{self._name}-{first + number:08d}" for number in range(count)]
        self.put += ids
        return [sample(sample_id) for sample_id in ids]


def main(path: str, name: str, durable: str) -> None:
    worker = Worker(path, name, durable == "durable")
    for line in sys.stdin:
        call, *arguments = json.loads(line)
        print(json.dumps(getattr(worker, call)(*arguments)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
