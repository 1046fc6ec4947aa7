"""As many clients as wanted, in virtual time: the engine itself, on the simulated NFS that `simulation` makes.

Nothing lies here, and nobody dies; but each request takes the server's time, and what the server does one after the
other, for all clients, waits its turn. So what is counted is the protocol under contention, retries and polls included.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.disk.fileops import using
from scaling.requests import Price, Requests, Speed
from simulation.cache import Cache
from simulation.hearts import Hearts
from simulation.kinds import KINDS
from simulation.node import Process
from simulation.run import deterministic
from simulation.script import QUEUE, make_ref
from simulation.world import START_S, Machine, World

LEASE_TIMEOUT_S = 300.0
HEARTBEAT_S = 75.0
_STACK_BYTES = 512 << 10
_ENOUGH = 1 << 60

Queue = FileSampleRefQueue[SampleRef]


class Cluster:
    """A server, and the nodes that use one queue on it.

    Attributes:
        clients: those that were started.
    """

    def __init__(self, speed: Speed) -> None:
        self.world = World(KINDS["nfs"], most_calls=_ENOUGH)
        self.clients: list[Client] = []
        self._speed = speed
        self._free_at: dict[str, float] = {}

    @property
    def now_s(self) -> float:
        return self.world.now - START_S

    def client(self, name: str) -> Client:
        self.clients.append(Client(self, name))
        return self.clients[-1]

    def filled(self, backlog: int) -> float:
        """Create the queue, with so many refs, by a client that does not count; return the time."""
        with Client(self, "creator").open() as queue:
            for number in range(backlog):
                queue.put([make_ref(f"s{number:06d}")])
        return self.now_s

    def spend(self, price: Price) -> None:
        """Let the running client wait for its answer; what is modified alone is modified in turn."""
        ends_at = self.world.now + self._speed.of(price)
        if price.place:
            began_at = max(self.world.now, self._free_at.get(price.place, 0.0))
            self._free_at[price.place] = began_at + price.modifies * self._speed.modify_s
            ends_at = began_at + self._speed.of(price)
        self.world.wait(ends_at - self.world.now)

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """Run these side by side until all have ended; raise what one of them raised."""
        before = threading.stack_size(_STACK_BYTES)
        try:
            self.world.run(list(works))
        finally:
            threading.stack_size(before)
        if self.world.failures:
            raise self.world.failures[0]


class Client(Machine):
    """A process on a node of its own.

    Attributes:
        requests: those that it has made.
        holds_s: for how long it held the order's lock, each time.
    """

    def __init__(self, cluster: Cluster, name: str) -> None:
        world, rng = cluster.world, random.Random(name)
        cache = Cache(world.server, world.rules, lambda: world.now, rng)
        self.requests = Requests(self._place_of)
        self.holds_s: list[float] = []
        self._cluster = cluster
        self._locked_at = 0.0
        super().__init__(world, Process(world, cache, rng), name, 0.0, [], rng)

    def _took(self, name: str, args: tuple[object, ...], kwargs: dict[str, object], result: object) -> None:
        self._lock_refused = False  # else the simulation would have it poll less often than it does
        self._cluster.spend(self.requests.note(name, args, kwargs, result))
        if name == "lock" and result is True:
            self._locked_at = self._cluster.world.now
        elif name == "unlock":
            self.holds_s.append(self._cluster.world.now - self._locked_at)

    def _place_of(self, fd: int) -> str:
        folder = self.process.files[fd].inode
        queue = self._cluster.world.server.walk(QUEUE)
        folders = {} if queue is None or queue.entries is None else queue.entries
        return next((name for name, inode in folders.items() if inode is folder), "queue")

    def open(self) -> Queue:
        with using(self.ops):
            return FileSampleRefQueue(
                QUEUE, lease_timeout_s=LEASE_TIMEOUT_S, heartbeat_s=HEARTBEAT_S, owner=self.name, durable=True
            )


@dataclass
class Made:
    """What clients made in a while.

    Attributes:
        lasted_s: how long it took, virtual seconds.
        operations, reads, modifies: by all of them.
        alone: modifications, by what they hold alone.
        held_s: for how long the order's lock was held in it.
    """

    lasted_s: float = 0.0
    operations: int = 0
    reads: int = 0
    modifies: int = 0
    held_s: float = 0.0
    alone: dict[str, int] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        return self.reads + self.modifies

    def __sub__(self, before: Made) -> Made:
        return Made(
            self.lasted_s - before.lasted_s,
            self.operations - before.operations,
            self.reads - before.reads,
            self.modifies - before.modifies,
            self.held_s - before.held_s,
            {place: made - before.alone.get(place, 0) for place, made in self.alone.items()},
        )


def made_by(clients: list[Client], lasted_s: float) -> Made:
    """Add up what these have made so far."""
    alone: dict[str, int] = {}
    for client in clients:
        for place, made in client.requests.alone.items():
            alone[place] = alone.get(place, 0) + made
    return Made(
        lasted_s,
        sum(client.requests.operations.total() for client in clients),
        sum(client.requests.reads for client in clients),
        sum(client.requests.modifies for client in clients),
        sum(sum(client.holds_s) for client in clients),
        alone,
    )


def restarted(nodes: int, speed: Speed, backlog: int, until_s: float, window_s: float) -> tuple[Made, Made]:
    """Open a handle on each of so many nodes at once; each gets a ref and works on it, or where there is none, waits.

    Returns:
        What was made until all had opened and had their first refs, and what in the window that ends at until_s.
    """
    with deterministic(), mock.patch("fsqueue.engine.heartbeat.heartbeats", Hearts()) as hearts:
        cluster = Cluster(speed)
        began_s = cluster.filled(backlog)
        ready_s: list[float] = []
        at_work: list[Made] = []
        marks: list[Made] = []

        def work(client: Client) -> Callable[[], None]:
            def run() -> None:
                hearts.run_in(client, lambda *_: None)
                with client.open() as queue:
                    if backlog:
                        queue.get(1, 60.0)
                    ready_s.append(cluster.now_s - began_s)
                    if len(ready_s) == nodes:
                        at_work.append(made_by(cluster.clients, ready_s[-1]))
                    left_s = max(0.01, began_s + until_s - cluster.now_s)
                    if backlog:
                        client.ops.sleep(left_s)
                    else:
                        queue.get(1, left_s)

            return run

        def watch() -> None:
            for at_s in (until_s - window_s, until_s):
                cluster.world.wait(max(0.0, began_s + at_s - cluster.now_s))
                marks.append(made_by(cluster.clients, at_s))

        cluster.run([*(work(cluster.client(f"node-{number}")) for number in range(nodes)), watch])
        return at_work[0], marks[1] - marks[0]


def worked(pairs: int, speed: Speed, samples: float, batch: int, lasts_s: float) -> tuple[Made, int]:
    """Have so many nodes put samples a second, all together, and as many get and acknowledge them.

    Returns:
        What was made meanwhile, and how many samples went through.
    """
    with deterministic(), mock.patch("fsqueue.engine.heartbeat.heartbeats", Hearts()) as hearts:
        cluster = Cluster(speed)
        began_s = cluster.filled(0)
        through = [0]
        every_s = pairs * batch / samples

        def left_s() -> float:
            return began_s + lasts_s - cluster.now_s

        def put(client: Client, index: int) -> None:
            hearts.run_in(client, lambda *_: None)
            with client.open() as queue:
                cluster.world.wait(every_s * index / pairs)
                number = 0
                while left_s() > 0:
                    began = cluster.now_s
                    queue.put([make_ref(f"n{index}-{number}-{at}") for at in range(batch)])
                    number += 1
                    cluster.world.wait(max(0.0, min(began + every_s - cluster.now_s, left_s())))

        def take(client: Client, index: int) -> None:
            hearts.run_in(client, lambda *_: None)
            with client.open() as queue:
                while left_s() > 0:
                    refs = queue.get(batch, max(0.01, left_s()))
                    queue.ack(refs)
                    through[0] += len(refs)

        works: list[Callable[[], None]] = [
            partial(work, cluster.client(f"{work.__name__}-{index}"), index)
            for index in range(pairs)
            for work in (put, take)
        ]
        cluster.run(works)
        return made_by(cluster.clients, cluster.now_s - began_s), through[0]


def cycle(batch: int, speed: Speed) -> Made:
    """Have one client alone put, get and acknowledge a batch, not one of its first, which open what later ones use."""
    with deterministic():
        cluster = Cluster(speed)
        client = cluster.client("alone")
        with client.open() as queue:
            for number in range(3):
                before = made_by([client], cluster.now_s)
                queue.put([make_ref(f"s{number}-{at}") for at in range(batch)])
                queue.ack(queue.get(batch))
            return made_by([client], cluster.now_s) - before
