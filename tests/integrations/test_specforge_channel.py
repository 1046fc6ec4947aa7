"""The channel in the place of SpecForge's: many producers, each with its own count, and consumers that may die."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import MemberFailedError, QueueConfigError, QueueIOError, TrainerView
from tests.support import Child, InThread, assert_clean, wait_until
from tests.support.upstream import required

torch: Any = pytest.importorskip("torch")
required("specforge.runtime.contracts")

from fsqueue.integrations.specforge import RefChannel, SharedFeatureStore, channel  # noqa: E402  # only with SpecForge
from tests.support.specforge import Tensor, ref, refs  # noqa: E402

launch: Any = required("specforge.launch")
algorithms: Any = required("specforge.algorithms.builtin")

Open = Callable[..., RefChannel]
HIDDEN = 8


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open the run's directory, each time as another process would."""
    made: list[RefChannel] = []

    def open_one(producer: str | None = None, **options: Any) -> RefChannel:
        made.append(channel(tmp_path / "run", producer=producer, durable=False, **options))
        return made[-1]

    yield open_one
    for each in made:
        each.close()
        each.queue.close()
        each.ledger.close()
    assert_clean(tmp_path / "run" / "queue")


def ids(found: Any) -> list[str]:
    return [each.sample_id for each in found]


def test_each_producer_counts_its_own(opened: Open) -> None:
    """However the others' refs come and go; what failed for good is settled, too, and what comes back is not."""
    left, right, consumer = opened("left"), opened("right"), opened().queue
    left.publish_many(refs("l0", "l1", "l2"))
    right.publish(ref("r0"))
    right.publish_batch(refs("r1", "r2"))
    assert (left.published, left.consumed_remote(), left.in_flight_remote()) == (3, 0, 3)
    leased = consumer.get(4)
    assert ids(leased) == ["l0", "l1", "l2", "r0"]
    consumer.ack(leased[:1], step=1)
    consumer.fail(leased[1:2], "bad", retryable=False)
    consumer.fail(leased[2:], "again", retryable=True)
    assert [(each.consumed_remote(), each.in_flight_remote()) for each in (left, right)] == [(2, 1), (0, 3)]


def test_the_count_never_goes_down(opened: Open) -> None:
    """SpecForge's producer gives up where it does; so what a rewind brings back stays counted."""
    mine, consumer = opened("mine"), opened()
    mine.publish_many(refs("a", "b"))
    consumer.queue.ack(consumer.queue.get(2), step=1)
    assert mine.consumed_remote() == 2
    consumer.controller.rewind(after_step=0)
    assert (consumer.queue.depth(), mine.consumed_remote()) == (2, 2)
    mine.publish(ref("c"))
    assert (mine.consumed_remote(), mine.in_flight_remote()) == (2, 1)


def test_a_batch_that_is_refused_is_all_unpublished(opened: Open) -> None:
    """Its features may be aborted."""
    mine = opened("mine")
    publication = mine.begin_publish([ref("good"), ref("bad", metadata={"x": Tensor()})])
    with pytest.raises(TypeError):
        publication.commit()
    assert (ids(publication.unpublished_refs), publication.published_refs) == (["good", "bad"], ())
    assert (mine.published, mine.queue.depth(), mine.ledger.committed_count()) == (0, 0, 0)


def test_what_is_in_the_ledger_is_published(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the queue could not be reached: it comes into it later, so its features have to stay."""
    mine = opened("mine")
    publication = mine.begin_publish(refs("a", "b"))
    with monkeypatch.context() as patched, pytest.raises(QueueIOError):

        def refuse(*_: Any) -> None:
            raise QueueIOError("putting", "queue", OSError(28, "no space"))

        patched.setattr(mine.queue, "put", refuse)
        publication.commit()
    assert (ids(publication.published_refs), publication.unpublished_refs) == (["a", "b"], ())
    mine.publish(ref("c"))
    assert ids(mine.queue.get(9)) == ["a", "b", "c"]


def test_a_producer_that_is_started_again_doubles_nothing(opened: Open) -> None:
    """It may publish all again: what is trained, what waits, and what is new."""
    former = opened("mine")
    former.publish_many(refs("a", "b"))
    consumer = opened()
    consumer.queue.ack(consumer.queue.get(1), step=1)
    consumer.controller.ack_train_refs("t", ["a"], global_step=1, optimizer_durable=True)
    former.fail("preempted")
    mine = opened("mine")
    mine.publish_many(refs("a", "b", "c"))
    assert ids(consumer.queue.get(9)) == ["b", "c"]
    assert (mine.published, mine.consumed_remote()) == (3, 1)


def test_what_a_producer_had_no_time_to_put_is_put(opened: Open) -> None:
    """It died between the ledger and the queue; whoever starts in its place, or a trainer, makes up for it."""
    former = opened("mine")
    former.ledger.commit_samples(refs("a"))
    former.fail("killed")
    assert ids(opened("mine").queue.get(9)) == ["a"]


def test_the_name_of_a_living_producer_is_refused(opened: Open) -> None:
    opened("mine")
    with pytest.raises(QueueConfigError, match="mine"):
        opened("mine")
    with pytest.raises(ValueError, match="a name, to publish refs under"):
        opened().publish(ref("a"))


def test_how_long_members_wait_is_stored_once(opened: Open) -> None:
    """Who says nothing changes nothing."""
    assert opened().queue.stream().policy().restart_s == 1800
    opened("mine", restart_s=0)
    assert opened().queue.stream().policy().restart_s == 0


def test_consumers_that_are_done_stop_the_producers(opened: Open) -> None:
    mine, consumer = opened("mine"), opened()
    assert (mine.consumer_quantum(), mine.consumer_stopped(), mine.consumer_failure()) == (None, False, None)
    consumer.queue.publish_quantum(dp_size=2, batch_size=3, accumulation_steps=4)
    with TrainerView(consumer.queue):
        assert (mine.consumer_quantum(), mine.consumer_stopped()) == (24, False)
    wait_until(mine.consumer_stopped, "the consumer's end")


def test_consumers_that_failed_are_awaited(opened: Open) -> None:
    """For as long as the run says; after that the producer fails, too, and never closes as if all were well."""
    mine, consumer = opened("mine"), opened()
    mine.publish(ref("a"))
    with pytest.raises(ZeroDivisionError), TrainerView(consumer.queue):
        _ = 1 / 0
    assert (mine.consumer_stopped(), mine.consumer_failure(), mine.in_flight_remote()) == (False, None, 1)
    consumer.queue.configure_stream(restart_s=0)
    wait_until(lambda: mine.consumer_failure() is not None, "the failure")
    assert "ZeroDivisionError" in str(mine.consumer_failure()) and not mine.consumer_stopped()
    with pytest.raises(MemberFailedError, match="ZeroDivisionError") as caught:
        mine.in_flight_remote()
    try:
        raise caught.value
    except MemberFailedError:
        mine.fail("as SpecForge's driver does")
    (member,) = (member for member in consumer.queue.stream().members() if member.role == "producer")
    assert member.standing == "withdrawn"


# -- SpecForge's own producer -----------------------------------------------------------------------------------------


class Source:
    """Features of no meaning, in the shapes that EAGLE-3 asks for."""

    def generate_features(self, tasks: list[Any], *, capture: Any) -> list[dict[str, Any]]:
        tokens = {name: torch.ones(1, 4, dtype=torch.long) for name in ("input_ids", "attention_mask", "loss_mask")}
        return [
            tokens | {"hidden_state": torch.zeros(1, 4, 3 * HIDDEN), "target": torch.zeros(1, 4, HIDDEN)} for _ in tasks
        ]


def driver(refs_out: RefChannel, features: Path, count: int) -> Callable[..., int]:
    _, drive = launch.build_disagg_online_producer(
        algorithm=algorithms.builtin_algorithm_registry().resolve("eagle3"),
        prompts=[{"task_id": f"p{number}", "payload": {}} for number in range(count)],
        feature_store=SharedFeatureStore(features, durable=False),
        channel=refs_out,
        feature_source=Source(),
        run_id="run",
        target_hidden_size=HIDDEN,
        aux_hidden_state_layer_ids=(0, 1, 2),
        lease=1,
        in_flight_high_watermark=8,
        backpressure_poll_s=0.01,
    )
    result: Callable[..., int] = drive
    return result


def train_and_hang(pipe: Connection, path: Path) -> None:
    """A trainer that acknowledges one batch, leases another, and does nothing more."""
    run = channel(path, durable=False)
    run.queue.publish_quantum(dp_size=1, batch_size=4, accumulation_steps=1)
    with TrainerView(run.queue, batch=4) as view:
        trained = view.get()
        run.controller.ack_train_refs("t", ids(trained), global_step=1, optimizer_durable=True)
        view.get()
        pipe.send(ids(trained))
        pipe.recv()


def test_the_restarted_trainer_sees_the_whole_stream(opened: Open, tmp_path: Path) -> None:
    """SpecForge's driver, told to stop when the consumer has, outlives one that is killed, and ends with the next."""
    mine = opened("mine")
    drive = driver(mine, tmp_path / "features", 40)
    driving = InThread(lambda: drive(should_stop=mine.consumer_stopped))
    with Child(train_and_hang, tmp_path / "run") as trainer:
        trained = trainer.receive()
        trainer.kill()
    wait_until(lambda: mine.in_flight_remote() >= 8, "the watermark")
    assert driving.thread.is_alive() and not mine.queue.stream().all_closed("producer")
    run = opened()
    with TrainerView(run.queue, batch=4) as view:
        for step, batch in enumerate(iter(view.get, []), 2):
            view.ack(batch, step=step)
            trained += ids(batch)
    assert driving.result() == mine.published == mine.consumed_remote() == 40
    assert sorted(trained) == sorted(f"run:p{number}" for number in range(40))
    wait_until(mine.consumer_stopped, "the consumer's end")
