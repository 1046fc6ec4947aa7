"""Torture a queue through two mounts of one filesystem: processes on both, as on two nodes, killed at random.

The processes on side B have a host name and a pid namespace of their own, so that nobody on side A can see that one
of them is gone: its leases end by their timeout, across the mounts. Every call goes into a history, which the checker
judges; at the end every ref has to be in done/ exactly once.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fsqueue import FileSampleRefQueue
from fsqueue.format import names
from history.checker import check
from history.recording import Call, read
from mounting.namespaces import child_of, on_second_node
from mounting.worker import Job
from soaking.merging import calls_of_process, ends_without_witness
from soaking.site import append_line, lines_of, wait_until

_PRODUCERS, _CONSUMERS = 1, 2
_KILL_EVERY_S = 0.6
_TICK_S = 0.02
_STOP_S = 30.0
_STALE_S = 45.0
_SHOWN = 12
_STATES = ("pending", "leased", "failed", "done")
_ERRORS, _DEATHS = "errors.jsonl", "deaths.jsonl"


@dataclass(frozen=True)
class Options:
    """How much is tried.

    Attributes:
        refs: put in all, by the producers of both sides.
        limit_s: how long it may take until they are put and mostly consumed; then the killing ends.
        drain_s: how long what is left may take after that, before it counts as stuck.
        grain_s: how coarse the filesystem's time stamps are.
        keep_done: False where there is no room for what is done.
    """

    refs: int
    limit_s: float
    drain_s: float
    lease_timeout_s: float
    grain_s: float
    keep_done: bool
    seed: int


@dataclass
class Outcome:
    """What came of it; the last four must be empty.

    Attributes:
        again: deliveries after the first, each explained.
        full: how often a call said that the disk is full, where it was to be.
    """

    put: int = 0
    kills: int = 0
    again: int = 0
    full: int = 0
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    def clean(self) -> bool:
        return not (self.lost or self.twice or self.crashes or self.stuck)


@dataclass
class _Member:
    """One worker, in its present incarnation; on side B its process is the child of one that made its namespaces."""

    job: Job
    remote: bool
    process: subprocess.Popen[bytes]
    logs: list[str]
    asked: bool = False

    def kill(self) -> bool:
        """SIGKILL the worker itself; False where it has not begun, or is gone."""
        return self._send(signal.SIGKILL)

    def ask(self) -> None:
        """Ask the worker once, as soon as it listens, to leave by itself."""
        self.asked = self.asked or self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> bool:
        pid = child_of(self.process.pid) if self.remote else self.process.pid
        if pid is None or self.process.poll() is not None or not os.path.exists(self.job.log):
            return False
        os.kill(pid, number)
        return True


def torture(a: Path, b: Path, scratch: Path, options: Options) -> Outcome:
    """Run it in two directories that are one, seen through two mounts; scratch is on a disk of this host's own."""
    scratch.mkdir()
    queue_a, queue_b = a / "torture", b / "torture"
    FileSampleRefQueue(queue_a, lease_timeout_s=options.lease_timeout_s).close()
    wait_until(lambda: (queue_b / "fsqueue.json").exists(), _STALE_S)
    run = _Run(queue_a, queue_b, scratch, options)
    with run.reaped():
        run.start("producer", _PRODUCERS)
        run.start("consumer", _CONSUMERS)
        run.kill_at_random()
        run.stop()
        run.start("drainer", 1)
        run.wait_for_drainers()
    return judge(run.outcome, (queue_a, queue_b), scratch, options)


class _Run:
    def __init__(self, queue_a: Path, queue_b: Path, scratch: Path, options: Options) -> None:
        self._queues = (queue_a, queue_b)
        self._scratch = scratch
        self._options = options
        self._rng = random.Random(options.seed)
        self._members: list[_Member] = []
        self.outcome = Outcome()
        self._errors = scratch / _ERRORS
        self._deaths = scratch / _DEATHS

    @contextmanager
    def reaped(self) -> Iterator[None]:
        """Whatever happens in the block, no worker outlives it."""
        try:
            yield
        finally:
            for member in self._members:
                member.kill()
                member.process.kill()
                member.process.wait()

    def start(self, role: str, count: int) -> None:
        for side, queue in zip("ab", self._queues, strict=True):
            for number in range(count):
                name = f"{role}{number}{side}"
                job = Job(
                    role, name, 0, str(queue), str(self._scratch / f"{name}-0.jsonl"), str(self._errors), (),
                    self._options.seed, self._options.refs // (2 * _PRODUCERS), self._options.lease_timeout_s,
                    self._options.keep_done,
                )  # fmt: skip
                self._members.append(self._spawned(job, remote=side == "b", logs=[]))

    def _spawned(self, job: Job, *, remote: bool, logs: list[str]) -> _Member:
        command = on_second_node(job.command()) if remote else job.command()
        paths = [str(Path(__file__).resolve().parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with open(self._scratch / "stderr.txt", "ab") as said:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            )  # fmt: skip
        return _Member(job, remote, process, [*logs, job.log])

    def kill_at_random(self) -> None:
        """Kill and replace workers until the producers have put all their refs, or the time is over."""
        deadline = time.monotonic() + self._options.limit_s
        kill_at = time.monotonic() + _KILL_EVERY_S
        while time.monotonic() < deadline and any(m.job.role == "producer" for m in self._members):
            if time.monotonic() >= kill_at:
                self._kill_one()
                kill_at = time.monotonic() + _KILL_EVERY_S * self._rng.uniform(0.2, 1.8)
            self._tend()
            time.sleep(_TICK_S)

    def _kill_one(self) -> None:
        member = self._rng.choice(self._members)
        killed_at = time.monotonic()
        if not member.kill():
            return
        member.process.wait()
        self.outcome.kills += 1
        self._note_death(member, killed_at)
        self._members.remove(member)
        job = member.job
        incarnation = job.incarnation + 1
        log = str(self._scratch / f"{job.name}-{incarnation}.jsonl")
        heir = replace(job, incarnation=incarnation, log=log, before=tuple(member.logs))
        self._members.append(self._spawned(heir, remote=member.remote, logs=member.logs))

    def _note_death(self, member: _Member, killed_at: float | None) -> None:
        facts = {"log": Path(member.job.log).name, "killed_at": killed_at, "reaped_at": time.monotonic()}
        append_line(self._deaths, facts)

    def _tend(self) -> None:
        """Bury those that ended by themselves: producers that are done, and whatever crashed."""
        for member in [member for member in self._members if member.process.poll() is not None]:
            self._members.remove(member)
            self._note_death(member, None)
            if member.process.returncode:
                self.outcome.crashes.append(f"{member.job.name} ended with {member.process.returncode}{self._said()}")

    def _said(self) -> str:
        text = (self._scratch / "stderr.txt").read_text(errors="replace").strip()
        return f": {text[-300:]}" if text else ""

    def stop(self) -> None:
        """Let all workers leave by themselves."""
        self._wait(_STOP_S + 2 * self._options.lease_timeout_s, "did not leave", _Member.ask)

    def wait_for_drainers(self) -> None:
        self._wait(self._options.drain_s, "still saw refs")

    def _wait(self, limit_s: float, complaint: str, ask: Callable[[_Member], object] = lambda member: None) -> None:
        def all_gone() -> bool:
            for member in self._members:
                ask(member)
            self._tend()
            return not self._members

        if wait_until(all_gone, limit_s):
            return
        for member in self._members:
            self.outcome.stuck.append(f"{member.job.name} {complaint} within {limit_s:.0f} s")
            killed_at = time.monotonic()
            member.kill()
            member.process.kill()
            member.process.wait()
            self._note_death(member, killed_at)
        self._members.clear()


def judge(outcome: Outcome, queues: tuple[Path, Path], scratch: Path, options: Options) -> Outcome:
    """Say what came of it, by the history in scratch, by the directories, and by what was raised."""
    calls = list(_calls(scratch))
    _judge_files(outcome, queues, calls, options)
    calls += ends_without_witness(calls)
    verdict = check(calls, options.lease_timeout_s, grain_s=options.grain_s)
    outcome.again = verdict.again.total()
    outcome.lost += [line for line in verdict.lost if line.partition(",")[0] not in outcome.lost]
    for kind in ("double_leases", "broken_leases", "unexplained", "unexpected"):
        outcome.twice += [f"{kind.replace('_', ' ')}: {line}" for line in getattr(verdict, kind)]
    raised = lines_of(scratch / _ERRORS)
    full = [error for error in raised if error["code"] == "ENOSPC" and not options.keep_done]
    outcome.full = len(full)
    outcome.crashes += _grouped(error for error in raised if error not in full)
    return outcome


def _calls(scratch: Path) -> Iterator[Call]:
    deaths = {line["log"]: line for line in lines_of(scratch / _DEATHS)}
    for path in sorted(scratch.glob("*-*.jsonl")):
        yield from calls_of_process(read(path), deaths.get(path.name))


def _judge_files(outcome: Outcome, queues: tuple[Path, Path], calls: list[Call], options: Options) -> None:
    """Every ref whose put returned is in done/, once, and nothing is left elsewhere, once both sides see the same."""
    put = {i for call in calls if call.kind == "put" and call.returned_at is not None for i in call.ids}
    outcome.put = len(put)
    wait_until(lambda: seen_in(queues[0]) == seen_in(queues[1]), _STALE_S)
    seen, there = map(seen_in, queues)
    left = {state: found for state, found in seen.items() if state != "done"}
    outcome.stuck += [f"{state}/{name}" for state, found in left.items() for name in sorted(found)[:_SHOWN]]
    settled = {i for call in calls if call.kind == "ack" for i in call.ids}
    done = seen["done"] if options.keep_done else Counter(settled)
    outcome.lost += sorted(put - done.keys() - set().union(*left.values()))
    outcome.twice += [f"{i} is {n} times in done/" for i, n in done.items() if n > 1]
    differ = {i for state, found in seen.items() for i in found.keys() ^ there[state].keys()}
    outcome.lost += [f"{i} is seen by one side only, after {_STALE_S:g} s" for i in sorted(differ)]


def seen_in(queue: Path) -> dict[str, Counter[str]]:
    """The ids in each state, as one side sees them: a client may go on seeing an old listing for a while."""
    return {state: _ids_in(queue / state) for state in _STATES}


def _ids_in(directory: Path) -> Counter[str]:
    """The ids of the refs in a state's directory; names that are no ref's are none."""
    found: Counter[str] = Counter()
    for name in os.listdir(directory):
        lease, done = names.parse_leased(name), names.parse_done(name)
        stem = lease.stem if lease else done[0] if done else names.parse_pending(name)
        if stem is not None:
            found[names.id_of(stem) or stem] += 1
    return found


def _grouped(errors: Iterable[dict[str, Any]]) -> list[str]:
    """One line for each error and place, with how often."""
    counts = Counter(
        f"{error['error']}: {error['text']} [{error['root']} at {' < '.join(reversed(error['from']))}]"
        for error in errors
    )
    return [f"{count} times {text}" for text, count in counts.most_common()]
