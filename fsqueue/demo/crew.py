"""The demo's processes: started, watched, killed when asked, started again when they are killed, and always reaped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from fsqueue.demo.demo_dir import DemoDirectory
from fsqueue.demo.journal import starts_of
from fsqueue.demo.options import DemoError
from fsqueue.operate.doctor.peer import environment

_TAIL_LINES = 12
_WITHDREW = 128 + signal.SIGTERM


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Process:
    """One process of the demo, through all its starts.

    Attributes:
        starts: how often it was started, in this and in earlier runs of the demo in its directory.
        finished: it ended by itself and well.
        held_back: it is not started again where it was killed or told to leave, as long as this is set.
    """

    def __init__(self, demo: DemoDirectory, module: str, arguments: list[str], name: str, threads: int) -> None:
        self._demo = demo
        self._command = [sys.executable, "-m", f"fsqueue.demo.{module}", demo.path, *arguments]
        self._threads = threads
        self._popen: subprocess.Popen[bytes] | None = None
        self.name = name
        self.starts = starts_of(demo.log, name)
        self.finished = False
        self.held_back = False

    def start(self) -> None:
        self.starts += 1
        command = [argument.replace("{start}", str(self.starts)) for argument in self._command]
        with open(self._stderr(), "wb") as stderr:
            self._popen = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, env=_environment(self._threads)
            )

    @property
    def running(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    @property
    def pid(self) -> int:
        return self._popen.pid if self._popen else 0

    @property
    def withdrew(self) -> bool:
        """True where it has left since it was told to."""
        return self._popen is not None and self._popen.poll() == _WITHDREW

    def was_killed(self) -> bool:
        """Tell if a signal has ended the process, also where it left by itself when it was told to.

        Raises:
            DemoError: an error has ended it; it is not started again.
        """
        if self._popen is None or self.finished or (code := self._popen.poll()) is None:
            return False
        if code > 0 and not self.withdrew:
            tail = Path(self._stderr()).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
            raise DemoError("\n".join([f"{self.name} ended with exit code {code}:", *tail]))
        self.finished = code == 0
        return not self.finished

    def signal(self, number: signal.Signals) -> None:
        if self._popen is not None:
            self._popen.send_signal(number)  # does nothing where it has ended

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        if self._popen is not None:
            self._popen.kill()  # does nothing where it has ended
            self._popen.wait()

    def _stderr(self) -> str:
        return self._demo.at("log", f"{self.name}.{self.starts}.stderr")


class Crew:
    """All workers of a run; leaving the context kills and reaps those that still run.

    Args:
        before_trainer_restart: called each time a trainer is about to be started again.
    """

    def __init__(
        self, demo: DemoDirectory, rollouts: int, trainers: int, before_trainer_restart: Callable[[], None]
    ) -> None:
        cores = available_cores()
        threads = max(1, cores // (rollouts + trainers))
        self._demo = demo
        self._before_trainer_restart = before_trainer_restart
        self.prepare = Process(demo, "prepare", [], "prepare", cores)
        self.evaluate = Process(demo, "evaluate", [], "evaluate", cores)
        self.rollouts = [_indexed(demo, "rollout", index, threads) for index in range(rollouts)]
        self.trainers = [_indexed(demo, "trainer", rank, threads) for rank in range(trainers)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._all():
            process.kill()

    def start(self) -> None:
        """Start all but the evaluation, and the preparation where that is done: workers load while it goes on."""
        self.prepare.finished = self._demo.read_plan() is not None
        for process in (self.prepare, *self.trainers, *self.rollouts):
            if not process.finished:
                process.start()

    def watch(self) -> list[Process]:
        """Start workers that were killed again; returns them.

        Raises:
            DemoError: an error has ended one of them.
        """
        killed = [process for process in self._all() if process.was_killed() and not process.held_back]
        if any(process in self.trainers for process in killed):
            self._before_trainer_restart()
        for process in killed:
            process.start()
        return killed

    def _all(self) -> list[Process]:
        return [self.prepare, self.evaluate, *self.rollouts, *self.trainers]

    @property
    def finished(self) -> bool:
        return all(process.finished for process in (*self.rollouts, *self.trainers))


def _indexed(demo: DemoDirectory, kind: str, index: int, threads: int) -> Process:
    arguments = ["--index", str(index), "--start", "{start}", "--parent", str(os.getpid())]
    return Process(demo, kind, arguments, f"{kind}-{index}", threads)


def _environment(threads: int) -> dict[str, str]:
    """Return this process's environment, without network look-ups, and with a number of threads that fits."""
    return {
        **environment(),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads starve the other processes where cores are few
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
    }
