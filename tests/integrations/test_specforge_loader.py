"""SpecForge's own loader and feature stores over its queue, over a file queue, and over a view of a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, TrainerView
from tests.support.upstream import required

torch: Any = pytest.importorskip("torch")
required("specforge.runtime.contracts")

from tests.support.specforge import QUEUES, STORES, SampleRef  # noqa: E402  # only where there is SpecForge

loaders: Any = required("specforge.runtime.data_plane.feature_dataloader")


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return STORES[request.param](tmp_path)


class Stream:
    """A stream of refs that has ended, in a queue of some kind."""

    def __init__(self, kind: str, path: Path, store: Any, count: int) -> None:
        self.store = store
        self.refs = [self.stored(number) for number in range(count)]
        if kind == "a view":
            self.files = FileSampleRefQueue(path / "queue", ref_type=SampleRef, durable=False)
            with self.files.producer("rollout"):
                self.files.put(self.refs)
            self.queue: Any = TrainerView(self.files, batch=2, rest="return")
        else:
            self.files = self.queue = QUEUES[kind](path)
            self.queue.put(self.refs)

    def stored(self, number: int) -> Any:
        tensors = {"hidden": torch.full((2, 3), float(number))}
        return self.store.put(tensors, sample_id=f"s{number}", metadata={"run_id": "run", "strategy": "eagle3"})

    def loader(self, **options: Any) -> Any:
        return loaders.FeatureDataLoader(self.store, self.queue, **{"batch_size": 2, "gc_interval_s": None} | options)

    def counts(self) -> tuple[int, int]:
        return self.files.depth(), self.files.in_flight()

    def close(self) -> None:
        for it in {id(it): it for it in (self.queue, self.files)}.values():
            getattr(it, "close", lambda: None)()


@pytest.fixture(params=["theirs", "ours", "a view"])
def stream(request: pytest.FixtureRequest, tmp_path: Path, store: Any) -> Iterator[Callable[[int], Stream]]:
    made: list[Stream] = []

    def make(count: int) -> Stream:
        made.append(Stream(request.param, tmp_path, store, count))
        return made[0]

    yield make
    made[0].close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_sample_once_and_in_order(stream: Callable[[int], Stream], num_workers: int) -> None:
    """Each batch is acknowledged when the next one is asked for."""
    it = stream(6)
    loader = it.loader(num_workers=num_workers)
    batches = [(batch.sample_ids, batch.tensors["hidden"][:, 0, 0].tolist()) for batch in loader]
    assert batches == [(["s0", "s1"], [0.0, 1.0]), (["s2", "s3"], [2.0, 3.0]), (["s4", "s5"], [4.0, 5.0])]
    loader.close()
    assert it.counts() == (0, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_short_last_batch_is_dropped_for_good(stream: Callable[[int], Stream], num_workers: int) -> None:
    """The loader fails its refs and aborts their features; of a view it gets one where `rest="return"` asks for it."""
    it = stream(3)
    loader = it.loader(num_workers=num_workers)
    assert [batch.sample_ids for batch in loader] == [["s0", "s1"]]
    loader.close()
    assert it.counts() == (0, 0)
    with pytest.raises(KeyError):
        it.store.get(
            SampleRef("s2", "run", None, it.stored(9).feature_store_uri, {"hidden": "s2/hidden"}, {}, "eagle3")
        )


def test_a_short_last_batch_is_trained_where_that_is_wanted(stream: Callable[[int], Stream]) -> None:
    it = stream(3)
    assert [batch.sample_ids for batch in it.loader(drop_last=False)] == [["s0", "s1"], ["s2"]]
    assert it.counts() == (0, 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_features_that_are_gone_fail_their_batch_for_good(stream: Callable[[int], Stream], num_workers: int) -> None:
    it = stream(4)
    it.store.abort("s1", reason="lost")
    loader = it.loader(num_workers=num_workers)
    with pytest.raises(KeyError):
        list(loader)
    loader.close()
    depth, in_flight = it.counts()
    assert (depth, in_flight) == (2, 0)


def test_acks_may_be_the_trainer_s(stream: Callable[[int], Stream]) -> None:
    """Deferred to the optimizer's boundary, by fresh refs or, with a view, by ids."""
    it = stream(4)
    batches = list(it.loader(ack=False))
    assert it.counts() == (0, 4)
    trained = [sample_id for batch in batches for sample_id in batch.sample_ids]
    if hasattr(it.queue, "ack_ids"):
        it.queue.step = 7
        it.queue.ack_ids(trained)
        assert it.files.rewind(after_step=6) == trained
    else:
        it.queue.ack([SampleRef(sample_id, "", None, "", {}, {}, "") for sample_id in trained])
    assert it.counts()[1] == 0


@pytest.mark.parametrize("stream", ["a view"], indirect=True)
def test_what_was_loaded_ahead_and_not_trained_is_pending_again(stream: Callable[[int], Stream]) -> None:
    """Where the loader is closed early; what it has yielded is the trainer's to settle."""
    it = stream(8)
    loader = it.loader(num_workers=2, ack=False)
    first = next(iter(loader))
    loader.close()
    it.queue.ack_ids(first.sample_ids)
    assert it.counts() == (6, 0)
