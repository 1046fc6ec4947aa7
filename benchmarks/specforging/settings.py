"""What a run is made of: its sizes, its places, and when which rank dies."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fsqueue import FileMetadataStore

RUN_ID = "specforge-run"
LAYERS = (0, 1, 2)
"""Of the target model: those whose hidden states the draft is fed with."""


@dataclass(frozen=True)
class Settings:
    """Hold the sizes of a run; each process is started with them.

    Attributes:
        prompts: of each producer.
        high, low: each producer's watermarks.
        save_interval: optimizer steps between two checkpoints.
    """

    folder: str
    producers: int = 2
    prompts: int = 80
    tokens: int = 16
    batch: int = 2
    accumulation: int = 2
    save_interval: int = 2
    high: int = 24
    low: int = 16
    restart_s: float = 300.0

    @property
    def samples(self) -> int:
        return self.producers * self.prompts

    def window(self, world: int) -> int:
        """Return how many samples an optimizer step takes."""
        return world * self.batch * self.accumulation

    def at(self, name: str) -> Path:
        return Path(self.folder) / name

    @property
    def run(self) -> Path:
        """The one directory that the processes of the run share."""
        return self.at("run")

    @property
    def queue(self) -> Path:
        return self.run / "queue"

    @property
    def features(self) -> Path:
        return self.run / "features"


@dataclass(frozen=True)
class Generation:
    """Hold how the ranks are started once.

    Attributes:
        resume_from: the step of the checkpoint; None: from the beginning.
        dying: rank to the optimizer step inside which it kills itself.
    """

    number: int
    world: int
    resume_from: int | None = None
    dying: dict[str, int] = field(default_factory=dict)


def ledger_of(settings: Settings) -> FileMetadataStore[Any]:
    """Open the run's ledger, to count in."""
    return FileMetadataStore(settings.run / "ledger")


def to_argument(given: Settings | Generation) -> str:
    return json.dumps(asdict(given))
