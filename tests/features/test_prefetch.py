"""Loading ahead: within a number of bytes, nothing kept alive that was handed out, and an end to every thread."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fsqueue import OtherProcessError, SampleRef
from fsqueue.features import FeatureDataLoader, SharedDirFeatureStore
from fsqueue.features.prefetch import Budget
from tests.support import GUARD_S, InThread, in_fork, wait_until
from tests.support.features import ref_of
from tests.support.loading import KINDS, PREFETCH, Site, all_ids, ids_of


class Counting:
    """A store that knows what was asked of it and not handed out yet."""

    def __init__(self, store: SharedDirFeatureStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.ahead: set[str] = set()

    def get(self, ref: SampleRef) -> dict[str, torch.Tensor]:
        with self._lock:
            self.ahead.add(ref.sample_id)
        return self._store.get(ref)

    def handed_out(self, ids: list[str]) -> None:
        with self._lock:
            self.ahead -= set(ids)


def big_and_small(store: SharedDirFeatureStore, kib: list[int]) -> list[SampleRef]:
    return [ref_of(store.put(f"s{n:03d}", {"x": torch.full((size << 8,), float(n))})) for n, size in enumerate(kib)]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_what_is_ahead_stays_within_the_bytes(tmp_path: Path, threads: int) -> None:
    """Of samples from 1 to 90 KiB, the next ones that make up to 100 KiB together are loaded ahead, and no more."""
    store = SharedDirFeatureStore(tmp_path / "features")
    refs = big_and_small(store, [1, 90, 30, 30, 30, 5, 60, 60, 1, 1, 1, 90] * 2)
    counting = Counting(store)
    loader: FeatureDataLoader[SampleRef] = FeatureDataLoader(
        counting,  # type: ignore[arg-type]
        refs=refs,
        batch_size=1,
        prefetch=threads,
        ahead=20,
        prefetch_bytes=100 << 10,
        collate=lambda samples: samples[0],
    )
    for number, batch in enumerate(loader):
        counting.handed_out(batch.ids)
        assert batch.ids == ids_of(refs[number : number + 1]) and float(batch.features["x"][0]) == number
        sizes = accumulate(ref.estimated_bytes for ref in refs[number + 1 :])
        fitting = sum(1 for size in sizes if size <= 100 << 10)
        expected = set(ids_of(refs[number + 1 :][:fitting]))
        wait_until(lambda expected=expected: set(counting.ahead) == expected, "what fits")  # type: ignore[misc]


@pytest.mark.parametrize("told", [True, False])
def test_a_batch_larger_than_the_bytes_is_loaded_alone(tmp_path: Path, told: bool) -> None:
    """So is one whose refs do not tell how large it is; nothing else is being loaded or waits meanwhile."""
    store = SharedDirFeatureStore(tmp_path / "features")
    refs = big_and_small(store, [20, 500, 20, 20, 500, 500, 20])
    large = {ref.sample_id for ref in refs if ref.estimated_bytes > 500 << 10}
    given = [
        ref
        if told or ref.sample_id not in large
        else replace(ref, feature_keys={}, feature_specs={}, estimated_bytes=0)
        for ref in refs
    ]
    counting = Counting(store)
    together: list[set[str]] = []

    def transform(ref: SampleRef, features: Any) -> str:
        together.append(set(counting.ahead))
        return ref.sample_id

    loader: FeatureDataLoader[SampleRef] = FeatureDataLoader(
        counting,  # type: ignore[arg-type]
        refs=given,
        batch_size=1,
        prefetch=2,
        ahead=10,
        prefetch_bytes=100 << 10,
        transform=transform,
        collate=lambda samples: samples,
    )
    for batch in loader:
        counting.handed_out(batch.ids)
    assert all(len(ids) == 1 for ids in together if ids & large)
    assert len(together) == len(refs)


@pytest.mark.parametrize("kind", KINDS)
def test_closing_while_there_is_no_room(site: Callable[..., Site], kind: str) -> None:
    """What was loaded, and the batch that waits for room, go back; no thread stays."""
    here = site(kind)
    loader = here.loader(prefetch=2, prefetch_bytes=1, ahead=8)
    iteration = iter(loader)
    assert next(iteration).ids == ids_of(here.refs[:4])
    wait_until(lambda: here.queue.in_flight() == 12, "one batch loaded, and one that waits")
    loader.close()
    assert here.queue.counts() == (12, 0, 0, 0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("fsqueue-le", "fsqueue-lo"))]
    assert sorted(all_ids(loader)) == ids_of(here.refs)


def test_an_error_while_a_batch_waits_for_room(site: Callable[..., Site]) -> None:
    """The error of a batch ends the loop; the one that waited behind it is given back, too."""
    here = site()

    def transform(ref: SampleRef, features: Any) -> Any:
        wait_until(lambda: here.queue.in_flight() == 8, "a batch that waits")
        raise MemoryError

    with pytest.raises(MemoryError):
        list(here.loader(prefetch=1, prefetch_bytes=1, transform=transform))
    assert here.queue.counts() == (12, 0, 0, 0)


def test_a_ref_whose_size_cannot_be_asked_for_is_told_and_given_back(site: Callable[..., Site]) -> None:
    """An error of finding out a batch's size comes out of the loop, and leaves nothing leased."""

    class Specs(dict[str, Any]):
        def values(self) -> Any:
            raise AttributeError

    class Odd:
        def __init__(self, queue: Any) -> None:
            self.queue = queue

        def get(self, *args: Any, **kwargs: Any) -> list[SampleRef]:
            return [replace(ref, feature_specs=Specs()) for ref in self.queue.get(*args, **kwargs)]

        def __getattr__(self, name: str) -> Any:
            return getattr(self.queue, name)

    here = site()
    with pytest.raises(AttributeError):
        list(here.loader(queue=Odd(here.queue), prefetch=1, prefetch_bytes=10))
    assert here.queue.counts() == (12, 0, 0, 0)


@pytest.mark.parametrize("prefetch", PREFETCH)
def test_a_class_of_refs_with_specs_of_its_own_is_loaded(prefetch: int) -> None:
    """What a store makes of a ref is its own affair: the loader only asks for sizes that it knows."""

    class Store:
        def get(self, ref: Any) -> dict[str, torch.Tensor]:
            return {"x": torch.zeros(ref.feature_specs["x"]["shape"])}

    some = [SimpleNamespace(sample_id=name, feature_specs={"x": {"shape": [4], "dtype": "float32"}}) for name in "abc"]
    loader: FeatureDataLoader[Any] = FeatureDataLoader(Store(), refs=some, batch_size=2, prefetch=prefetch)  # type: ignore[arg-type]
    assert all_ids(loader) == ["a", "b", "c"]


@pytest.mark.parametrize("prefetch", PREFETCH)
def test_nothing_keeps_a_batch_alive_that_the_trainer_let_go_of(site: Callable[..., Site], prefetch: int) -> None:
    """A trainer that drops its batch has the memory, at once: the loader, its threads and queue hold none of it."""
    here = site()
    iteration = iter(here.loader(prefetch=prefetch))
    for _ in range(3):
        batch = next(iteration)
        kept = [weakref.ref(tensor) for tensor in batch.features.values()]
        del batch
        gc.collect()
        assert [ref() for ref in kept] == [None, None]
    assert list(iteration) == []


_MEMORY = """
import sys, threading, time, torch
from fsqueue.features import FeatureDataLoader, SharedDirFeatureStore
store = SharedDirFeatureStore(sys.argv[1], durable=False, mapped=False)
torch.set_num_threads(1)
refs = [store.put(f"s{n}", {"x": torch.full((2 << 20,), float(n))}).ref(run_id="r", source_task_id=None, strategy="s")
        for n in range(40)]
status = lambda key: int(open("/proc/self/status").read().split(key + ":")[1].split()[0]) >> 10
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
loader = FeatureDataLoader(
    store, refs=refs, batch_size=2, prefetch=2, ahead=20, prefetch_bytes=64 << 20
)
for number, batch in enumerate(loader):
    assert float(batch.features["x"][1, 0]) == 2 * number + 1
    time.sleep(0.05)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process had in memory")
def test_the_memory_of_a_process_that_loads_ahead(tmp_path: Path) -> None:
    """Batches of 16 MiB, 64 MiB ahead: with what is in hand and being read, two samples a thread, 128 MiB of 320."""
    run = subprocess.run([sys.executable, "-c", _MEMORY, str(tmp_path / "f")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    in_hand, being_read, slack = 16, 2 * 16, 16
    assert int(run.stdout) <= 64 + in_hand + being_read + slack, f"{run.stdout} MiB"


@pytest.mark.parametrize("prefetch", PREFETCH)
@pytest.mark.parametrize("where", ["get", "collate"])
def test_an_interrupt_while_a_batch_is_made_gives_it_back(site: Callable[..., Site], prefetch: int, where: str) -> None:
    """Ctrl-C, or the end of a thread's program, leaves nothing leased; the next iteration has all of it."""
    here = site()
    interrupted: list[str] = []

    def interrupt(found: Any) -> Any:
        if len(interrupted) < 2:
            interrupted.append(where)
            if len(interrupted) == 2:
                raise KeyboardInterrupt
        return found

    options: dict[str, Any] = {"get": {"transform": lambda ref, features: interrupt(features)}}
    options["collate"] = {"collate": interrupt}
    loader = here.loader(prefetch=prefetch, ack="deferred", **options[where])
    with pytest.raises(KeyboardInterrupt):
        list(loader)
    loader.ack()
    assert here.queue.in_flight() == 0
    rest = all_ids(loader)
    loader.ack()
    assert here.queue.counts() == (0, 0, 12, 0) and rest


def test_an_interrupt_while_a_batch_is_waited_for_gives_it_back(site: Callable[..., Site]) -> None:
    """The thread that trains has to wait for a batch that another one loads, as Ctrl-C comes."""
    here, interrupted, handed_out = site(), threading.Event(), threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def transform(ref: SampleRef, features: Any) -> Any:
        if ref.sample_id == here.refs[4].sample_id and not interrupted.is_set():
            assert handed_out.wait(GUARD_S)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            assert interrupted.wait(GUARD_S)
        return features

    loader = here.loader(prefetch=1, transform=transform)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            for _ in loader:
                handed_out.set()
    finally:
        signal.signal(signal.SIGINT, before)
        loader.close()
    assert here.queue.in_flight() == 0
    all_ids(loader)
    assert here.queue.counts() == (0, 0, 12, 0)


def test_a_fork_that_goes_on_with_an_iteration_is_told(site: Callable[..., Site]) -> None:
    """It has none of the threads that load: it would wait for good, or hand out what its parent trains."""
    here = site()
    batches = iter(here.loader(prefetch=2))
    seen = next(batches).ids

    def go_on() -> None:
        with pytest.raises(OtherProcessError):
            next(batches)

    in_fork(go_on)
    assert seen + all_ids(batches) == ids_of(here.refs)


def test_a_fork_leaves_the_iteration_to_its_parent(site: Callable[..., Site]) -> None:
    """A process that was forked in the midst of a loop leaves it at once, and the parent gets every sample."""
    here = site()
    seen = []
    for batch in here.loader(prefetch=2):
        seen += batch.ids
        if len(seen) == 4 and (pid := os.fork()) == 0:
            break
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert seen == ids_of(here.refs) and here.queue.counts() == (0, 0, 12, 0)
        return
    os._exit(0)


def test_a_budget() -> None:
    """Who wants more waits until it is given back, or until the budget ends; more than all of it is all of it."""
    budget = Budget(10)
    assert (budget.take(4), budget.take(6), budget.take(0)) == (4, 6, 0)
    waiting = InThread(lambda: budget.take(None))
    budget.give_back(6)
    waiting.thread.join(0.05)
    assert waiting.thread.is_alive()
    budget.give_back(4)
    assert waiting.result() == 10
    waiting = InThread(lambda: budget.take(25))
    budget.end()
    assert waiting.result() == 10 and GUARD_S
    assert Budget(None).take(1 << 60) == 0
