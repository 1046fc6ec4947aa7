"""The feature loader: every sample once, what cannot be loaded is failed, and nothing stays leased that nobody has."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from fsqueue import FileSampleRefQueue, MemorySampleRefQueue, SampleRef, TrainerView
from fsqueue.features import (
    Batch,
    CollateError,
    CorruptFeatureError,
    FeatureDataLoader,
    FeatureMissingError,
    SharedDirFeatureStore,
)
from tests.support import GUARD_S, InThread, Tap, assert_clean, wait_until
from tests.support.features import file_of, publish, ref_of, tensors
from tests.support.loading import KINDS, PREFETCH, Site, all_ids, ids_of


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("kind", KINDS)
def test_every_sample_once_and_in_order(site: Callable[..., Site], kind: str, prefetch: int) -> None:
    """From any kind of queue, each sample comes once, in order, with its own features, and is acknowledged."""
    here = site(kind)
    seen: list[Batch[SampleRef]] = list(here.loader(prefetch=prefetch))
    assert all_ids(seen) == ids_of(here.refs) and [len(batch.refs) for batch in seen] == [4, 4, 4]
    for number, batch in enumerate(seen):
        expected = [tensors(4 * number + at) for at in range(4)]
        assert all(torch.equal(batch.features[name], torch.stack([e[name] for e in expected])) for name in expected[0])
    assert here.queue.counts() == (0, 0, 12, 0)


@pytest.mark.parametrize("prefetch", PREFETCH)
def test_a_list_of_refs(site: Callable[..., Site], prefetch: int) -> None:
    """A list is gone over anew by each iteration, an iterator once; acknowledging means nothing there."""
    here = site(samples=10)
    loader = here.loader(queue=None, refs=here.refs, prefetch=prefetch)
    for _ in range(2):
        assert [len(batch.refs) for batch in loader] == [4, 4, 2]
        assert loader.ack() == []
    assert all_ids(here.loader(queue=None, refs=here.refs, prefetch=prefetch, drop_last=True)) == ids_of(here.refs[:8])
    once = here.loader(queue=None, refs=iter(here.refs), prefetch=prefetch)
    assert all_ids(once) == ids_of(here.refs) and list(once) == []


def test_acks_follow_the_training(site: Callable[..., Site]) -> None:
    """A batch is acknowledged once the next one is asked for, the last one at the end."""
    here = site()
    done = [here.queue.counts().done for _ in here.loader()]
    assert done == [0, 4, 8] and here.queue.counts().done == 12


@pytest.mark.parametrize("kind", ["file", "view", "lease"])
def test_deferred_acks(site: Callable[..., Site], kind: str) -> None:
    """Deferred acks wait for the trainer, name its step, also after the loop and by id, and ignore strange ids."""
    here = site(kind)
    loader = here.loader(ack="deferred", prefetch=1)
    for number, _ in enumerate(loader):
        if number == 1:
            assert loader.ack(step=7) == []
    assert here.queue.counts() == (0, 4, 8, 0)
    assert loader.ack_ids(["s008", "nobody"], step=8) == []
    loader.fail_ids(["s009"], "odd", retryable=False)
    loader.close()
    assert loader.ack(step=9) == [] and loader.ack() == []
    assert here.queue.counts() == (0, 0, 11, 1)
    names = sorted(path.name for path in (here.path / "done").iterdir())
    assert names == [f"s{n:03d}@{7 if n < 8 else 8 if n == 8 else 9}.json" for n in (*range(9), 10, 11)]


@pytest.mark.parametrize("kind", ["file", "view"])
def test_a_failed_settling_can_be_repeated(site: Callable[..., Site], kind: str) -> None:
    """An ack or fail that the filesystem refused is done by calling it again; what it names stays leased till then."""
    here = site(kind)
    loader = here.loader(ack="deferred")
    assert len(list(loader)) == 3
    with refuse_once(here.trainer, "ack"), refuse_once(here.trainer, "fail"):
        with pytest.raises(OSError, match="full"):
            loader.fail_ids(["s009"], "odd", retryable=False)
        with pytest.raises(OSError, match="full"):
            loader.ack(step=1)
        assert here.queue.counts() == (0, 12, 0, 0)
        loader.fail_ids(["s009"], "odd", retryable=False)
        assert loader.ack(step=1) == [] and here.queue.counts() == (0, 0, 11, 1)
        assert len(list((here.path / "done").glob("*@1.json"))) == 11


def test_a_failed_ack_of_the_loop_gives_back(site: Callable[..., Site]) -> None:
    """When the loop's own ack is refused, the error comes out, and nothing stays leased; the samples come again."""
    here = site()
    with refuse_once(here.trainer, "ack"), pytest.raises(OSError, match="full"):
        list(here.loader())
    assert here.queue.counts() == (12, 0, 0, 0)
    assert sorted(all_ids(here.loader())) == ids_of(here.refs)


@contextmanager
def refuse_once(queue: Any, name: str) -> Iterator[None]:
    """The next call of a queue's method finds the disk full."""
    real = getattr(queue, name)
    left = [OSError(errno.ENOSPC, "the disk is full")]

    def refusing(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return real(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, name, refusing)
        yield


def test_lost_leases_are_told(tmp_path: Path) -> None:
    """An ack returns the ids whose lease had expired meanwhile."""
    now = [0.0]
    store = SharedDirFeatureStore(tmp_path / "features")
    queue: MemorySampleRefQueue[SampleRef] = MemorySampleRefQueue(lease_timeout_s=10.0, clock=lambda: now[0])
    queue.put(publish(store, 2))
    loader: FeatureDataLoader[SampleRef] = FeatureDataLoader(store, queue=queue, batch_size=2, ack="deferred")
    (batch,) = loader
    now[0] = 11.0
    queue.reclaim()
    assert loader.ack() == batch.ids


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("kind", KINDS)
def test_leaving_early_gives_back(site: Callable[..., Site], kind: str, prefetch: int) -> None:
    """A loop that is left by break or by an error gives back its last batch and what was loaded ahead."""
    here = site(kind)
    loader = here.loader(prefetch=prefetch)
    for _ in loader:
        break
    assert here.queue.counts() == (12, 0, 0, 0)
    with pytest.raises(KeyError), loader:
        for _ in loader:
            raise KeyError("the training failed")
    assert here.queue.counts() == (12, 0, 0, 0)
    iteration = iter(loader)
    next(iteration)
    assert sorted(all_ids(loader)) == ids_of(here.refs), "a new iteration ends the one that goes on"
    assert list(iteration) == [] and here.queue.counts() == (0, 0, 12, 0)


@pytest.mark.parametrize(("kind", "attempts"), [("view", 1), ("file", 0)])
def test_what_was_prefetched_is_failed_or_released(site: Callable[..., Site], kind: str, attempts: int) -> None:
    """On close, a queue with `loader_close_retryable` gets retryable failures; another one gets its refs released."""
    here = site(kind)
    loader = here.loader(prefetch=1, ack="deferred")
    iteration = iter(loader)
    next(iteration)
    wait_until(lambda: here.queue.in_flight() == 12, "batches leased ahead")
    loader.close()
    assert here.queue.counts() == (8, 4, 0, 0)
    histories = ["failed" in path.read_text() for path in (here.path / "pending").iterdir()]
    assert histories == [bool(attempts)] * 8
    loader.ack()


class Refusing:
    """A queue that refuses to settle a batch, once for each name in refusals."""

    def __init__(self, queue: Any, *refusals: str) -> None:
        self._queue = queue
        self._refusals = list(refusals)

    def __getattr__(self, name: str) -> Any:
        if name in self._refusals:
            return self._refuse(name)
        return getattr(self._queue, name)

    def _refuse(self, name: str) -> Callable[..., Any]:
        def refuse(*args: Any, **kwargs: Any) -> Any:
            self._refusals.remove(name)
            raise OSError(errno.EIO, f"{name} is refused")

        return refuse


@pytest.mark.parametrize("refused", [1, 2])
def test_a_close_goes_on_after_an_error(site: Callable[..., Site], refused: int) -> None:
    """A batch that cannot be given back stays leased; every other one is given back, and the first error is raised."""
    here = site(samples=24)
    loader = here.loader(queue=Refusing(here.trainer, *["release"] * refused), prefetch=2, ahead=5, ack="deferred")
    iteration = iter(loader)
    next(iteration)
    wait_until(lambda: here.queue.in_flight() == 24, "batches leased ahead")
    with pytest.raises(OSError, match="release is refused"):
        loader.close()
    assert here.queue.counts() == (20 - 4 * refused, 4 + 4 * refused, 0, 0)
    loader.ack()
    here.queue.release_all()


def test_a_last_batch_that_cannot_be_failed_is_given_back(site: Callable[..., Site]) -> None:
    """With drop_last, an error of failing the last batch leaves it leased to nobody."""
    here = site(samples=6)
    with pytest.raises(OSError, match="fail is refused"):
        list(here.loader(queue=Refusing(here.trainer, "fail"), drop_last=True))
    assert here.queue.counts() == (2, 0, 4, 0)


def test_the_rest_of_a_batch_whose_culprit_cannot_be_failed_is_given_back(site: Callable[..., Site]) -> None:
    """With on_error="raise", an error of failing the ref at fault leaves only that one leased."""
    here = site(samples=4)
    file_of(here.store, here.refs[1]).write_bytes(b"damaged")
    with pytest.raises(OSError, match="fail is refused"):
        list(here.loader(queue=Refusing(here.trainer, "fail"), on_error="raise"))
    assert here.queue.counts() == (3, 1, 0, 0)
    here.queue.release_all()


def test_a_batch_that_no_thread_can_load_is_given_back(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system has no thread to spare, the loader raises that, and nothing stays leased."""

    def refuse(*args: Any) -> Any:
        raise RuntimeError("can't start new thread")

    here = site()
    monkeypatch.setattr("fsqueue.features.prefetch.ThreadPoolExecutor.submit", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        list(here.loader(prefetch=1))
    assert here.queue.counts() == (12, 0, 0, 0)


@pytest.mark.parametrize("prefetch", [1, 2])
def test_what_is_loaded_ahead_is_bounded(site: Callable[..., Site], prefetch: int) -> None:
    """While nobody asks for more, no more is leased than `ahead` batches and the one in hand."""
    here = site(samples=40)
    loader = here.loader(prefetch=prefetch, ahead=2, ack="deferred")
    for number, _ in enumerate(loader, 1):
        bound = min(40, 4 * (number + 2))
        wait_until(lambda bound=bound: here.queue.in_flight() == bound, "batches leased ahead")  # type: ignore[misc]
    loader.ack()


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("kind", ["file", "memory", "lease"])
def test_drop_last(site: Callable[..., Site], kind: str, prefetch: int) -> None:
    """A batch for which there are too few refs is failed as retryable, and ends the iteration."""
    here = site(kind, samples=10)
    assert [len(batch.refs) for batch in here.loader(prefetch=prefetch, drop_last=True)] == [4, 4]
    assert here.queue.counts() == (2, 0, 8, 0)


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_loaded_is_skipped(site: Callable[..., Site], kind: str, prefetch: int) -> None:
    """Missing features are failed as retryable twice, then for good, damaged ones at once; the others are trained."""
    here = site(kind)
    here.store.abort("s002")
    file_of(here.store, here.refs[5]).write_bytes(b"torn")
    loader = here.loader(prefetch=prefetch, batch_size=1 if kind == "view" else 4)  # a view gives whole batches only
    seen = all_ids(loader)
    assert sorted(seen) == [f"s{n:03d}" for n in range(12) if n not in (2, 5)]
    assert set(loader.failed) == {"s002", "s005"}
    assert "FeatureMissingError" in loader.failed["s002"] and "CorruptFeatureError" in loader.failed["s005"]
    assert here.queue.counts() == (0, 0, 10, 2)
    if kind != "memory":
        assert (here.path / "failed" / "s002.json").read_text().count('"event":"failed"') == 3
        assert (here.path / "failed" / "s005.json").read_text().count('"event":"failed"') == 1


def test_failures_are_counted_by_the_loader(site: Callable[..., Site]) -> None:
    """Each loader object fails missing features as retryable twice, over all its iterations, then for good."""
    here = site(samples=1)
    here.store.abort("s000")

    def outcome(loader: FeatureDataLoader[SampleRef]) -> tuple[int, int]:
        with pytest.raises(FeatureMissingError):
            list(loader)
        return here.queue.counts().pending, here.queue.counts().failed

    for _ in range(2):
        assert outcome(here.loader(on_error="raise")) == (1, 0)
    loader = here.loader(on_error="raise")
    assert [outcome(loader) for _ in range(3)] == [(1, 0), (1, 0), (0, 1)]


def test_features_that_come_late(site: Callable[..., Site]) -> None:
    """A sample whose features are missing at first is trained once they are there."""
    here = site()
    here.store.abort("s001")
    seen: list[str] = []
    for batch in here.loader():
        seen += batch.ids
        here.store.put("s001", tensors(1))
    assert seen[-1] == "s001" and sorted(seen) == ids_of(here.refs)


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("kind", KINDS)
def test_errors_may_stop_the_loop(site: Callable[..., Site], kind: str, prefetch: int) -> None:
    """With on_error="raise", the error comes out, its sample is failed, and what else was leased is given back."""
    here = site(kind)
    here.store.abort("s005")
    with pytest.raises(FeatureMissingError):
        list(here.loader(prefetch=prefetch, on_error="raise"))
    assert here.queue.counts() == (8, 0, 4, 0)
    file_of(here.store, here.refs[5]).write_bytes(b"torn")
    with pytest.raises(CorruptFeatureError):
        list(here.loader(prefetch=prefetch, on_error="raise", batch_size=8))
    assert here.queue.counts() == (7, 0, 4, 1)


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_an_error_that_is_no_sample_s_ends_the_loop_and_costs_no_sample_an_attempt(
    site: Callable[..., Site], code: int, kind: str, prefetch: int
) -> None:
    """While descriptors or memory are used up, every iteration ends with that; afterwards all is trained."""
    here, tap = site(kind), Tap()
    with tap.here():
        here.store = SharedDirFeatureStore(here.store.root)
    opened = Counter[str]()

    def exhaust(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "open" and str(args[0]).endswith(".safetensors"):
            opened[str(args[0])] += 1
            if len(opened) > 5:
                raise OSError(code, os.strerror(code))

    tap.before = exhaust
    loader = here.loader(prefetch=prefetch)
    for _ in range(4):
        with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
            list(loader)
        assert caught.value.errno == code
    assert loader.failed == {} and here.queue.in_flight() == 0
    if kind != "memory":
        assert not [file for file in (here.path / "pending").iterdir() if b'"failed"' in file.read_bytes()]
    left = here.queue.depth()
    tap.before = None
    assert len(all_ids(loader)) == left and here.queue.counts() == (0, 0, 12, 0)


def raising(error: Exception) -> Callable[[], object]:
    def raise_it() -> object:
        raise error

    return raise_it


@pytest.mark.parametrize("where", ["transform", "collate"])
@pytest.mark.parametrize(
    "exhaust",
    [
        raising(MemoryError()),
        raising(OSError(errno.ENOSPC, "No space left on device")),
        raising(torch.OutOfMemoryError("CUDA out of memory")),
        raising(torch.AcceleratorError("CUDA error: device-side assert triggered")),
        lambda: torch.empty(1 << 50, dtype=torch.uint8),
    ],
    ids=["memory", "disk", "device memory", "device", "host memory, as torch says it"],
)
@pytest.mark.parametrize("kind", ["file", "view"])
def test_an_exhaustion_while_a_batch_is_made_is_no_sample_s_either(
    site: Callable[..., Site], exhaust: Callable[[], object], where: str, kind: str
) -> None:
    """Memory or disk used up, or a device that works no more in this process, costs no sample an attempt."""
    here = site(kind)
    options: dict[str, Any] = {"transform": lambda ref, features: exhaust(), "collate": lambda samples: exhaust()}
    with pytest.raises((MemoryError, OSError, RuntimeError)):
        list(here.loader(**{where: options[where]}))
    assert here.queue.counts() == (12, 0, 0, 0)
    assert not [file for file in (here.path / "pending").iterdir() if b'"failed"' in file.read_bytes()]


def test_what_was_leased_ahead_of_such_an_error_costs_no_attempt_either(site: Callable[..., Site]) -> None:
    """Also where nobody had begun to load it, and the queue asks for failures on close."""
    here, entered = site("view"), threading.Event()

    def transform(ref: SampleRef, features: dict[str, Any]) -> Any:
        entered.wait(GUARD_S)
        raise MemoryError

    iteration = iter(here.loader(transform=transform, prefetch=1, ahead=3))
    consumer = InThread(lambda: next(iteration))
    wait_until(lambda: here.queue.in_flight() == 12, "batches leased ahead")
    entered.set()
    with pytest.raises(MemoryError):
        consumer.result()
    assert here.queue.counts() == (12, 0, 0, 0)
    assert not [file for file in (here.path / "pending").iterdir() if b'"failed"' in file.read_bytes()]


def test_an_error_of_one_file_is_its_sample_s(site: Callable[..., Site]) -> None:
    """EIO may be a bad sector under this very file: the others are trained."""
    here, tap = site(), Tap()
    with tap.here():
        here.store = SharedDirFeatureStore(here.store.root)

    def damage(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "open" and str(args[0]).startswith("s003"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    tap.before = damage
    assert len(all_ids(here.loader())) == 11 and here.queue.counts() == (0, 0, 11, 1)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_transforms(site: Callable[..., Site], prefetch: int) -> None:
    """A transform makes the samples; one that raises fails its sample for good, with the reason."""

    def transform(ref: SampleRef, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if ref.sample_id == "s003":
            raise ZeroDivisionError("no tokens")
        return {"double": 2 * features["hidden"]}

    here = site()
    loader = here.loader(prefetch=prefetch, transform=transform)
    batches = list(loader)
    assert len(all_ids(batches)) == 11 and float(batches[-1].features["double"][-1, 0, 0]) == 22.0
    assert loader.failed == {"s003": "ZeroDivisionError: no tokens"} and here.queue.counts() == (0, 0, 11, 1)
    assert "no tokens" in (here.path / "failed" / "s003.json").read_text()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_collating(site: Callable[..., Site], prefetch: int) -> None:
    """Samples of different shapes are not stacked: the error names the feature, and the batch is given back."""
    here = site()
    ragged = ref_of(here.store.put("ragged", {"hidden": torch.ones(9, 3), "tokens": torch.arange(9)}))
    here.queue.put([ragged])
    with pytest.raises(CollateError, match="hidden") as caught:
        list(here.loader(prefetch=prefetch, batch_size=13))
    assert caught.value.feature == "hidden" and here.queue.counts() == (13, 0, 0, 0)
    with pytest.raises(CollateError, match="in some samples"):
        drop = here.loader(batch_size=13, transform=lambda ref, f: f if ref.sample_id == "s000" else {})
        list(drop)
    lengths = here.loader(prefetch=prefetch, batch_size=13, collate=lambda samples: [len(s["tokens"]) for s in samples])
    (batch,) = lengths
    assert sorted(batch.features) == [4] * 12 + [9]


def test_closing_while_it_waits(tmp_path: Path) -> None:
    """A loader that waits on a view for refs that do not come is closed at once, from another thread too."""
    store = SharedDirFeatureStore(tmp_path / "features")
    refs = publish(store, 6)
    with FileSampleRefQueue(tmp_path / "queue") as queue, TrainerView(queue) as view:
        queue.put(refs)
        loader: FeatureDataLoader[SampleRef] = FeatureDataLoader(store, queue=view, batch_size=4, prefetch=1)
        iteration = iter(loader)
        assert next(iteration).ids == ids_of(refs[:4])
        wait_until(lambda: queue.in_flight() == 6, "the loader to wait for two more refs")
        loader.close()
        assert queue.counts() == (6, 0, 0, 0)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith(("fsqueue-le", "fsqueue-lo"))]
    assert_clean(tmp_path / "queue")


@pytest.mark.parametrize("prefetch", [0, 1])
def test_partitions_share_a_queue(site: Callable[..., Site], prefetch: int) -> None:
    """Loaders of different partitions get different samples, together all of them."""
    here = site()
    shares = [all_ids(here.loader(partition=(rank, 2), prefetch=prefetch)) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == ids_of(here.refs) and all(shares)


def test_a_queue_with_nothing_but_the_contract(site: Callable[..., Site]) -> None:
    """A queue that has get, ack and fail, and returns nothing from them, is enough; what is given back is failed."""

    class Bare:
        def __init__(self, queue: Any) -> None:
            self.queue = queue
            self.failed: list[tuple[list[str], bool]] = []

        def get(self, max_refs: int, timeout_s: float | None = None) -> list[SampleRef]:
            return list(self.queue.get(max_refs, timeout_s))

        def ack(self, refs: list[SampleRef]) -> None:
            self.queue.ack(refs)

        def fail(self, refs: list[SampleRef], reason: str, retryable: bool) -> None:
            self.failed.append((ids_of(refs), retryable))
            self.queue.fail(refs, reason, retryable)

    here = site()
    bare = Bare(here.queue)
    for _ in here.loader(queue=bare):
        break
    assert bare.failed == [(ids_of(here.refs[:4]), True)]
    assert len(all_ids(here.loader(queue=bare))) == 12


def test_waiting_for_late_refs(site: Callable[..., Site]) -> None:
    """With a timeout, a queue that has nothing yet does not end the iteration."""
    here = site(samples=4)
    put = threading.Event()

    def late() -> None:
        assert put.wait(GUARD_S)
        here.queue.put([ref_of(here.store.put("late", tensors(99)))])

    thread = threading.Thread(target=late)
    thread.start()
    try:
        loader = iter(here.loader(timeout_s=GUARD_S, prefetch=1))
        assert next(loader).ids == ids_of(here.refs)
        put.set()
        assert next(loader).ids == ["late"]
        loader.close()  # type: ignore[attr-defined]
    finally:
        put.set()
        thread.join()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"queue": None}, "expected either queue= or refs=, found 'neither'"),
        ({"refs": []}, "expected either queue= or refs=, found 'both'"),
        ({"queue": "queue"}, "queue=.*get.*found 'queue', a str"),
        ({"queue": None, "refs": "s000"}, "refs=.*an iterable of refs"),
        ({"batch_size": 0}, "batch_size=.*1 or more, found 0"),
        ({"batch_size": "8"}, "batch_size=.*an integer, found '8', a str"),
        ({"prefetch": -1}, "prefetch=.*0 or more, found -1"),
        ({"prefetch": None}, "prefetch=.*an integer, found None"),
        ({"ahead": 0}, "ahead=.*1 or more, found 0"),
        ({"prefetch_bytes": 0}, "prefetch_bytes=.*1 or more, found 0"),
        ({"prefetch_bytes": "64M"}, "prefetch_bytes=.*an integer, found '64M', a str"),
        ({"prefetch_bytes": 1e9}, "prefetch_bytes=.*an integer, found 1000000000.0, a float"),
        ({"partition": 2}, "partition=.*two integers, found 2"),
        ({"timeout_s": "5"}, "timeout_s=.*seconds or None, found '5'"),
        ({"drop_last": "no"}, "drop_last=.*True or False, found 'no'"),
        ({"transform": "x"}, "transform=.*a function or None, found 'x'"),
        ({"collate": []}, "collate=.*a function or None"),
        ({"ack": "x"}, "ack=.*'auto' or 'deferred', found 'x'"),
        ({"on_error": None}, "on_error=.*'skip' or 'raise', found None"),
    ],
    ids=str,
)
def test_misuse(site: Callable[..., Site], options: dict[str, Any], told: str) -> None:
    """Arguments that make no sense are refused when the loader is made: what, expected, found."""
    with pytest.raises(ValueError, match=rf"FeatureDataLoader.*{told}"):
        site().loader(**options)


def test_no_store(site: Callable[..., Site]) -> None:
    """A path in a store's place is told at once."""
    with pytest.raises(ValueError, match=r"FeatureDataLoader\(store=\) expected a feature store, with get\(\)"):
        FeatureDataLoader("features", queue=site().queue, batch_size=1)  # type: ignore[arg-type]


def test_a_queue_s_own_wait_lets_features_come_later(site: Callable[..., Site]) -> None:
    """Three attempts would be gone at once; with `retry_delay_s` the ref waits, and comes again."""
    here = site("file", samples=1)
    here.store.abort("s000")
    here.queue.configure(retry_delay_s=0.2)
    with pytest.raises(FeatureMissingError):
        list(here.loader(on_error="raise"))
    assert here.queue.counts() == (0, 1, 0, 0)
    here.store.put("s000", tensors(0))
    assert next(iter(here.loader(timeout_s=GUARD_S, batch_size=1))).ids == ["s000"]
