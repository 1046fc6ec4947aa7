"""Let happen to a run under torchrun, in Ray, and in pods what happens there."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from clustering.run import Account, Run

if TYPE_CHECKING:
    from typing_extensions import Self

SILENCE_S = 10.0
_POLICY = {"silence_s": SILENCE_S, "await_s": 600.0}
_HOST = "pod"
POD = "unshare", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"
_TRAINS = '    shard = run / "trained"'
_RAISES = f"""\
    if rank == 1 and step == 3 and not (run / "raised").exists():
        (run / "raised").touch()
        raise ValueError("the loss is NaN")
{_TRAINS}"""


class Started(Run):
    """A run whose processes are started here; what is left of them is killed at the end of `with`."""

    def __init__(self, folder: Path, edits: dict[str, str] | None = None) -> None:
        super().__init__(folder, _POLICY, edits or {})
        self._processes: list[subprocess.Popen[bytes]] = []
        self._strangers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes + self._strangers:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def begin(self, *command: str, **more: str) -> subprocess.Popen[bytes]:
        self._processes.append(self.start(*command, **more))
        return self._processes[-1]

    def begin_stranger(self, *command: str) -> None:
        """Start a process that has nothing to do with the run, and goes on until its end."""
        self._strangers.append(self.start(*command))

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """Expect no more of a process that was ended on purpose."""
        self._processes.remove(process)

    def begin_rollouts(self) -> None:
        for index in range(self.rollouts):
            self.begin("python", "rollout.py", *self.of_rollout(index))

    def of_rollout(self, index: int) -> tuple[str, ...]:
        return str(self.folder), f"--index={index}", f"--rollouts={self.rollouts}", f"--samples={self.samples_each}"

    def pid_of(self, name: str) -> int:
        """Return the process that takes part under a name, once one does."""
        self.wait_until(lambda: self._pids(name), f"{name} to join")
        return self._pids(name)[0]

    def _pids(self, name: str) -> list[int]:
        return [m.record.process.pid for m in self.members() if m.record.name == name and m.standing == "joined"]

    def ended(self) -> Account:
        """Wait for all processes; each must end with 0."""
        self.wait_until(lambda: all(process.poll() is not None for process in self._processes), "the processes to end")
        account = self.account()
        codes = [process.returncode for process in self._processes]
        if any(codes):
            account.trouble.append(f"exit codes {codes}")
        return account


def rank_raises(folder: Path, after: int) -> Account:
    """A rank raises once, at its third step; torchrun starts all ranks again."""
    with Started(folder, {_TRAINS: _RAISES}) as run:
        run.begin_rollouts()
        run.begin("bash", "torchrun.sh")
        account = run.ended()
        if not (folder / "raised").exists():
            account.trouble.append("no rank raised")
        return account


def rank_killed(folder: Path, after: int) -> Account:
    with Started(folder) as run:
        run.begin_rollouts()
        run.begin("bash", "torchrun.sh")
        run.wait_for_done(after)
        os.kill(run.pid_of("trainer-1"), signal.SIGKILL)
        return run.ended()


def actor_killed(name: str) -> Callable[[Path, int], Account]:
    """Return an event: this member's actor is killed."""

    def killed(folder: Path, after: int) -> Account:
        with Started(folder) as run:
            _begin_driver(run)
            run.wait_for_done(after)
            os.kill(run.pid_of(name), signal.SIGKILL)
            return run.ended()

    return killed


def driver_killed(folder: Path, after: int) -> Account:
    """The driver is killed, and all that Ray has started for it ends; it is started again."""
    with Started(folder) as run:
        driver = _begin_driver(run)
        run.wait_for_done(after)
        driver.kill()
        driver.wait()
        run.forget(driver)
        _begin_driver(run)
        return run.ended()


def _begin_driver(run: Started) -> subprocess.Popen[bytes]:
    """Start the Ray recipe; Ray keeps a token in its home."""
    home = run.folder / "home"
    home.mkdir(exist_ok=True)
    command = "python", "ray_actors.py", str(run.folder), f"--samples={run.samples_each}"
    return run.begin(*command, HOME=str(home), PYTHONUNBUFFERED="1")


class Pods:
    """Start programs as in pods: each has pids of its own, from 1 on; all have the same host name."""

    def __init__(self, run: Started) -> None:
        self.run = run

    def rollout(self, index: int, attempt: int | None = 0) -> subprocess.Popen[bytes]:
        return self._begin("rollout.py", *self.run.of_rollout(index), *_attempt(attempt))

    def trainer(self, attempt: int | None = 0) -> subprocess.Popen[bytes]:
        return self._begin("trainer.py", str(self.run.folder), *_attempt(attempt))

    def _begin(self, *program: str) -> subprocess.Popen[bytes]:
        inside = f"hostname {_HOST}; exec python {shlex.join(program)}"
        return self.run.begin(*POD, "bash", "-c", inside)

    def end(self, pod: subprocess.Popen[bytes], number: int) -> None:
        """Signal the first process of a pod, wait for the pod's end, and let a stranger's pod begin.

        That one has the number of the namespace that has ended, so that the next pod of the run gets another.
        """
        children = Path(f"/proc/{pod.pid}/task/{pod.pid}/children").read_text().split()
        os.kill(int(children[0]), number)
        self.run.wait_until(lambda: pod.poll() is not None, "a pod to end")
        self.run.forget(pod)
        self.run.begin_stranger(*POD, "sleep", "infinity")


def _attempt(attempt: int | None) -> list[str]:
    return [] if attempt is None else [f"--attempt={attempt}"]


def pod_replaced(kind: str, number: int, attempt: int | None) -> Callable[[Path, int], Account]:
    """Return an event: a pod is killed, or told to end, and another takes its place, with a higher attempt or none."""

    def replaced(folder: Path, after: int) -> Account:
        with Started(folder) as run:
            site = Pods(run)
            first = None if attempt is None else attempt - 1
            rollouts = [site.rollout(index, first) for index in range(run.rollouts)]
            trainer = site.trainer(first)
            run.wait_for_done(after)
            if kind == "trainer":
                site.end(trainer, number)
                site.trainer(attempt)
            else:
                site.end(rollouts[1], number)
                site.rollout(1, attempt)
            return run.ended()

    return replaced
