"""Know as what a scheduler or launcher has started this process, from the environment that it sets.

A job that is started again has the same name and a higher number of restarts. That proves that the process before it
is gone, on whatever node it ran. Sources: sbatch(1), SLURM_JOB_ID and SLURM_RESTART_COUNT; torchrun's documentation,
TORCHELASTIC_RUN_ID (``none`` where nobody chose one, so that it says nothing) and TORCHELASTIC_RESTART_COUNT.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

_LAUNCHERS = (
    ("slurm", "SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("torchrun", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)


class Launch(msgspec.Struct, frozen=True):
    """Name one start of a process.

    Attributes:
        job: what is started again and again, by its launchers' names for it; None where nothing tells.
        restarts: how often each of them, the outer one first, has started it again.
    """

    job: str | None = None
    restarts: tuple[int, ...] = ()

    def succeeds(self, other: Launch) -> bool:
        """Tell whether this start proves that the process of the other one is gone."""
        return self.job is not None and self.job == other.job and self.restarts > other.restarts


def launch(attempt: int | None = None, environment: Mapping[str, str] | None = None) -> Launch:
    """Return as what this process was started.

    Args:
        attempt: how often it was started again, where the caller's own launcher counts that.
        environment: os.environ unless given.
    """
    if attempt is not None:
        return Launch("given", (attempt,))
    given = os.environ if environment is None else environment
    jobs, restarts = [], []
    for launcher, job, count in _LAUNCHERS:
        if given.get(job, "none") != "none":
            jobs.append(f"{launcher} {given[job]}")
            text = given.get(count, "")
            restarts.append(int(text) if text.isdigit() else 0)
    return Launch(", ".join(jobs), tuple(restarts)) if jobs else Launch()
