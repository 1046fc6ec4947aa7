"""What happens in a run: two ranks; rank 0 is killed inside a window; all are; three go on; one is killed; one ends it.

The producers live through all of it: they are the same processes from the first sample to the end.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass, field

from specforging.crew import Crew, wait
from specforging.settings import Generation, Settings, ledger_of

GENERATIONS = (
    Generation(0, world=2, dying={"0": 6}),
    Generation(1, world=2, resume_from=4, dying={"0": 13, "1": 13}),
    Generation(2, world=3, resume_from=12, dying={"1": 15}),
    Generation(3, world=1, resume_from=14),
)


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
    for name, process in producers.items():
        if not outcome.deviations:
            outcome.expect(f"{name} ended with", wait(process, until), 0)
            if process.returncode:
                outcome.deviations.append(crew.last_words(name))
    outcome.seconds = time.monotonic() - began
    return outcome


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
