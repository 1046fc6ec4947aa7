"""What a run has trained on, by the trainers' own notes, and what ledger, queue and store say of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from fsqueue import FileSampleRefQueue
from fsqueue.features import SharedDirFeatureStore
from measuring.tables import table
from specforging.settings import Generation, Settings, ledger_of
from specforging.story import GENERATIONS, KILLED_PRODUCER, Outcome, producer_names

Steps = dict[int, list[str]]


@dataclass
class Trained:
    """Hold one generation's steps: those that its successor's checkpoint holds, and those that were lost with it."""

    generation: Generation
    kept: Steps
    lost: Steps
    first_loss: float
    last_loss: float


def judge(settings: Settings, outcome: Outcome) -> str:
    """Add to the outcome what deviates from each sample exactly once a step; return the tables."""
    generations = [_trained(settings, generation) for generation in GENERATIONS]
    steps: Steps = {}
    for each in generations:
        window = settings.window(each.generation.world)
        for step, ids in each.kept.items():
            outcome.expect(f"generation {each.generation.number}: samples of step {step}", len(set(ids)), window)
            outcome.expect(f"step {step} in an earlier generation, too", step in steps, False)
            steps[step] = ids
    counts = Counter(sample_id for ids in steps.values() for sample_id in ids)
    outcome.expect("steps that the last model was trained by", sorted(steps), list(range(1, len(steps) + 1)))
    outcome.expect("samples that it was trained on", len(counts), settings.samples)
    outcome.expect("samples that it was trained on twice", [i for i, n in counts.items() if n > 1], [])
    rows = [_producer(settings, name, outcome) for name in producer_names(settings)]
    _compare(settings, steps, outcome)
    said = _by_generation(generations, outcome)
    header = ("producer", "published by one that was killed", "produced", "settled, by its own count")
    return f"{said}\n\n{table(header, rows)}"


def _trained(settings: Settings, generation: Generation) -> Trained:
    notes = [note for rank in range(generation.world) for note in _notes(settings, generation, rank)]
    later = [each.resume_from for each in GENERATIONS if each.number == generation.number + 1]
    holds = later[0] if later else None
    kept: Steps = defaultdict(list)
    lost: Steps = defaultdict(list)
    for note in notes:
        (kept if holds is None or note["step"] <= holds else lost)[note["step"]] += note["ids"]
    losses = {step: [n["loss"] for n in notes if n["step"] == step] for step in kept}
    means = [sum(losses[step]) / len(losses[step]) for step in sorted(losses)]
    return Trained(generation, kept, lost, means[0], means[-1])


def _notes(settings: Settings, generation: Generation, rank: int) -> list[dict[str, Any]]:
    lines = settings.at(f"trained-{generation.number}-{rank}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _producer(settings: Settings, name: str, outcome: Outcome) -> tuple[str, ...]:
    said = json.loads(settings.at(f"{name}.json").read_text())
    outcome.expect(f"{name} found left out, and produced", said["left_out"] + said["produced"], settings.prompts)
    outcome.expect(f"{name} was killed, and had published", said["left_out"] > 0, name == KILLED_PRODUCER)
    outcome.expect(f"{name} counts as settled", said["consumed"], said["produced"])
    return name, *(str(said[what]) for what in ("left_out", "produced", "consumed"))


def _compare(settings: Settings, steps: Steps, outcome: Outcome) -> None:
    """Hold ledger, queue and store against the trainers' notes."""
    noted = {sample_id: step for step, ids in steps.items() for sample_id in ids}
    with closing(ledger_of(settings)) as ledger:
        outcome.expect("steps in the ledger as noted", ledger.acked_steps(list(noted)) == noted, True)
        outcome.expect("samples in the ledger", ledger.committed_count(), settings.samples)
    with FileSampleRefQueue(settings.queue, create=False) as queue:
        outcome.expect("the queue", tuple(queue.counts()), (0, 0, settings.samples, 0))
    with SharedDirFeatureStore(settings.features) as store:
        outcome.expect("features left in the store", store.health().samples, 0)
    command = [sys.executable, "-m", "fsqueue", "check", str(settings.queue)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    outcome.expect("fsqueue check", (checked.returncode, checked.stdout[:500] if checked.returncode else ""), (0, ""))


def _by_generation(generations: list[Trained], outcome: Outcome) -> str:
    counts = ("steps kept", "samples a step", "samples", "trained again", "published by then")
    rows = []
    for each, published in zip(generations, outcome.published, strict=True):
        generation, kept = each.generation, sorted(each.kept)
        died = ", ".join(f"rank {rank}" for rank in generation.dying)
        step = next(iter(generation.dying.values()), None)
        rows.append(
            (
                str(generation.world),
                "scratch" if generation.resume_from is None else f"checkpoint {generation.resume_from}",
                f"{died} killed inside step {step}" if died else "with the stream",
                f"{kept[0]}-{kept[-1]}",
                ", ".join(map(str, sorted({len(ids) for ids in each.kept.values()}))),
                str(sum(len(ids) for ids in each.kept.values())),
                str(sum(len(ids) for ids in each.lost.values())),
                str(published),
                f"{each.first_loss:.3f} to {each.last_loss:.3f}",
            )
        )
    return table(("ranks", "started from", "ended", *counts, "loss"), rows)
