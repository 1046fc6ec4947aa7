"""Ray actors that work on a queue, in a real Ray: whose their leases are, and what becomes of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.stream.members import Member
from tests.support import Queue, assert_clean, holders_in, ids, numbered, wait_until

ray = pytest.importorskip("ray", reason="the extra 'ray' is not installed; .ci/cluster installs it")

from fsqueue.integrations.ray import QueueActor, actor_label  # noqa: E402  # only where there is Ray

pytestmark = pytest.mark.filterwarnings("ignore")  # of Ray's own


class Worker(QueueActor[Any]):
    """An actor that does what a test asks of it."""

    def lease(self, count: int) -> list[str]:
        return ids(self.queue.get(count))

    def ack_some(self, count: int) -> list[str]:
        refs = self.queue.get(count)
        self.queue.ack(refs)
        return ids(refs)

    def produce(self, name: str) -> None:
        self.join_as_producer(name)

    def consume(self, name: str) -> None:
        self.join_as_consumer(name)

    def rank(self, rank: int, world: int) -> None:
        self.join_as_rank(rank, world, batch=2)

    def take(self) -> list[str]:
        return ids(self.view.get())

    def close_member(self) -> None:
        self.member.close()

    def close_view(self) -> None:
        self.view.close()

    def who(self) -> tuple[str, int]:
        return self.queue.owner, os.getpid()

    def finish(self) -> None:
        ray.actor.exit_actor()


class Producer(Worker):
    """An actor that takes its place as soon as it is made."""

    def __init__(self, queue: Queue) -> None:
        super().__init__(queue)
        self.join_as_producer("rollout-0")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray keeps a token there
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        ray.init(num_cpus=8, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture
def start(cluster: None) -> Iterator[Callable[..., Any]]:
    """Starts actors, which are killed when the test ends."""
    started = []

    def one(kind: type[Worker], *arguments: object, **options: object) -> Any:
        started.append(ray.remote(num_cpus=0)(kind).options(**options).remote(*arguments))
        return started[-1]

    yield one
    for actor in started:
        ray.kill(actor)


@pytest.fixture
def shared(path: Path) -> Iterator[Queue]:
    """A queue whose leases never expire by themselves, under the driver's label."""
    with FileSampleRefQueue(path, owner="driver", lease_timeout_s=None) as it:
        yield it


def member(queue: Queue, name: str) -> Member:
    """Return a member; one that is just withdrawing has two files, of which the later one counts."""
    found = [each for each in queue.stream().members() if each.record.name == name]
    return min(found, key=lambda each: each.state == "open")


def test_a_lease_is_labelled_as_its_actor_s(shared: Queue, path: Path, start: Callable[..., Any]) -> None:
    """By the actor's name, or its class's, and its id; not by the driver's label, which came with the queue."""
    shared.put(numbered(2))
    for options, label in (({"name": "rollout-7"}, "rollout-7-"), ({}, "Worker-")):
        actor = start(Worker, shared, **options)
        (leased,) = ray.get(actor.lease.remote(1))
        assert any(holder.startswith(f"{leased}@{label}") for holder in holders_in(path))
    assert shared.owner.startswith("driver.")


def test_a_killed_actor_s_leases_come_back(shared: Queue, path: Path, start: Callable[..., Any]) -> None:
    """Another one on its node has them by proof of its death, however long leases last."""
    shared.put(numbered(4))
    first, second = start(Worker, shared), start(Worker, shared)
    leased = ray.get(first.lease.remote(4))
    ray.get(second.who.remote())
    ray.kill(first)
    came: list[str] = []

    def all_came() -> bool:
        came.extend(ray.get(second.ack_some.remote(4)))
        return len(came) == 4

    wait_until(all_came, "the leases")
    assert sorted(came) == sorted(leased)
    assert_clean(path)


def test_an_actor_that_ray_starts_again_takes_its_place(shared: Queue, start: Callable[..., Any]) -> None:
    """As often as it is killed; its attempt goes up, which proves on any node that the one before is gone."""
    actor = start(Producer, shared, max_restarts=-1, max_task_retries=-1)
    pids = set()
    for attempt in range(3):
        _, pid = ray.get(actor.who.remote())
        pids.add(pid)
        found = member(shared, "rollout-0")
        assert (found.standing, found.record.process.pid, found.record.launch.restarts) == ("joined", pid, (attempt,))
        os.kill(pid, signal.SIGKILL)
    assert len(pids) == 3


@pytest.mark.parametrize("how", ["exit_actor", "last handle"])
def test_an_actor_that_ray_lets_finish_withdraws(how: str, shared: Queue, path: Path, cluster: None) -> None:
    """Its leases go back without an attempt, and its place is kept."""
    shared.put(numbered(3))
    actor = ray.remote(num_cpus=0)(Worker).remote(shared)
    ray.get(actor.consume.remote("filter"))
    ray.get(actor.lease.remote(3))
    if how == "exit_actor":
        actor.finish.remote()
    del actor
    wait_until(lambda: member(shared, "filter").standing == "withdrawn", "the actor to withdraw")
    assert (shared.depth(), shared.in_flight()) == (3, 0)
    assert_clean(path)


def test_a_rank_that_ends_by_itself_withdraws(shared: Queue, start: Callable[..., Any]) -> None:
    """What its view had out goes back."""
    shared.put(numbered(2))
    with shared.producer("rollout-0"):
        actor = start(Worker, shared)
        ray.get(actor.rank.remote(0, 1))
        assert len(ray.get(actor.take.remote())) == 2
        actor.finish.remote()
        wait_until(lambda: member(shared, "trainer-0").standing == "withdrawn", "the rank to withdraw")
        assert (shared.depth(), shared.in_flight()) == (2, 0)


def test_a_member_that_has_closed_stays_closed(shared: Queue, start: Callable[..., Any]) -> None:
    """The actor's end says nothing more of a producer that is done."""
    actor = start(Worker, shared)
    ray.get(actor.produce.remote("rollout-0"))
    ray.get(actor.close_member.remote())
    actor.finish.remote()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.who.remote())
    assert member(shared, "rollout-0").standing == "closed"


def test_member_and_view_say_that_they_are_missing(shared: Queue, start: Callable[..., Any]) -> None:
    actor = start(Worker, shared)
    with pytest.raises(RuntimeError, match="join_as_producer"):
        ray.get(actor.close_member.remote())
    with pytest.raises(RuntimeError, match="join_as_rank"):
        ray.get(actor.close_view.remote())


def test_the_driver_is_no_actor(cluster: None) -> None:
    with pytest.raises(RuntimeError, match="in the driver"):
        actor_label("Worker")


def test_another_queue_at_its_path_is_refused(shared: Queue, path: Path, start: Callable[..., Any]) -> None:
    """An actor that is made when the queue was replaced says so."""
    path.rename(path.with_name("moved"))
    FileSampleRefQueue(path, lease_timeout_s=None).close()
    actor = start(Worker, shared)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.who.remote())
    path.rename(path.with_name("other"))
    path.with_name("moved").rename(path)
