"""What happens in one run of a stream: a mount, a policy, and for each member its work and its faults, from a seed."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from typing import Any

from simulation.plan import Fault, make_plan
from simulation.rules import Rules

SILENCE_S = 6.0
BEAT_S = 2.0
_CALLS_MORE = 100  # than runs without a stream make: else nobody would come to an end
LONG_AWAIT_S, RANKS_AWAIT_S, SHORT_AWAIT_S = 900.0, 120.0, 40.0


@dataclass(frozen=True)
class Part:
    """One member: a process on a host of its own, which a scheduler starts again after it ended.

    Attributes:
        role: "producer", "consumer" (gets and acks by itself) or "rank" (has a `TrainerView`).
        skew_s: how far its wall clock is ahead.
        ids: what it puts, if it produces.
        proof: it says as the how manieth attempt it was started.
        withdraws: after so many refs it is told to leave, each time once.
        understudy: while it is stopped, its scheduler starts another process in its place.
        twin_after: after so many refs its launcher starts another process in its place, with proof, though it still
            works, or was stopped and will wake; 0: it does not.
        gone: it does not come back after it died or withdrew.
    """

    name: str
    role: str
    skew_s: float
    ids: tuple[str, ...] = ()
    proof: bool = True
    withdraws: tuple[int, ...] = ()
    faults: tuple[Fault, ...] = ()
    understudy: bool = False
    twin_after: int = 0
    gone: bool = False


@dataclass(frozen=True)
class StreamPlan:
    """One run.

    Attributes:
        high: the producers' watermark; half of it is the low one.
    """

    seed: int
    rules: Rules
    parts: tuple[Part, ...]
    await_s: float = LONG_AWAIT_S
    quorum: int = 0
    high: int = 6
    lock: str = "flock"

    def of(self, role: str) -> list[Part]:
        return [part for part in self.parts if part.role == role]

    @property
    def in_step(self) -> bool:
        """Whether several ranks need each other, to the end."""
        return len(self.of("rank")) > 1

    @property
    def has_losses(self) -> bool:
        """Whether somebody is gone for good, so that others may have to end with an error."""
        return any(part.gone for part in self.parts)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


def stream_plan_from_json(text: str) -> StreamPlan:
    """The plan that `StreamPlan.to_json` wrote."""
    facts: dict[str, Any] = json.loads(text)
    rules = facts.pop("rules")
    rules["lies"] = tuple(rules["lies"])
    parts = []
    for part in facts.pop("parts"):
        faults = tuple(Fault(**fault) for fault in part.pop("faults"))
        part.update(ids=tuple(part["ids"]), withdraws=tuple(part["withdraws"]), faults=faults)
        parts.append(Part(**part))
    return StreamPlan(rules=Rules(**rules), parts=tuple(parts), **facts)


def make_stream_plan(seed: int, mount: str | None = None) -> StreamPlan:
    """The plan of a seed: one or two producers, one to three consumers or ranks, a fault or two each.

    The mount is that of the same seed without a stream, if a process can know there what was put before, and whether a
    rename that has failed was done: else who acks late may be told that it was in time.
    """
    rng = random.Random(f"{seed}/stream")
    rules = make_plan(seed, mount=mount).rules
    if not rules.deduplicates or "rename-keeps-ctime" in rules:
        rules = make_plan(seed, mount="nfs").rules
    rules = replace(rules, stale_handles=rules.stale_handles / _CALLS_MORE)
    kind = rng.choice(("consumer", "consumer", "rank"))
    parts = [_part(rng, f"rollout-{n}", "producer") for n in range(rng.choice((1, 2, 2)))]
    trainers = rng.choice((1, 2)) if kind == "rank" else rng.choice((1, 2, 3))
    parts += [_part(rng, f"trainer-{n}", kind) for n in range(trainers)]
    await_s = RANKS_AWAIT_S if kind == "rank" and trainers > 1 else LONG_AWAIT_S
    plan = StreamPlan(seed, rules, tuple(parts), await_s, lock=rng.choice(("flock", "flock", "none")))
    plan = _with_losses(plan, rng) if rng.random() < 0.25 else plan
    rng = random.Random(f"{seed}/twins")
    return _twins(plan, rng) if rng.random() < 0.25 else plan


def _part(rng: random.Random, name: str, role: str) -> Part:
    ids = tuple(f"{name}-{number}" for number in range(rng.randint(3, 7))) if role == "producer" else ()
    faults = tuple(_fault(rng) for _ in range(rng.choice((0, 0, 1, 1, 2))))
    return Part(
        name,
        role,
        round(rng.uniform(-300.0, 300.0), 1),
        ids,
        proof=rng.random() < 0.6,
        withdraws=tuple(sorted(rng.sample(range(1, 5), rng.choice((0, 0, 1))))),
        faults=faults,
        understudy=role == "consumer" and rng.random() < 0.5,
    )


def _twins(plan: StreamPlan, rng: random.Random) -> StreamPlan:
    """The same run with two or three ranks, of whom some are replaced while they work, and plenty of work for them."""
    ranks = [_part(rng, f"trainer-{number}", "rank") for number in range(rng.choice((2, 2, 3)))]
    replaced = rng.sample(range(len(ranks)), rng.choice((1, 1, 2)))
    for number, part in enumerate(ranks):
        twin_after = rng.randint(1, 4) if number in replaced else 0
        ranks[number] = replace(
            part, proof=bool(twin_after) or part.proof, understudy=not twin_after, twin_after=twin_after
        )
    producers = [
        replace(part, ids=tuple(f"{part.name}-{number}" for number in range(rng.randint(16, 30))))
        for part in plan.of("producer")
    ]
    return replace(plan, parts=(*producers, *ranks), await_s=RANKS_AWAIT_S, high=40)


def _fault(rng: random.Random) -> Fault:
    kind = rng.choice(("pause", "pause", "process", "process", "node"))
    return Fault(rng.randint(30, 700), kind, round(rng.uniform(1.0, 40.0), 1) if kind == "pause" else 0.0)


def _with_losses(plan: StreamPlan, rng: random.Random) -> StreamPlan:
    """The same run, of which one member is gone for good; a quorum of producers may be enough."""
    victim = rng.randrange(len(plan.parts))
    parts = list(plan.parts)
    end = (
        {"withdraws": (rng.randint(1, 3),)}
        if rng.random() < 0.5
        else {"faults": (Fault(rng.randint(60, 200), "node"),)}
    )
    parts[victim] = replace(parts[victim], gone=True, understudy=False, twin_after=0, **end)
    enough = parts[victim].role == "producer" and len(plan.of("producer")) > 1 and rng.random() < 0.6
    return replace(plan, parts=tuple(parts), await_s=SHORT_AWAIT_S, quorum=1 if enough else 0)
