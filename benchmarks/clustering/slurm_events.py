"""Let happen to a run under Slurm what happens on a cluster."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from clustering.run import Account, HungError, Run, StoppedError
from clustering.slurm import Slurm

SILENCE_S = 10.0
_POLICY = {"silence_s": SILENCE_S, "await_s": 600.0}
_HANDLERS: dict[str, dict[str, str]] = {
    "withdraw": {},
    "none": {'on_sigterm="withdraw"': "on_sigterm=None"},
    "exit": {
        'on_sigterm="withdraw"': "on_sigterm=None",
        "def main() -> None:\n": "def main() -> None:\n    import signal\n    import sys\n\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n",
    },
}
_SAVED_S = 8.0
HANDLERS = tuple(_HANDLERS)


class SlurmRun(Run):
    """Submit a run's jobs, and see how they end."""

    def __init__(
        self, slurm: Slurm, folder: Path, handler: str = "withdraw", policy: dict[str, float] | None = None
    ) -> None:
        super().__init__(folder, _POLICY | (policy or {}), _HANDLERS[handler])
        self.slurm = slurm
        self.jobs: list[str] = []

    def submit_rollouts(self, indices: str = "") -> str:
        array = indices or f"0-{self.rollouts - 1}"
        return self._submit(f"--array={array}", "slurm_rollouts.sbatch", f"--samples={self.samples_each}")

    def submit_trainer(self, ranks: int = 2, batch: int = 4) -> str:
        return self._submit(f"--ntasks={ranks}", "slurm_trainer.sbatch", f"--batch={batch}")

    def _submit(self, *command: str) -> str:
        job = self.slurm.submit(self.folder, command, self.environment)
        self.jobs.append(job)
        return job

    def wait_for_end(self) -> None:
        """Wait until no job waits or runs any more; all but those that were cancelled must have completed."""
        try:
            self.wait_until(lambda: not self.slurm.live(self.jobs), "the jobs to end")
        except (HungError, StoppedError):
            for job in self.jobs:
                self.slurm.cancel(job)
            raise

    def ended_as(self, job: str) -> set[str]:
        """Return the states in which a job, or the tasks of an array, ended."""
        words = self.slurm.shown(job).split()
        return {word.partition("=")[2] for word in words if word.startswith("JobState=")}


Event = Callable[[SlurmRun, int], Account]


def _started(run: SlurmRun, after: int) -> tuple[str, str]:
    """Submit rollouts and trainer, and let them come so far; return the two jobs."""
    jobs = run.submit_rollouts(), run.submit_trainer()
    run.wait_for_done(after)
    return jobs


def _completed(run: SlurmRun) -> Account:
    run.wait_for_end()
    ends = {job: run.ended_as(job) for job in run.jobs}
    account = run.account()
    account.trouble.extend(f"job {job} ended {end}" for job, end in ends.items() if end - {"COMPLETED", "CANCELLED"})
    return account


def undisturbed(run: SlurmRun, after: int) -> Account:
    _started(run, after)
    return _completed(run)


def requeue_trainer(run: SlurmRun, after: int) -> Account:
    _, trainer = _started(run, after)
    run.slurm.requeue(trainer)
    return _completed(run)


def requeue_producer(run: SlurmRun, after: int) -> Account:
    rollouts, _ = _started(run, after)
    run.slurm.requeue(f"{rollouts}_1")
    return _completed(run)


def requeue_both(run: SlurmRun, after: int) -> Account:
    rollouts, trainer = _started(run, after)
    run.slurm.requeue(f"{rollouts}_0")
    run.slurm.requeue(trainer)
    return _completed(run)


def preemption(run: SlurmRun, after: int) -> Account:
    """A job of a higher partition takes the whole node for two seconds."""
    _started(run, after)
    command = "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"
    run.jobs.append(run.slurm.submit(run.folder, command, run.environment))
    return _completed(run)


def scancel_signal(run: SlurmRun, after: int) -> Account:
    """Both jobs are told to stop, and requeue themselves."""
    rollouts, trainer = _started(run, after)
    run.slurm.signal(f"{rollouts}_1", "TERM")
    run.slurm.signal(trainer, "TERM")
    return _completed(run)


def stall(run: SlurmRun, after: int) -> Account:
    _started(run, after)
    run.stall(2 * SILENCE_S)
    return _completed(run)


def worlds_2_1_3(run: SlurmRun, after: int) -> Account:
    _, trainer = _started(run, after)
    run.slurm.cancel(trainer)
    before = run.done()
    second = run.submit_trainer(ranks=1)
    run.wait_for_done(before + 8)
    run.slurm.cancel(second)
    run.submit_trainer(ranks=3)
    return _completed(run)


def producer_never_returns(run: SlurmRun, after: int) -> Account:
    """The policy says that one rollout is enough."""
    rollouts, _ = _started(run, after)
    run.slurm.cancel(f"{rollouts}_1")
    run.wait_for_end()
    return run.account(_of_rollout(run, 1))


def producer_returns_too_late(run: SlurmRun, after: int) -> Account:
    """The others stop once they have waited for long enough; started again, all go on."""
    rollouts, trainer = _started(run, after)
    run.slurm.cancel(f"{rollouts}_1")
    run.wait_for_end()
    account_of_stop = run.ended_as(trainer)
    run.jobs.clear()
    run.submit_rollouts("1")
    run.submit_trainer()
    account = _completed(run)
    if account_of_stop != {"FAILED"}:
        account.trouble.append(f"the trainer ended {account_of_stop}, where the producer was missing")
    return account


def kill_controller(run: SlurmRun, after: int) -> Account:
    """Slurmctld is killed while a trainer is requeued, and started again three seconds later.

    It saves its state every few seconds: what it knows of the jobs' start is saved by then, but it may have forgotten
    that it was to start one again, and calls it ended. Somebody then submits that job again.
    """
    run.environment |= {"ROLLOUT_S": "0.3"}
    _, trainer = _started(run, after)
    time.sleep(_SAVED_S)
    run.slurm.requeue(trainer)
    run.slurm.kill_controller()
    time.sleep(3.0)
    run.slurm.start_controller()
    run.wait_until(lambda: _is_settled(run.slurm.live([trainer])), "slurmctld to see what became of it")
    if not run.slurm.live([trainer]):
        run.jobs.remove(trainer)
        run.submit_trainer()
    return _completed(run)


def _is_settled(jobs: list[str]) -> bool:
    """Tell whether a job is to start again, or has ended."""
    return not any(state in job for job in jobs for state in ("RUNNING", "COMPLETING"))


def kill_rank(run: SlurmRun, after: int) -> Account:
    """One rank is killed, which ends its job; the job is submitted again."""
    _, trainer = _started(run, after)
    (rank,) = [member for member in run.members() if member.record.name == "trainer-1"]
    os.kill(rank.record.process.pid, signal.SIGKILL)
    run.wait_until(lambda: not run.slurm.live([trainer]), "the trainer's job to end")
    run.jobs.remove(trainer)
    run.submit_trainer()
    return _completed(run)


def _of_rollout(run: SlurmRun, index: int) -> frozenset[str]:
    return frozenset(f"rollout-{index}-{n:06d}" for n in range(run.samples_each))
