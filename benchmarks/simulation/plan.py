"""What happens in one run: a mount's rules, and for each client its steps and its faults. Made from a seed."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from simulation.kinds import draw
from simulation.rules import Rules

LEASE_S = 10.0
_WAITS_S = 12.0
Step = tuple[Any, ...]


@dataclass(frozen=True)
class Fault:
    """Something that befalls a client before its n-th file operation.

    Attributes:
        kind: "pause" (a SIGSTOP), "process" (a SIGKILL) or "node" (the host loses power).
        seconds: how long the pause lasts.
    """

    call: int
    kind: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Client:
    """One host with one process, which is started again after it died.

    Attributes:
        skew_s: how far its wall clock is ahead.
        steps: the calls that it makes, as ``(name, *arguments)``.
    """

    name: str
    skew_s: float
    steps: tuple[Step, ...]
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True)
class Plan:
    """One run.

    Attributes:
        lock: the queue's lock mode.
        heartbeat_s: whether owners keep a heartbeat (they beat by a step of their own).
        created: the queue is there already; else the clients create it, all at once.
    """

    seed: int
    rules: Rules
    clients: tuple[Client, ...]
    lock: str = "flock"
    durable: bool = True
    keep_done: bool = True
    heartbeat_s: float | None = None
    max_attempts: int | None = None
    created: bool = True

    def size(self) -> int:
        return sum(1 + len(client.steps) + len(client.faults) for client in self.clients)

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


def plan_from_json(text: str) -> Plan:
    """The plan that `Plan.to_json` wrote."""
    facts = json.loads(text)
    clients = tuple(
        Client(
            client["name"],
            client["skew_s"],
            tuple(tuple(step) for step in client["steps"]),
            tuple(Fault(**fault) for fault in client["faults"]),
        )
        for client in facts.pop("clients")
    )
    rules = facts.pop("rules")
    rules["lies"] = tuple(rules["lies"])
    return Plan(rules=Rules(**rules), clients=clients, **facts)


@dataclass
class _Maker:
    """Makes a plan's parts from one stream of random numbers.

    Attributes:
        archiving: much is packed and rewound, and so every ack names a step.
    """

    rng: random.Random
    shared_ids: bool
    archiving: bool
    known: list[str] = field(default_factory=list)

    def client(self, name: str, steps: int, faults: int) -> Client:
        made = [self._step(name, number) for number in range(steps)]
        skew_s = round(self.rng.uniform(-300.0, 300.0), 1)
        return Client(name, skew_s, tuple(made), tuple(self._fault() for _ in range(faults)))

    def _fault(self) -> Fault:
        """Calls are numbered from a process's start; the first thirty or so open the queue."""
        kind = self.rng.choice(("pause", "pause", "process", "node"))
        call = self.rng.randint(1, 260)
        return Fault(call, kind, round(self.rng.uniform(1.0, 40.0), 1) if kind == "pause" else 0.0)

    def _step(self, name: str, number: int) -> Step:
        rng = self.rng
        weights = _ARCHIVING if self.archiving else _WEIGHTS
        kind = rng.choices(list(weights), list(weights.values()))[0]
        if kind == "put":
            return ("put", self._new_ids(name, number))
        if kind == "get":
            partition = rng.choice((None, None, None, [0, 2], [1, 2]))
            return ("get", rng.randint(1, 4), rng.choice((None, None, 1.0)), partition)
        if kind == "work":
            return ("work", round(rng.choice((0.05, 1.0, 9.9, 10.05, 12.0, 31.0)) * rng.uniform(0.9, 1.1), 3))
        if kind == "ack":
            return (kind, rng.randint(1, 4), number if self.archiving else rng.choice((None, None, number)))
        if kind in ("release", "renew"):
            return (kind, rng.randint(1, 4))
        if kind == "fail":
            return ("fail", rng.randint(1, 2), rng.random() < 0.7)
        if kind == "by_id":
            ids = rng.sample(self.known, min(2, len(self.known)))
            return ("by_id", rng.choice(("ack", "fail", "fail_finally", "release")), ids)
        if kind == "requeue":
            return (kind, rng.sample(self.known, min(2, len(self.known))))
        return (kind, rng.randint(0, number)) if kind == "rewind" else (kind,)

    def _new_ids(self, name: str, number: int) -> list[str]:
        rng = self.rng
        ids = [f"{name}-{number}-{index}" for index in range(rng.randint(1, 3))]
        if self.shared_ids and rng.random() < 0.6:
            ids = [f"shared-{rng.randint(0, 2)}" for _ in ids]
        elif self.known and rng.random() < 0.3:
            ids[0] = rng.choice(self.known)
        self.known += ids
        return list(dict.fromkeys(ids))


_WEIGHTS = {
    "put": 22, "get": 30, "ack": 18, "work": 12, "fail": 5, "release": 4, "renew": 5, "beat": 3, "reclaim": 3,
    "reopen": 2, "by_id": 2, "requeue": 2, "rewind": 1, "move": 1,
    "pack": 1,
}  # fmt: skip
_ARCHIVING = {**_WEIGHTS, "ack": 24, "requeue": 3, "rewind": 8, "pack": 16}


def _waiting(client: Client) -> Client:
    """The same client, whose gets that wait do so for longer than a lease: only then it takes back what it has put."""
    steps = ((*step[:2], _WAITS_S, step[3]) if step[0] == "get" and step[2] else step for step in client.steps)
    return replace(client, steps=tuple(steps))


def make_plan(seed: int, lies: tuple[str, ...] = (), mount: str | None = None, unsurvived: bool = False) -> Plan:
    """The plan of a seed: two to four clients, a few steps each, a fault or two, one kind of mount.

    Args:
        lies: that are told too.
        mount: the kind of mount, instead of the one that the seed draws; see `simulation.kinds`.
        unsurvived: with the lies of the mount that are off for now.
    """
    rng = random.Random(seed)
    drawn = Rules(
        lock=rng.choice(("excludes", "excludes", "local", "absent")),
        believed=rng.choice((1.0, 1.0, 0.5, 0.0)),
        retransmits=rng.choice((0.0, 0.0, 0.02, 0.1)),
        stale_handles=rng.choice((0.0, 0.0, 0.0, 0.01)),
        repeats=rng.choice((0.0, 0.3)),
        latency_s=rng.choice((0.0005, 0.002, 0.02)),
    )
    rules = draw(seed, drawn, mount, unsurvived)
    rules = replace(rules, lies=tuple(dict.fromkeys((*rules.lies, *lies))))
    maker = _Maker(rng, shared_ids=rng.random() < 0.3, archiving=rng.random() < 0.25)
    clients = tuple(
        maker.client(f"c{index}", rng.randint(3, 12) * (1 + maker.archiving), rng.choice((0, 0, 0, 1, 1, 2)))
        for index in range(rng.randint(2, 4))
    )
    if "no-op-renames" in rules and "opening-asks-nothing" in rules:
        clients = tuple(_waiting(client) for client in clients)
    return Plan(
        seed,
        rules,
        clients,
        lock=rng.choice(("flock", "flock", "flock", "none")),
        durable=rng.random() < 0.5,
        keep_done=maker.archiving or rng.random() < 0.8,
        heartbeat_s=rng.choice((None, None, 3.0)),
        max_attempts=rng.choice((None, None, 2)),
        created=rng.random() < 0.8,
    )
