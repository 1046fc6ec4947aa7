"""What happens in a run: two ranks; rank 0 is killed inside a window; all are; three go on; one is killed; one ends it.

The producers live through the death of ranks. One of them is killed, too, once, and started again.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass, field

from specforging.crew import Crew, wait
from specforging.settings import RUN_ID, Generation, Settings, ledger_of

_LOOK_S = 0.1

GENERATIONS = (
    Generation(0, world=2, dying={"0": 6}),
    Generation(1, world=2, resume_from=4, dying={"0": 13, "1": 13}),
    Generation(2, world=3, resume_from=12, dying={"1": 15}),
    Generation(3, world=1, resume_from=14),
)


KILLED_PRODUCER = "rollout-1"
"""Killed when the first ranks are gone, waiting for others: about half of its samples are published."""


@dataclass
class Outcome:
    """Collect what was not as planned.

    Attributes:
        published: for each generation, how many samples the producers had published when its ranks were gone.
    """

    deviations: list[str] = field(default_factory=list)
    published: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def expect(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            self.deviations.append(f"{what}: found {found}, expected {expected}")


def play(settings: Settings, crew: Crew, guard_s: float) -> Outcome:
    """Run it all; whatever hangs is given up after guard_s seconds."""
    outcome, began = Outcome(), time.monotonic()
    until = began + guard_s
    producers = {name: crew.producer(name) for name in producer_names(settings)}
    for generation in GENERATIONS:
        if not outcome.deviations:
            _train(crew, generation, producers, outcome, until)
            with closing(ledger_of(settings)) as ledger:
                outcome.published.append(ledger.committed_count())
        if generation is GENERATIONS[0] and not outcome.deviations:
            _kill_one(settings, crew, producers, until)
    for name, process in producers.items():
        if not outcome.deviations:
            outcome.expect(f"{name} ended with", wait(process, until), 0)
            if process.returncode:
                outcome.deviations.append(crew.last_words(name))
    outcome.seconds = time.monotonic() - began
    return outcome


def _kill_one(settings: Settings, crew: Crew, producers: dict[str, subprocess.Popen[bytes]], until: float) -> None:
    """Kill a producer that has published something, and start it again."""
    mine = f"{RUN_ID}:{KILLED_PRODUCER}-"
    with closing(ledger_of(settings)) as ledger:
        while not any(sample_id.startswith(mine) for sample_id in ledger.all_committed_ids()):
            if time.monotonic() > until:
                return
            time.sleep(_LOOK_S)
    producers[KILLED_PRODUCER].kill()
    producers[KILLED_PRODUCER].wait()
    producers[KILLED_PRODUCER] = crew.producer(KILLED_PRODUCER)


def producer_names(settings: Settings) -> list[str]:
    return [f"rollout-{number}" for number in range(settings.producers)]


def _train(
    crew: Crew,
    generation: Generation,
    producers: dict[str, subprocess.Popen[bytes]],
    outcome: Outcome,
    until: float,
) -> None:
    ranks = [crew.rank(generation, rank) for rank in range(generation.world)]
    for rank, process in enumerate(ranks):
        code, name = wait(process, until), f"trainer-{generation.number}-{rank}"
        if str(rank) in generation.dying:
            outcome.expect(f"{name} was to be killed, and ended with", code, -signal.SIGKILL)
        elif generation.dying:
            outcome.expect(f"{name}, whose peer was killed, ended with an error", bool(code), True)
        else:
            outcome.expect(f"{name} ended with", code, 0)
        if outcome.deviations:
            outcome.deviations.append(crew.last_words(name))
            return
    if generation.dying:
        alive = [name for name, process in producers.items() if process.poll() is None]
        outcome.expect("producers alive when the ranks had gone", alive, list(producers))
