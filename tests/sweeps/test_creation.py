"""Several nodes make a queue at the same instant: all of them end up in the same one."""

from __future__ import annotations

import random
from functools import partial
from typing import NamedTuple

import msgspec
import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.disk.fileops import using
from fsqueue.engine.settings import SETTINGS, Settings
from fsqueue.features import SharedDirFeatureStore
from simulation.cache import Cache
from simulation.kinds import KINDS
from simulation.node import Process
from simulation.plan import Fault
from simulation.rules import Rules
from simulation.script import make_ref
from simulation.world import Died, Machine, World

UNHEARD_OF = Rules(
    "mix", "fuse.unheard-of", names_s=8.0, misses_s=1.0, listings_s=8.0,
    lies=("two-creators", "missing-while-replaced", "opening-asks-nothing", "opened-listings-are-old"),
)  # fmt: skip
SEEDS = 40


class Creators(NamedTuple):
    """A filesystem, and the processes of as many nodes, each with the faults that befall it."""

    world: World
    machines: list[Machine]


def creators(seed: int, rules: Rules, faults: dict[int, Fault] | None = None) -> Creators:
    world = World(rules)
    machines = []
    for number in range(3):
        rng = random.Random(f"{seed}/{number}")
        process = Process(world, Cache(world.server, rules, lambda: world.now, rng), rng)
        befalls = [faults[number]] if faults and number in faults else []
        machines.append(Machine(world, process, f"c{number}", 100.0 * number, befalls, rng))
    return Creators(world, machines)


def published(world: World, path: str) -> bytes:
    inode = world.server.walk(path)
    assert inode is not None
    return bytes(inode.data)


def create(machine: Machine, made: list[Settings], world: World) -> None:
    world.wait(random.Random(machine.name).random() * 0.01)
    try:
        with using(machine.ops):
            queue = FileSampleRefQueue("/queue", lease_timeout_s=10.0, durable=False)
        made.append(queue.settings)
        queue.put([make_ref(machine.name)])
        queue.close()
    except Died:
        pass


@pytest.mark.parametrize("rules", [KINDS["seaweedfs"], UNHEARD_OF], ids=["seaweedfs", "unheard-of"])
def test_all_creators_of_a_queue_are_in_the_same_one(rules: Rules) -> None:
    """Whatever a link or the creation of a file says of who was first; nothing is left of those who were not."""
    for seed in range(SEEDS):
        world, machines = creators(seed, rules)
        made: list[Settings] = []
        world.run([partial(create, machine, made, world) for machine in machines])
        assert not world.failures, (seed, world.failures)
        there = msgspec.json.decode(published(world, f"/queue/{SETTINGS}"), type=Settings)
        assert {each.queue_id for each in made} == {there.queue_id}, seed
        tmp, pending = world.server.walk("/queue/tmp"), world.server.walk("/queue/pending")
        assert tmp is not None and not tmp.entries
        assert pending is not None and len(pending.entries or ()) == len(machines)


@pytest.mark.parametrize("kind", ["process", "pause"])
def test_a_creator_that_dies_or_is_stopped_anywhere_keeps_the_others_together(kind: str) -> None:
    """One that goes on a minute later finds that it has lost."""
    for call in range(20, 75):
        world, machines = creators(call, KINDS["seaweedfs"], {0: Fault(call, kind, 60.0)})
        made: list[Settings] = []
        world.run([partial(create, machine, made, world) for machine in machines])
        assert not world.failures, (call, world.failures)
        there = msgspec.json.decode(published(world, f"/queue/{SETTINGS}"), type=Settings)
        assert {each.queue_id for each in made} == {there.queue_id}, call
        assert len(made) >= len(machines) - 1


def test_all_creators_of_a_feature_store_write_addresses_of_one() -> None:
    """A store's id is part of each of them."""
    for seed in range(SEEDS):
        world, machines = creators(seed, KINDS["seaweedfs"])
        roots: set[str] = set()

        def make(machine: Machine, roots: set[str] = roots) -> None:
            with using(machine.ops):
                roots.add(SharedDirFeatureStore("/store").store_id)

        world.run([partial(make, machine) for machine in machines])
        assert not world.failures, (seed, world.failures)
        assert len(roots) == 1
