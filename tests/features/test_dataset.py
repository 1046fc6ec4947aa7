"""The dataset in worker processes and under torchrun: every sample is trained once, whatever process loaded it."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.features import CorruptFeatureError, FeatureDataset, SharedDirFeatureStore, rank_and_world
from tests.support import GUARD_S, ROOT, assert_clean, holders_in, names_in
from tests.support.features import file_of, publish, tensors

WORKERS = [(0, None), (1, "fork"), (2, "fork"), pytest.param(1, "spawn", marks=pytest.mark.slow), (2, "spawn")]


@pytest.fixture
def store(tmp_path: Path) -> SharedDirFeatureStore:
    return SharedDirFeatureStore(tmp_path / "features", durable=False)


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[FileSampleRefQueue[SampleRef]]:
    with FileSampleRefQueue(tmp_path / "q", durable=False) as it:
        yield it
    assert_clean(tmp_path / "q")


def batches(dataset: FeatureDataset[SampleRef], workers: int = 0, context: str | None = None, **options: Any) -> Any:
    if workers:
        options = {"timeout": GUARD_S, "multiprocessing_context": context} | options
    return DataLoader(dataset, batch_size=4, num_workers=workers, **options)


def names(count: int) -> list[str]:
    return [f"s{number:03d}" for number in range(count)]


@pytest.mark.parametrize(("workers", "context"), WORKERS)
def test_every_sample_once(
    store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef], workers: int, context: str | None
) -> None:
    """Samples come once, with their features; though their workers are gone, nobody takes them back before the ack."""
    queue.put(publish(store, 30))
    dataset: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue)
    seen: list[str] = []
    for ids, features in batches(dataset, workers, context):
        for sample_id, hidden in zip(ids, features["hidden"], strict=True):
            assert torch.equal(hidden, tensors(int(sample_id[1:]))["hidden"])
        seen += ids
    assert sorted(seen) == names(30)
    with FileSampleRefQueue(queue.path) as other:
        assert other.reclaim() == 0 and other.get(1) == []
    assert {name.partition("@")[2] for name in holders_in(Path(queue.path))} == {queue.owner}
    assert dataset.ack(seen[:9], step=1) == [] and dataset.ack(seen[9:], step=2) == []
    assert queue.counts() == (0, 0, 30, 0)
    assert sum(name.endswith("@1.json") for name in names_in(Path(queue.path), "done")) == 9
    assert dataset.ack(["nobody"]) == ["nobody"] and dataset.ack(seen[:1]) == []


@pytest.mark.parametrize(
    ("how", "workers", "context"),
    [
        (copy.deepcopy, 0, None),
        (copy.deepcopy, 1, "spawn"),
        (lambda dataset: pickle.loads(pickle.dumps(dataset)), 0, None),
        (lambda dataset: pickle.loads(pickle.dumps(dataset)), 2, "fork"),
    ],
)
def test_a_copy_acknowledges_what_it_yields(
    store: SharedDirFeatureStore,
    queue: FileSampleRefQueue[SampleRef],
    how: Callable[[Any], FeatureDataset[SampleRef]],
    workers: int,
    context: str | None,
) -> None:
    """A dataset that was copied or unpickled leases, and acknowledges, as the handle that the copy has."""
    queue.put(publish(store, 10))
    original: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue)
    dataset = how(original)
    seen: list[str] = []
    for ids, _ in batches(dataset, workers, context):
        assert dataset.ack(ids) == []
        seen += ids
    assert sorted(seen) == names(10) and queue.counts() == (0, 0, 10, 0)
    queue.put(publish(store, 4))
    (ids, _) = next(iter(batches(dataset)))
    assert original.ack(ids) == list(ids), "the original is another handle"
    assert dataset.give_back() == 4
    assert dataset._queue is not None
    dataset._queue.close()


def test_epochs_with_lasting_workers(store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef]) -> None:
    """Persistent workers serve epoch after epoch; samples that are put again come again."""
    refs = publish(store, 12)
    dataset: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue)
    loader = batches(dataset, 2, "fork", persistent_workers=True)
    for _ in range(3):
        queue.put(refs)
        seen = []
        for ids, _ in loader:
            assert dataset.ack(ids) == []
            seen += ids
        assert sorted(seen) == names(12)


def test_leaving_an_epoch_early(store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef]) -> None:
    """Samples that workers had loaded ahead when the loop was left come in the next epoch, and no others."""
    queue.put(publish(store, 40))
    dataset: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue, lease=2)
    trained: list[str] = []
    for ids, _ in batches(dataset, 2, "fork"):
        dataset.ack(ids)
        trained += ids
        break
    gc.collect()
    assert dataset.give_back() >= 4 and queue.in_flight() == 0
    for ids, _ in batches(dataset, 2, "fork"):
        dataset.ack(ids)
        trained += ids
    assert sorted(trained) == names(40)


def test_a_killed_worker(store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef]) -> None:
    """A worker that is killed stops the loop with an error; what it and the others had leased comes again, once."""
    queue.put(publish(store, 60))
    dataset: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue, lease=3)
    trained: list[str] = []
    iteration = iter(batches(dataset, 2, "fork"))
    with pytest.raises(RuntimeError, match="worker"):
        while True:
            ids, _ = next(iteration)
            assert dataset.ack(ids) == []
            trained += ids
            if len(trained) == 8:
                worker = iteration._workers[0].pid
                os.kill(worker, signal.SIGKILL)
                os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)  # torch raises here, when the signal comes
    del iteration
    gc.collect()
    dataset.give_back()
    queue.reclaim()
    for ids, _ in batches(dataset, 1, "fork"):
        assert dataset.ack(ids) == []
        trained += ids
    assert sorted(trained) == names(60) and queue.counts() == (0, 0, 60, 0)


def test_a_trainer_that_is_gone(store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef]) -> None:
    """When the process that iterates dies, all that its workers leased for it comes back at once."""
    queue.put(publish(store, 20))
    pid = os.fork()
    if pid == 0:
        try:
            # How soon a worker sees that it is alone.
            torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL = 0.1  # type: ignore[attr-defined]
            mine = FileSampleRefQueue[SampleRef](queue.path)
            for ids, _ in batches(dataset := FeatureDataset(store, queue=mine), 1, "fork"):
                dataset.ack(ids)
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert queue.counts().done == 4
    rest: list[str] = []
    while len(rest) < 16:  # the worker notices that its trainer is gone, and is gone then, too
        found = queue.get(16, GUARD_S)
        assert found
        queue.ack(found)
        rest += [ref.sample_id for ref in found]
    assert len(set(rest)) == 16 and queue.counts() == (0, 0, 20, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_loaded(
    store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef], workers: int
) -> None:
    """Missing and damaged features are failed by the worker, or stop the loop by choice, with the error's own words."""
    refs = publish(store, 12)
    queue.put(refs)
    store.abort("s002")
    file_of(store, refs[5]).write_bytes(b"torn")
    dataset: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue)
    seen = []
    for ids, _ in batches(dataset, workers, "fork"):
        assert dataset.ack(ids) == []
        seen += ids
    assert len(seen) == 10 and queue.counts() == (0, 0, 10, 2)
    queue.put(refs[5:6])
    error = RuntimeError if workers else CorruptFeatureError  # torch raises what it cannot build anew as RuntimeError
    with pytest.raises(error, match="features of 's005'"):
        list(batches(FeatureDataset(store, queue=queue, on_error="raise"), workers, "fork"))
    assert queue.counts() == (0, 0, 10, 2)


def test_failing_samples(store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef]) -> None:
    """The trainer can fail by id what a worker leased for it."""
    queue.put(publish(store, 4))
    dataset: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue)
    ((ids, _),) = batches(dataset, 1, "fork")
    assert dataset.fail(ids[:1], "bad loss", retryable=False) == []
    assert dataset.fail(ids[1:], "out of memory", retryable=True) == []
    assert queue.counts() == (3, 0, 0, 1)


def test_a_stream(store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef]) -> None:
    """With timeout_s=None, workers wait for the stream's producers, and end when those have closed."""
    refs = publish(store, 20)
    dataset: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue, timeout_s=None, lease=1)
    seen: list[str] = []
    with queue.producer("rollout") as producer:
        queue.put(refs[:8])
        for ids, _ in batches(dataset, 1, "fork", prefetch_factor=1):
            assert dataset.ack(ids) == []
            seen += ids
            if len(seen) == 8:
                queue.put(refs[8:])
                producer.close()
    assert sorted(seen) == names(20)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_list(store: SharedDirFeatureStore, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    """Ranks and workers share out a list of refs, evenly and without overlap."""
    refs = publish(store, 13)
    seen: list[list[str]] = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert rank_and_world() == (rank, 2)
        dataset: FeatureDataset[SampleRef] = FeatureDataset(
            store, refs=refs, transform=lambda ref, features: features["tokens"]
        )
        seen.append([sample_id for ids, _ in batches(dataset, workers, "fork") for sample_id in ids])
    assert sorted(seen[0] + seen[1]) == names(13) and [len(share) for share in seen] == [7, 6]
    with pytest.raises(ValueError, match="acknowledge"):
        dataset.ack(["s000"])


def test_misuse(store: SharedDirFeatureStore, queue: FileSampleRefQueue[SampleRef]) -> None:
    """A dataset takes a queue or a list, and is iterated by the process that made it."""
    for options in ({}, {"queue": queue, "refs": []}, {"queue": queue, "lease": 0}):
        with pytest.raises(ValueError, match="either"):
            FeatureDataset(store, **options)  # type: ignore[arg-type]
    dataset: FeatureDataset[SampleRef] = FeatureDataset(store, queue=queue)
    dataset._owner = f"elsewhere.{os.getpid() + 1}.abcdef"
    with pytest.raises(RuntimeError, match=r"QueueConfigError: .* make it where"):
        list(batches(dataset, 1, "fork"))


def test_handing_over_leases(queue: FileSampleRefQueue[SampleRef], store: SharedDirFeatureStore) -> None:
    """A handle that gave its leases away can settle them no more; the one that adopted them can."""
    refs = publish(store, 4)
    queue.put(refs)
    queue.handle.presence.announce()
    with pickle.loads(pickle.dumps(queue)) as giver:
        assert giver.owner != queue.owner and giver.path == queue.path
        assert queue.get(0) == [] and giver.get(3) == refs[:3]
        assert giver.hand_over(refs[:2], queue.owner) == []
        assert giver.hand_over(refs[2:3], giver.owner) == []
        assert giver.hand_over(refs[3:], queue.owner) == ["s003"], "it never had that one"
        giver.ack(refs[:1])
        giver.release(refs[:2])
        assert queue.counts() == (1, 3, 0, 0)
        assert queue.adopt(refs) == ["s002", "s003"]
        assert queue.renew(refs[:2]) == [] and queue.ack(refs[:1]) == []
        assert queue.release_all() == 1 and giver.ack(refs[2:3]) == []
    assert queue.counts() == (2, 0, 2, 0)


TRAIN = """
import json, sys
import torch, torch.distributed as dist
from torch.utils.data import DataLoader
from fsqueue import FileSampleRefQueue
from fsqueue.features import FeatureDataset, SharedDirFeatureStore, rank_and_world

def main(site, workers, partitioned):
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world = rank_and_world()
    assert (rank, world) == (dist.get_rank(), dist.get_world_size())
    trained, total = [], torch.zeros(1, dtype=torch.float64)
    with FileSampleRefQueue(f"{site}/q", owner=f"trainer-{rank}", heartbeat_s=5) as queue:
        store = SharedDirFeatureStore(f"{site}/features")
        dataset = FeatureDataset(store, queue=queue, partition=(rank, world) if partitioned else None)
        for step, (ids, features) in enumerate(DataLoader(dataset, batch_size=4, num_workers=workers), 1):
            total += features["hidden"][:, 0, 0].sum()
            assert dataset.ack(ids, step=step) == []
            trained += ids
    dist.all_reduce(total)
    with open(f"{site}/rank-{rank}.json", "w") as file:
        json.dump({"trained": trained, "sum": float(total)}, file)
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "partitioned")
"""


@pytest.mark.parametrize(("workers", "how"), [(2, "shared"), pytest.param(1, "partitioned", marks=pytest.mark.slow)])
def test_under_torchrun(store: SharedDirFeatureStore, tmp_path: Path, workers: int, how: str) -> None:
    """Two ranks with workers of their own train every sample once, from one queue, as their all-reduce confirms."""
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=60, durable=False) as queue:
        queue.put(publish(store, 40))
        program = tmp_path / "train.py"
        program.write_text(TRAIN)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
        done = subprocess.run(
            [*command, str(tmp_path), str(workers), how],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=2 * GUARD_S,
        )
        assert done.returncode == 0, done.stderr
        ranks = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in range(2)]
        assert sorted(ranks[0]["trained"] + ranks[1]["trained"]) == names(40)
        assert [rank["sum"] for rank in ranks] == [float(sum(range(40)))] * 2
        assert queue.counts() == (0, 0, 40, 0)
    assert_clean(tmp_path / "q")
