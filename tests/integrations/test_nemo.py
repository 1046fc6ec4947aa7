"""NeMo Automodel's queue and the directory in its place: its own refs, leases, stores, pipeline and loader."""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, InvalidRefError, MemberFailedError, QueueConfigError
from tests.support import GUARD_S, Child, InThread, Tap, assert_clean, content, names_in, wait_until
from tests.support.upstream import required

torch: Any = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")  # of NeMo's own

streaming: Any = required("nemo_automodel.components.speculative.streaming")

from fsqueue.integrations.nemo import SampleRefCodec, SharedSampleRefQueue  # noqa: E402  # only where there is NeMo

FEATURES = ("input_ids", "aux_hidden_states", "attention_mask", "loss_mask", "logits")


def ref(sample_id: str, **fields: Any) -> Any:
    """A ref of EAGLE-3, with all that it requires."""
    given = {
        "sample_id": sample_id,
        "run_id": "run",
        "store_uri": "mem://local",
        "feature_keys": {name: f"{sample_id}/{name}" for name in FEATURES},
        "feature_specs": {name: streaming.FeatureSpec((1, 4), torch.bfloat16) for name in FEATURES},
        "algorithm": streaming.FeatureAlgorithm.EAGLE3,
        "schema_version": 1,
        "num_tokens": 4,
        "estimated_bytes": 40,
        "target_model_version": "0",
        "draft_weight_version": "0",
    }
    return streaming.SampleRef(**given | fields)


def tensors(number: int) -> dict[str, Any]:
    return {name: torch.full((1, 4), number, dtype=torch.long) for name in FEATURES}


def stored(store: Any, number: int) -> Any:
    return store.put(
        f"s{number}",
        tensors(number),
        run_id="run",
        algorithm=streaming.FeatureAlgorithm.EAGLE3,
        schema_version=1,
        target_model_version="0",
        draft_weight_version="0",
        num_tokens=4,
    )


@dataclass
class Health:
    resident_bytes: int = 0
    capacity_bytes: int = 100
    sample_count: int = 0
    high_watermark_hit: bool = False
    low_watermark_hit: bool = True


class Store:
    """A store that is as full as a test says."""

    def __init__(self) -> None:
        self.now = Health()

    def health(self) -> Health:
        return self.now

    def gc(self) -> int:
        raise OSError("no luck: a queue goes on without")


Make = Callable[..., Any]


@pytest.fixture(params=["theirs", "ours"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    made: list[Any] = []

    def build(store: Any = None, **options: Any) -> Any:
        if request.param == "theirs":
            return streaming.SampleRefQueue(store or Store(), **options)
        made.append(SharedSampleRefQueue(store or Store(), tmp_path / "q", durable=False, **options))
        return made[-1]

    yield build
    for queue in made:
        queue.queue.close()
        assert_clean(tmp_path / "q")


def ids(queue: Any, count: int) -> list[str]:
    return [queue.acquire().ref.sample_id for _ in range(count)]


# -- refs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int64", "bool", "float8_e4m3fn"])
def test_refs_come_back_equal(tmp_path: Path, dtype: str) -> None:
    """With dtypes and algorithm as the objects that they were, and the features in their order."""
    order = ("target_last_hidden_states", "loss_mask", "input_ids", "target_hidden_states")
    given = ref(
        "s",
        algorithm=streaming.FeatureAlgorithm.DSPARK,
        feature_keys={name: name for name in order},
        feature_specs={name: streaming.FeatureSpec((2, 3), getattr(torch, dtype)) for name in order},
    )
    with FileSampleRefQueue(tmp_path / "q", codec=SampleRefCodec(), durable=False) as queue:
        queue.put([given])
        written = content(tmp_path / "q" / "pending" / "s.json")
        assert written["feature_specs"]["loss_mask"] == {"shape": [2, 3], "dtype": dtype}
        assert written["algorithm"] == "dspark"
        (found,) = queue.get(1)
        assert (found, type(found)) == (given, streaming.SampleRef)
        assert found.feature_specs["input_ids"].dtype is getattr(torch, dtype)
        assert (found.algorithm, found.feature_names()) == (streaming.FeatureAlgorithm.DSPARK, order)
        assert queue.ack([replace(given)]) == []


def test_what_no_record_can_say_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(InvalidRefError, match=r"SampleRefCodec\.to_wire does not take it")
    with FileSampleRefQueue(tmp_path / "q", codec=SampleRefCodec()) as queue, refused:
        queue.put([object()])


# -- the queue --------------------------------------------------------------------------------------------------------


def test_refs_are_leased_in_order_and_acknowledged(make: Make) -> None:
    queue = make()
    for name in "abc":
        queue.put(ref(name))
    assert (queue.pending_count(), queue.outstanding_count()) == (3, 0)
    lease = queue.acquire()
    assert (lease.ref, lease.redelivery_count, lease.visibility_timeout.seconds) == (ref("a"), 0, 30.0)
    assert 29 < lease.deadline - time.monotonic() <= 30
    queue.ack(lease)
    queue.ack(lease)
    assert ids(queue, 2) == ["b", "c"]
    assert queue.acquire(poll_interval=0.001) is None
    assert (queue.pending_count(), queue.outstanding_count()) == (0, 2)


def test_an_id_that_is_there_is_refused(make: Make) -> None:
    """Pending or leased; an acknowledged one may come again."""
    queue = make()
    queue.put(ref("a"))
    for put in (queue.put, queue.put_blocks_until_below):
        with pytest.raises(ValueError, match="'a'"):
            put(ref("a"))
    lease = queue.acquire()
    with pytest.raises(ValueError, match="'a'"):
        queue.put(ref("a"))
    queue.ack(lease)
    queue.put(ref("a"))
    assert queue.acquire().redelivery_count == 0


def test_what_failed_comes_again_at_the_tail(make: Make) -> None:
    """Its lease tells how often; the old lease settles nothing any more."""
    queue = make()
    queue.put(ref("a"))
    queue.put(ref("b"))
    first = queue.acquire()
    queue.fail(first)
    queue.fail(first)
    assert queue.acquire().ref.sample_id == "b"
    again = queue.acquire()
    assert (again.ref.sample_id, again.redelivery_count) == ("a", 1)
    queue.ack(first)
    assert queue.outstanding_count() == 2
    queue.ack(again)
    assert queue.outstanding_count() == 1


def test_an_expired_lease_is_reclaimed_and_fenced_off(make: Make) -> None:
    queue = make(visibility_timeout=streaming.VisibilityTimeout(0.3))
    queue.put(ref("a"))
    first = queue.acquire()
    assert queue.reclaim_expired() == 0
    wait_until(lambda: queue.reclaim_expired() == 1, "the lease expires")
    again = queue.acquire()
    assert again.redelivery_count == 1
    queue.ack(first)
    queue.fail(first)
    assert (queue.pending_count(), queue.outstanding_count()) == (0, 1)
    queue.ack(again)
    assert queue.outstanding_count() == 0


@pytest.mark.parametrize("seconds", [90.0, None])
def test_a_restart_takes_the_timeout_that_the_queue_has(tmp_path: Path, seconds: float | None) -> None:
    """As an operator changed it meanwhile; one that is given still has to be the queue's."""
    with SharedSampleRefQueue(Store(), tmp_path / "q", durable=False) as queue:
        assert queue.queue.lease_timeout_s == 30.0
        queue.queue.configure(lease_timeout_s=seconds)
        queue.queue.close()
    again = SharedSampleRefQueue(Store(), tmp_path / "q", durable=False)
    again.put(ref("a"))
    lease = again.acquire()
    assert lease.visibility_timeout.seconds == (seconds or math.inf) and lease.deadline > time.monotonic() + 60
    again.ack(lease)
    assert again.queue.counts() == (0, 0, 1, 0)
    again.queue.close()
    with pytest.raises(QueueConfigError, match="lease_timeout_s"):
        SharedSampleRefQueue(Store(), tmp_path / "q", visibility_timeout=streaming.VisibilityTimeout(30.0))


def test_leases_that_were_lost_are_let_go(tmp_path: Path) -> None:
    """Nothing is kept for a lease that nobody can settle any more."""
    queue = SharedSampleRefQueue(Store(), tmp_path / "q", durable=False)
    queue.put(ref("a"))
    kept = weakref.ref(queue.acquire())
    gc.collect()
    assert kept() is None
    queue.queue.close()


def test_the_outcome_of_others_is_waited_for_without_spinning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the stream, whatever the interval: the first look is as asked for, each later one waits."""
    with SharedSampleRefQueue(Store(), tmp_path / "q", producer="rollout-0", durable=False) as other:
        other.put(ref("a"))
        held = other.acquire()
    queue = SharedSampleRefQueue(Store(), tmp_path / "q", durable=False)
    get, waits = queue.queue.get, []

    def noted(max_refs: int, timeout_s: float) -> Any:
        waits.append(timeout_s)
        if len(waits) == 3:
            other.fail(held)
        return get(max_refs, timeout_s)

    monkeypatch.setattr(queue.queue, "get", noted)
    again = queue.acquire(poll_interval=0)
    assert (again.ref, again.redelivery_count) == (ref("a"), 1)
    assert waits[0] == 0 and len(waits) >= 3 and min(waits[1:]) > 0
    queue.ack(again)
    assert queue.acquire(poll_interval=0) is None and queue.is_closed
    for each in (queue, other):
        each.queue.close()


def test_waiting_on_a_shared_mount_makes_few_operations(tmp_path: Path) -> None:
    """Whatever the interval, an acquire after a minute in vain lasts for as long as a look of the queue's own."""
    tap, now, made = Tap(), [1_000.0], Counter[int]()
    tap.ops.filesystem_type = lambda path: "nfs4"
    tap.ops.monotonic = lambda: now[0]
    tap.ops.sleep = lambda pause_s: now.__setitem__(0, now[0] + pause_s)
    tap.before = lambda name, args, kwargs: made.update([int(now[0] - 1_000.0) // 60])
    with tap.here():
        queue = SharedSampleRefQueue(Store(), tmp_path / "q", durable=False)
    while now[0] < 1_180.0:
        assert queue.acquire() is None and not queue.is_closed
    assert 0 < made[2] < 10 * 60
    queue.queue.put([ref("a")])
    lease = queue.acquire()
    assert lease.ref == ref("a")
    queue.ack(lease)
    began = now[0]
    assert queue.acquire(poll_interval=0.05) is None and now[0] - began < 0.1, "it looks often again"
    queue.queue.close()


def test_a_closed_queue_is_drained(make: Make) -> None:
    """No put any more, and None at the end."""
    queue = make()
    queue.put(ref("a"))
    assert not queue.is_closed
    queue.close()
    queue.close()
    assert queue.is_closed
    with pytest.raises(RuntimeError):
        queue.put(ref("b"))
    with pytest.raises(RuntimeError, match="closed while put was waiting"):
        queue.put_blocks_until_below(ref("b"))
    lease = queue.acquire()
    assert lease.ref.sample_id == "a" and queue.acquire(poll_interval=0.001) is None
    queue.ack(lease)
    assert queue.acquire() is None


@pytest.mark.parametrize("explicit", [True, False], ids=["own watermarks", "the store's"])
def test_a_full_store_holds_puts_back(make: Make, explicit: bool) -> None:
    """From the high watermark until it is down to the low one; whoever wants to know is told, also if that fails."""
    store, told = Store(), []
    marks = {"high_watermark_bytes": 80, "low_watermark_bytes": 20} if explicit else {}

    def tell(health: Health) -> None:
        told.append(health.resident_bytes)
        raise ValueError("of the callback's own")

    queue = make(store, on_pause=tell, on_resume=tell, **marks)
    queue.put_blocks_until_below(ref("a"))
    store.now = Health(80, high_watermark_hit=True, low_watermark_hit=False)
    waiting = InThread(lambda: queue.put_blocks_until_below(ref("b"), poll_interval=0.01))
    wait_until(lambda: told == [80], "the put pauses")
    store.now = Health(50, high_watermark_hit=False, low_watermark_hit=False)
    looks = count()
    with pytest.raises(RuntimeError, match="aborted during shutdown"):
        queue.put_blocks_until_below(ref("c"), poll_interval=0.001, abort_when=lambda: next(looks) == 5)
    assert queue.pending_count() == 1
    store.now = Health(20)
    waiting.result()
    assert told == [80, 20]
    assert ids(queue, 2) == ["a", "b"]


def test_watermarks_that_contradict_each_other(make: Make) -> None:
    for high, low in ((0, None), (None, -1), (5, 5)):
        with pytest.raises(ValueError):
            make(high_watermark_bytes=high, low_watermark_bytes=low)


# -- NeMo's pipeline and loader ---------------------------------------------------------------------------------------


class Producer:
    """Makes features of numbers, as NeMo's producer does of prompts."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.made = count()

    def produce(self, **prompt: Any) -> Any:
        return stored(self.store, next(self.made))

    def discard(self, given: Any) -> None:
        raise AssertionError(given)


def prompts(number: int) -> Iterator[Any]:
    return iter([torch.zeros(1, 4, dtype=torch.long)] * number)


def test_their_pipeline_and_loader_take_one_for_the_other(make: Make) -> None:
    """Every batch once and in order, and the end; the pipeline is held back by the store meanwhile."""
    room = {"high_watermark_bytes": 1000, "low_watermark_bytes": 500}
    store = streaming.LocalFeatureStore(max_samples=None, max_bytes=1 << 20, **room)
    queue = make(store)
    with (
        streaming.AsyncFeaturePipeline(Producer(store), queue, prompts(12), poll_interval=0.01),
        streaming.FeatureDataLoader(queue, store, acquire_poll_interval=0.01) as loader,
    ):
        assert [int(batch.input_ids[0, 0]) for batch in loader] == list(range(12))
    assert (queue.pending_count(), queue.outstanding_count(), store.health().resident_bytes) == (0, 0, 0)


def shared_store(path: Path) -> Any:
    """NeMo's store in a directory; each object counts its own samples, also those that others have released."""
    return streaming.SharedDirFeatureStore(
        str(path / "features"), max_samples=None, max_bytes=1 << 30, high_watermark_bytes=None
    )


def produce(pipe: Connection, path: Path) -> None:
    """Be two producers, one after the other; a store that is closed removes its files."""
    store = shared_store(path)
    for name, numbers in RANGES.items():
        with SharedSampleRefQueue(store, path / "q", producer=name, expected=2, durable=False) as queue:
            for number in numbers:
                queue.put_blocks_until_below(stored(store, number))
            pipe.send("produced")
            assert pipe.recv() == "close"
    pipe.recv()


def consume(pipe: Connection, path: Path) -> None:
    """Lease one ref, and hold it."""
    queue = SharedSampleRefQueue(shared_store(path), path / "q", durable=False)
    while (lease := queue.acquire()) is None:
        pass
    pipe.send(lease.ref.sample_id)
    pipe.recv()


RANGES = {"rollout-0": range(4), "rollout-1": range(100, 104)}


def patiently(child: Child) -> Any:
    """What a process says that has to import NeMo first."""
    assert child.pipe.poll(5 * GUARD_S), "the child process said nothing"
    return child.receive()


def test_processes_share_a_stream(tmp_path: Path) -> None:
    """Two producers, and a consumer that is killed with a lease: the other one has every sample, and sees the end.

    When nothing is pending any more and all producers have closed, it waits for the lease of the other consumer, which
    may yet come back, and does: NeMo's loader would have stopped.
    """
    store = shared_store(tmp_path)
    queue = SharedSampleRefQueue(store, tmp_path / "q", durable=False)
    with Child(produce, tmp_path) as producers, Child(consume, tmp_path) as other:
        for _ in RANGES:
            assert patiently(producers) == "produced"
            producers.send("close")
        held = patiently(other)
        loader = iter(streaming.FeatureDataLoader(queue, store, acquire_poll_interval=0.01))
        got = {int(next(loader).input_ids[0, 0]) for _ in range(7)}
        assert queue.pending_count() == 0
        ending = InThread(lambda: [int(batch.input_ids[0, 0]) for batch in loader])
        wait_until(lambda: queue.is_closed, "both producers have closed")
        other.kill()
        (last,) = ending.result()
        assert f"s{last}" == held
        assert got | {last} == {number for numbers in RANGES.values() for number in numbers}
        assert queue.is_closed and queue.queue.counts() == (0, 0, 8, 0)
    queue.queue.close()
    assert_clean(tmp_path / "q")
    assert [name.rpartition("@")[2] for name in names_in(tmp_path / "q", "stream")] == ["closed.json"] * 2


def test_a_producer_that_failed_is_no_end(tmp_path: Path) -> None:
    """The consumer gets its error."""
    queue = SharedSampleRefQueue(Store(), tmp_path / "q", durable=False)
    producing = SharedSampleRefQueue(Store(), tmp_path / "q", producer="rollout-0", durable=False)
    with pytest.raises(ValueError), producing:
        raise ValueError("NaN")
    producing.queue.close()
    with pytest.raises(MemberFailedError, match=r"rollout-0.*ValueError: NaN"):
        queue.acquire(poll_interval=0.001)
    assert not queue.is_closed
    queue.queue.close()
