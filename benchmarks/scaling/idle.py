"""Waiting, waking, importing, and the command line on a backlog."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from statistics import median

from measuring.fleet import reap
from scaling.measures import Measure, Scale, Watched, fill, open_queue, seconds_of
from subjects.sample import sample

POLL_INTERVAL_S = 0.05
_BUSY_S = 0.02
_IDLE_S = 3.0
_GROWN_S = 12.0
_GUARD_S = 60.0
_CONTEXT = multiprocessing.get_context("spawn")


def idle(scale: Scale) -> list[Measure]:
    """A consumer that waits: what it costs, and how soon it wakes up."""
    busy = _wake_ups(os.path.join(scale.directory, "busy"), scale.rounds, _BUSY_S)
    idle_s = min(_IDLE_S, scale.seconds)
    long = _wake_ups(os.path.join(scale.directory, "long"), max(2, scale.rounds // 12), idle_s)
    bound_ms = POLL_INTERVAL_S * 1e3 + 10
    return [
        Measure(f"wake-up, a put every {_BUSY_S * 1e3:.0f} ms: median", median(busy) * 1e3, "ms", 3),
        Measure(f"wake-up after {idle_s:g} s: median", median(long) * 1e3, "ms"),
        Measure(f"wake-up after {idle_s:g} s: longest, poll_interval_s + 10 ms", max(long) * 1e3, "ms", bound_ms),
        *_waiting(os.path.join(scale.directory, "waiting"), scale.seconds),
    ]


def _wake_ups(path: str, count: int, pause_s: float) -> list[float]:
    """Seconds from before each put in this process to after the waiting get in another."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    with open_queue(path) as queue:
        process = _CONTEXT.Process(target=_wait, args=(path, count, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            assert ours.recv() == "ready"
            for number in range(count):
                time.sleep(pause_s)
                queue.put([sample(f"wake-{number}", put_at=time.monotonic())])
            return list(ours.recv())
        finally:
            reap(process, _GUARD_S)


def _wait(path: str, count: int, reply: Connection) -> None:
    delays: list[float] = []
    with open_queue(path, poll_interval_s=POLL_INTERVAL_S) as queue:
        reply.send("ready")
        while len(delays) < count:
            refs = queue.get(1, timeout_s=_GUARD_S)
            delays += [time.monotonic() - ref.metadata["put_at"] for ref in refs]
            queue.ack(refs)
    reply.send(delays)


def _waiting(path: str, seconds: float) -> list[Measure]:
    """One get that waits in vain, once its pauses have grown."""
    counted = Watched()
    with open_queue(path, counted.ops, poll_interval_s=POLL_INTERVAL_S) as queue:
        end = time.monotonic() + min(_GROWN_S, 4 * seconds) + seconds
        queue.get(1, timeout_s=end - time.monotonic() + 1.0)
    steady = [point for point in counted.at if end - seconds < point[0] < end]
    took_s, used_s = (steady[-1][index] - steady[0][index] for index in (0, 1))
    return [
        Measure("a waiting consumer's CPU", used_s / took_s * 100, "% of a core", 1),
        Measure("a waiting consumer's file operations", len(steady) / took_s, "a second", 25),
    ]


def start(scale: Scale) -> list[Measure]:
    """What a new process pays, with bytecode cached as in an installation: the best of some runs."""
    path, cache = (os.path.join(scale.directory, name) for name in ("status", "bytecode"))
    with open_queue(path) as queue:
        fill(queue, scale.wide)
    works = (("-c", "pass"), ("-c", "import fsqueue"), ("-m", "fsqueue", "status", path))
    rounds = 2 if scale.rounds < 10 else 15
    taken = [[_python(cache, *work) for work in works] for _ in range(rounds + 1)]
    bare, imported, status = (min(column) for column in zip(*taken[1:], strict=True))
    return [
        Measure("import fsqueue, beyond Python's own start", (imported - bare) * 1e3, "ms", 50),
        Measure(f"fsqueue status, {scale.wide:,} pending", status, "s", 0.5),
    ]


def _python(cache: str, *arguments: str) -> float:
    """Seconds that a Python process takes."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = cache
    command = [sys.executable, *arguments]
    return seconds_of(lambda: subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL))
