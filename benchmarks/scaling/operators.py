"""Operators' work: the rates of what moves many refs, and what the commands take over a queue of a million."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from measuring.builds import importing
from scaling.measures import Measure, Scale, fill, open_queue
from scaling.operating import BATCH, MEANWHILE, OPERATIONS, RECONCILE

_SCRIPT = Path(__file__).with_name("operating.py")
_WEIGHED = Path(__file__).with_name("weighed.py")
_KIB_A_MIB = 1024
WANTED = {
    "rewind of plain files": 1.3,
    "rewind of packed refs": 3.0,
    "pack": 2.0,
    "requeue": 1.5,
    RECONCILE: 2.0,
}
"""How many times as fast as the build before, on a tmpfs."""
GET_P99_MS = 100.0
PEAK_MIB = 300.0
STATUS_S = 1.0
FIRST_LINE_S = 0.5
CHECKED_PER_S = 100_000
TOP_SHARE = 5.0


def operators(scale: Scale) -> list[Measure]:
    """Rates at `wide` refs, then the commands at `backlog` refs."""
    return [*rates(scale), *_meanwhile(scale), *_commands(scale)]


def rates(scale: Scale) -> list[Measure]:
    """Each operation, by this checkout and the other one in turns, where there is one."""
    builds = [None, scale.beside] if scale.beside else [None]
    names, rounds = [*OPERATIONS, RECONCILE], min(scale.rounds, 5)
    found: dict[tuple[str, str | None], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for build in builds:
            for name, took in zip(names, _run(names, scale, build), strict=True):
                found.setdefault((name, build), []).append(took)
    result = []
    for name in names:
        ours = found[name, None]
        rate = median(each["refs"] / each["seconds"] for each in ours)
        result.append(Measure(f"{name}, {scale.wide:,} refs", rate, "refs/s"))
        if scale.beside:
            pairs = list(zip(found[name, scale.beside], ours, strict=True))
            for key, what in (("seconds", "time"), ("cpu_s", "CPU")):
                times = median(before[key] / after[key] for before, after in pairs)
                wanted = WANTED.get(name) if key == "seconds" else None
                result.append(Measure(f"{name}: {what} of the other build", times, "times", wanted, at_least=True))
    return result


def _run(operations: list[str], scale: Scale, build: str | None) -> list[dict[str, float]]:
    durable = "durable" if scale.durable else "quick"
    command = [sys.executable, str(_SCRIPT), str(scale.wide), scale.directory, durable, *operations]
    done = subprocess.run(command, env=importing(build), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{build or 'this build'}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def _meanwhile(scale: Scale) -> list[Measure]:
    found = [took["p99_s"] for took in _run(min(scale.rounds, 5) * [MEANWHILE], scale, None)]
    name = f"get beside a rewind of {scale.wide:,} packed refs, 99th percentile"
    return [Measure(name, median(found) * 1e3, "ms", GET_P99_MS)]


def _commands(scale: Scale) -> list[Measure]:
    """Take a queue through its states, and look at it in each of them."""
    path = os.path.join(scale.directory, "many")
    commands = _Commands(path, scale.backlog)
    with open_queue(path) as queue:
        fill(queue, scale.backlog)
        commands.look("pending")
        for step, refs in enumerate(iter(lambda: queue.get(BATCH), []), 1):
            queue.ack(refs, step=step)
        commands.look("done")
        commands.work("pack", "--older-than", "0")
        commands.look("done", "packed")
        commands.work("rewind", "--after-step", "0")
        for refs in iter(lambda: queue.get(BATCH), []):
            queue.fail(refs, "no good", retryable=False)
        commands.look("failed")
        commands.work("requeue", "--failed")
        lost = scale.backlog - queue.depth()
    return [*commands.found, Measure("refs lost by all of that", lost, "", 0, verifies=True)]


class _Commands:
    """Run the command line over one queue, and note what it takes.

    Attributes:
        found: one figure or two for each command.
    """

    def __init__(self, path: str, refs: int) -> None:
        self._path = path
        self._refs = refs
        self.found: list[Measure] = []

    def look(self, state: str, title: str | None = None) -> None:
        """Run the commands that read."""
        where = f"{self._refs:,} {title or state}"
        seconds, _, peak = self._run("status")
        self._add(f"status, {where}", seconds, "s", STATUS_S, peak)
        seconds, _, peak = self._run("check", "--quiet")
        self._add(f"check, {where}", self._refs / seconds, "refs/s", CHECKED_PER_S, peak, at_least=True)
        self.found.append(Measure(f"ls, {where}: first line", self._first_line_s(state), "s", FIRST_LINE_S))
        _, _, peak = self._run("ls", "--state", state)
        self.found.append(Measure(f"ls, {where}: peak memory", peak, "MiB", PEAK_MIB))
        (one_s, one_cpu_s, _), (some_s, some_cpu_s, peak) = (self._run("top", "--count", n) for n in ("1", "3"))
        share = 100 * (some_cpu_s - one_cpu_s) / (some_s - one_s)
        self._add(f"top, {where}", share, "% of a core", TOP_SHARE, peak)

    def work(self, *command: str) -> None:
        """Run a command that moves refs."""
        seconds, _, peak = self._run(*command, "--quiet")
        name = f"{command[0]}, {self._refs:,} refs"
        self.found.append(Measure(name, self._refs / seconds, "refs/s"))
        self.found.append(Measure(f"{name}: peak memory", peak, "MiB", PEAK_MIB))

    def _add(self, name: str, value: float, unit: str, bound: float, peak: float, at_least: bool = False) -> None:
        self.found.append(Measure(name, value, unit, bound, at_least=at_least))
        self.found.append(Measure(f"{name}: peak memory", peak, "MiB", PEAK_MIB))

    def _run(self, *arguments: str) -> tuple[float, float, float]:
        """Return a command's seconds, its seconds of CPU, and its peak memory in MiB."""
        weighed = [sys.executable, str(_WEIGHED), *self._command(*arguments)]
        done = subprocess.run(weighed, stdout=subprocess.PIPE, env=importing(None), check=False)
        took = json.loads(done.stdout)
        if took["code"]:
            raise RuntimeError(f"fsqueue {arguments[0]} ended with {took['code']}")
        return took["seconds"], took["cpu_s"], took["peak_kib"] / _KIB_A_MIB

    def _first_line_s(self, state: str) -> float:
        started = time.perf_counter()
        command = self._command("ls", "--state", state)
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=importing(None)) as process:
            assert process.stdout is not None and process.stdout.readline()
            seconds = time.perf_counter() - started
            process.kill()
        return seconds

    def _command(self, command: str, *options: str) -> list[str]:
        return [sys.executable, "-m", "fsqueue", command, self._path, *options]
