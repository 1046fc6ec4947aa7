"""The verdict of benchmarks/specforge_run.py on runs that are made up: it finds what deviates. No SpecForge needed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from specforging.settings import Generation, Settings, ledger_of
from specforging.story import GENERATIONS, Outcome, producer_names
from specforging.verdict import judge
from tests.support import refs


def made_up(folder: Path, samples: Iterator[str]) -> Settings:
    """Write what a run leaves that trained these samples, in their order."""
    settings = Settings(str(folder))
    steps: dict[int, list[str]] = {}
    ends = [later.resume_from for later in GENERATIONS[1:]] + [24]
    for generation, last in zip(GENERATIONS, ends, strict=True):
        for step in range((generation.resume_from or 0) + 1, (last or 0) + 1):
            steps[step] = [next(samples) for _ in range(settings.window(generation.world))]
        note(settings, generation, steps)
    settle(settings, steps)
    for name, before in zip(producer_names(settings), (0, 45), strict=True):
        said = {"left_out": before, "produced": 80 - before, "consumed": 80 - before}
        settings.at(f"{name}.json").write_text(json.dumps(said))
    return settings


def note(settings: Settings, generation: Generation, steps: dict[int, list[str]]) -> None:
    """As its ranks did, who died inside the step after the last checkpoint but one."""
    begun = {step: ids for step, ids in steps.items() if step > (generation.resume_from or 0)}
    lost = {} if not generation.dying else {max(begun) + 1: ["lost"]}
    for rank in range(generation.world):
        lines = [
            {"step": step, "ids": ids[rank :: generation.world], "loss": 1.0 / step}
            for step, ids in (begun | lost).items()
        ]
        path = settings.at(f"trained-{generation.number}-{rank}.jsonl")
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def settle(settings: Settings, steps: dict[int, list[str]]) -> None:
    with closing(ledger_of(settings)) as ledger, FileSampleRefQueue(settings.queue, durable=False) as queue:
        for step, ids in steps.items():
            every = list(dict.fromkeys(ids))
            ledger.commit_samples(refs(*every))
            ledger.record_train_ack(every, global_step=step, optimizer_durable=True)
            queue.put(refs(*every))
            queue.ack(queue.get(len(every)), step=step)


def verdict(settings: Settings) -> list[str]:
    outcome = Outcome(published=[80, 140, 160, 160])
    said = judge(settings, outcome)
    assert "checkpoint 14" in said
    return outcome.deviations


def numbered() -> Iterator[str]:
    return (f"s{number}" for number in count())


def test_a_run_as_it_should_be(tmp_path: Path) -> None:
    assert verdict(made_up(tmp_path, numbered())) == []


def test_a_sample_that_is_trained_twice(tmp_path: Path) -> None:
    """Instead of another one: the step has its number of samples all the same."""
    samples = (f"s{number if number != 150 else 3}" for number in count())
    found = "\n".join(verdict(made_up(tmp_path, samples)))
    assert "trained on twice: found ['s3']" in found and "samples that it was trained on: found 159" in found


def test_a_step_that_lacks_a_sample(tmp_path: Path) -> None:
    settings = made_up(tmp_path, numbered())
    path = settings.at("trained-1-0.jsonl")
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join(rest) + "\n")
    found = "\n".join(verdict(settings))
    assert f"samples of step {json.loads(first)['step']}: found 4, expected 8" in found
    assert "steps in the ledger as noted" not in found, "the ledger is asked for the noted ones"


@pytest.mark.parametrize("what", ["pending", "producer"])
def test_what_the_others_say(tmp_path: Path, what: str) -> None:
    settings = made_up(tmp_path, numbered())
    if what == "pending":
        with FileSampleRefQueue(settings.queue, durable=False) as queue:
            queue.put(refs("left"))
    else:
        settings.at("rollout-1.json").write_text(json.dumps({"left_out": 45, "produced": 35, "consumed": 34}))
    (found,) = verdict(settings)
    assert ("the queue: found (1, 0" if what == "pending" else "rollout-1 counts as settled: found 34") in found
