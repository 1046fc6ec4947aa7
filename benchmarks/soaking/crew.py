"""The worker processes of one node: started, killed, stopped, restarted, and always reaped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import TracebackType

from soaking.interrupts import deferred
from soaking.site import Clock, Settings, Site, append_line, wait_until
from soaking.worker import Job

DEATHS = "deaths.jsonl"
ERRORS = "errors.jsonl"
STDERR = "stderr.txt"
_LEAVE_S = 60.0
_MOST_STOPPED = 2
_CATCH = 0.8
_CATCH_S = 0.4
_INTO_CALL_S = 0.002
_TAIL_BYTES = 1 << 16
_IMPORTED_FROM = Path(__file__).resolve().parents[1]


@dataclass
class _Member:
    """One worker, in its present incarnation."""

    job: Job
    process: subprocess.Popen[bytes]
    killed_at: float | None = None
    wakes_at: float | None = None


@dataclass
class Tally:
    """How often what was done to the workers."""

    kills: int = 0
    stops: int = 0
    restarts: int = 0
    crashes: list[str] = field(default_factory=list)


class Crew:
    """Workers that are replaced when they die; leaving the block kills and reaps what is left."""

    def __init__(self, site: Site, settings: Settings, clock: Clock) -> None:
        self.tally = Tally()
        self._site = site
        self._settings = settings
        self._clock = clock
        self._members: list[_Member] = []
        self._stderr_fd = os.open(site.logs / STDERR, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with deferred():
            for member in self._members:
                member.process.kill()
                member.process.wait()
            os.close(self._stderr_fd)

    def start(self, role: str, count: int) -> None:
        for number in range(count):
            job = self._job(role, f"{self._site.node}-{role}{number}", 0, None)
            with deferred():
                self._members.append(_Member(job, self._spawn(job)))

    def is_at_work(self) -> bool:
        """Return True once every worker's first call is over, unless it has died before."""
        return all(_has_called(member) or member.process.poll() is not None for member in self._members)

    def is_whole(self) -> bool:
        """Return True while nobody who was killed has yet to be replaced."""
        return all(member.killed_at is None for member in self._members)

    def _job(self, role: str, name: str, incarnation: int, predecessor: str | None) -> Job:
        queue, logs = self._site.queue_of(self._settings), self._site.logs
        log = logs / f"{name}-{incarnation}.jsonl"
        return Job(
            role, name, incarnation, str(queue), str(log), str(logs / ERRORS), predecessor, os.getpid(),
            self._settings.seed, self._clock.offset_s, self._settings.lease_timeout_s,
        )  # fmt: skip

    def _spawn(self, job: Job) -> subprocess.Popen[bytes]:
        paths = [str(_IMPORTED_FROM), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            job.command(),
            stdin=subprocess.DEVNULL,
            stdout=self._stderr_fd,
            stderr=self._stderr_fd,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def kill_one(self, rng: Random) -> bool:
        """SIGKILL a worker that has begun, running or stopped, mostly in the middle of a call; False without one."""
        alive = [member for member in self._members if _has_begun(member) and member.process.poll() is None]
        if not alive:
            return False
        member = rng.choice(alive)
        _catch(member, rng)
        if member.killed_at is None and member.process.poll() is None:
            member.killed_at = self._clock()  # before the signal: others may see at once that it is gone
            member.process.kill()
            member.wakes_at = None
            self.tally.kills += 1
            return True
        return False

    def stop_one(self, rng: Random, seconds: float) -> bool:
        """SIGSTOP a worker that has begun, for that long; False without one."""
        alive = [member for member in self._members if _has_begun(member) and member.process.poll() is None]
        running = [member for member in alive if member.killed_at is None and member.wakes_at is None]
        stopped = sum(1 for member in self._members if member.wakes_at is not None)
        if running and stopped < _MOST_STOPPED:
            member = rng.choice(running)
            _catch(member, rng)
            member.process.send_signal(signal.SIGSTOP)
            member.wakes_at = self._clock() + seconds
            self.tally.stops += 1
            return True
        return False

    def tend(self) -> None:
        """Wake those that were stopped for long enough; reap and replace the dead."""
        now = self._clock()
        for member in self._members:
            if member.wakes_at is not None and now >= member.wakes_at:
                self._wake(member)
            if member.process.poll() is not None:
                self._bury(member)
                with deferred():
                    self._replace(member)

    def _replace(self, member: _Member) -> None:
        old = member.job
        member.job = self._job(old.role, old.name, old.incarnation + 1, old.log)
        member.process, member.killed_at, member.wakes_at = self._spawn(member.job), None, None
        self.tally.restarts += 1

    def _wake(self, member: _Member) -> None:
        member.wakes_at = None
        member.process.send_signal(signal.SIGCONT)

    def _bury(self, member: _Member) -> None:
        """Note when a process that was reaped cannot have done anything any more."""
        code, name = member.process.returncode, Path(member.job.log).name
        append_line(self._site.logs / DEATHS, {"log": name, "killed_at": member.killed_at, "reaped_at": self._clock()})
        asked_early = code == -signal.SIGTERM and not _has_begun(member)
        expected = -signal.SIGKILL if member.killed_at is not None else 0
        if code != expected and not asked_early:
            self.tally.crashes.append(f"{name} ended with exit code {code}: see {STDERR} beside it")

    def finish(self) -> None:
        """Let all workers leave by themselves; one that does not is killed, and counts as a crash."""
        for member in self._members:
            self._wake(member)
            if member.process.poll() is None:
                member.process.terminate()
        wait_until(lambda: all(m.process.poll() is not None for m in self._members), _LEAVE_S)
        for member in self._members:
            if member.process.poll() is None:
                self.tally.crashes.append(f"{member.job.name} did not leave within {_LEAVE_S:.0f} s")
                member.killed_at = self._clock()
                member.process.kill()
            member.process.wait()
            self._bury(member)
        self._members.clear()

    def drain(self, timeout_s: float) -> bool:
        """Have one more process get and ack everything that is left; whether it came to an end."""
        self.start("drainer", 1)
        process = self._members[0].process
        emptied = wait_until(lambda: process.poll() is not None, timeout_s)
        self.finish()
        return emptied


def _catch(member: _Member, rng: Random) -> None:
    """Mostly stop the worker in the middle of a call, where most of its time it is not; it is left stopped."""
    log, deadline = Path(member.job.log), time.monotonic() + _CATCH_S
    if member.wakes_at is not None or rng.random() > _CATCH:
        return
    while member.process.poll() is None and time.monotonic() < deadline:
        wait_until(lambda: _in_a_call(log), _CATCH_S, pause_s=0.0005)
        time.sleep(rng.uniform(0.0, _INTO_CALL_S))
        member.process.send_signal(signal.SIGSTOP)
        if _in_a_call(log):
            return
        member.process.send_signal(signal.SIGCONT)


def _has_begun(member: _Member) -> bool:
    log = Path(member.job.log)
    return log.exists() and log.stat().st_size > 0


def _has_called(member: _Member) -> bool:
    return _has_begun(member) and b'"over_at": ' in Path(member.job.log).read_bytes()


def _in_a_call(log: Path) -> bool:
    """Whether a log ends with the beginning of a call."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    except FileNotFoundError:
        return False
    return b'"kind": ' in last
