"""Measure top-1 acceptance on held-out text: how often the draft's first choice is the target's.

    python -m fsqueue.demo.evaluate DIR        measures the last checkpoint, and logs that and what is in it

The target's choices are over its whole vocabulary; the draft can only propose the kept tokens, as in use.
"""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.demo_dir import DemoDirectory, Plan, publish
from fsqueue.demo.draft import DraftHead, Frozen
from fsqueue.demo.journal import Journal

_BATCH = 8


@dataclass(frozen=True)
class HeldOut:
    """Chunks that no trainer sees: what the target read, computed, and chose next.

    Attributes:
        tokens: [N, T].
        hidden: [N, T, H].
        choices: [N, T], the target's most likely token after each position.
    """

    tokens: Tensor
    hidden: Tensor
    choices: Tensor

    def save(self, demo: DemoDirectory) -> None:
        publish(demo.at("plan", "held_out.safetensors"), save(dict(vars(self))))

    @classmethod
    def load(cls, demo: DemoDirectory) -> HeldOut:
        return cls(**load_file(demo.at("plan", "held_out.safetensors")))


@torch.no_grad()
def acceptance(draft: DraftHead, frozen: Frozen, held_out: HeldOut) -> float:
    """Return the fraction of positions where the draft proposes what the target chooses."""
    agreed = compared = 0
    for at in range(0, len(held_out.tokens), _BATCH):
        part = slice(at, at + _BATCH)
        predicted = draft(frozen.embed(held_out.tokens[part, 1:]), held_out.hidden[part, :-1])
        proposed = frozen.kept[frozen.logits(predicted).argmax(dim=-1)]
        agreement = proposed == held_out.choices[part, 1:]
        agreed += int(agreement.sum())
        compared += agreement.numel()
    return agreed / compared


def measure(demo: DemoDirectory, plan: Plan, journal: Journal) -> None:
    """Log the acceptance of the last checkpoint, and the samples that were trained into it."""
    state = TrainingState(plan)
    step = state.load(demo)
    journal.write("acceptance", step=step, value=acceptance(state.draft, Frozen.load(demo), HeldOut.load(demo)))
    journal.write("surviving", state.trained_ids(), step=step)


def main(arguments: list[str]) -> None:
    demo = DemoDirectory(arguments[0])
    plan = demo.read_plan()
    if plan is None:
        raise SystemExit(f"{demo.path} holds no demo run")
    with closing(Journal(demo.log, "evaluate", 1)) as journal:
        measure(demo, plan, journal)


if __name__ == "__main__":
    main(sys.argv[1:])
