"""The controller's contract, over every kind of queue and ledger."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from against_sqlite.queue import PlainSqliteQueue
from fsqueue import (
    FileSampleRefQueue,
    InvalidArgumentError,
    InvalidRefError,
    MemorySampleRefQueue,
    NoSampleQueueError,
    PromptTask,
    QueueConfigError,
    QueueIOError,
    SampleRef,
    TensorInRefError,
)
from fsqueue.control.controller import DataFlowController
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.control.ledger.metadata_store import InMemoryMetadataStore
from fsqueue.operate.requeue import requeue
from tests.support import GUARD_S, InThread, Tap, folder_of, ids, names_in, numbered, open_tapped, ref, refs

Controller = DataFlowController[Any]


@dataclass(frozen=True)
class OwnRef:
    sample_id: str
    weight: int


class ForeignStore:
    """A ledger of another package: the contract and not one method more."""

    def __init__(self) -> None:
        self.refs: dict[str, Any] = {}
        self.marker: dict[str, Any] = {"acked": set(), "global_step": None, "optimizer_durable": False}

    def commit_sample(self, given: Any) -> bool:
        return self.refs.setdefault(given.sample_id, given) is given

    def is_committed(self, sample_id: str) -> bool:
        return sample_id in self.refs

    def get_committed(self, sample_id: str) -> Any:
        return self.refs.get(sample_id)

    def committed_count(self) -> int:
        return len(self.refs)

    def all_committed_ids(self) -> list[str]:
        return list(self.refs)

    def record_train_ack(self, sample_ids: list[str], *, global_step: int | None, optimizer_durable: bool) -> None:
        self.marker["acked"].update(sample_ids)
        self.marker["optimizer_durable"] = optimizer_durable
        if global_step is not None:
            self.marker["global_step"] = global_step

    def durable_marker(self) -> dict[str, Any]:
        return {**self.marker, "acked": set(self.marker["acked"])}


Make = Callable[..., Controller]


@pytest.fixture(params=["memory", "file", "sqlite", "foreign store"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes controllers over one queue and one ledger of a kind."""
    opened: list[Any] = []

    def queue() -> Any:
        if request.param in ("file", "foreign store"):
            return FileSampleRefQueue(tmp_path / "queue", durable=False)
        return PlainSqliteQueue(str(tmp_path / "queue.db")) if request.param == "sqlite" else MemorySampleRefQueue()

    def build(run_id: str = "run", **options: Any) -> Controller:
        kinds: dict[str, Any] = {
            "file": lambda: FileMetadataStore(tmp_path / "ledger", durable=False),
            "foreign store": ForeignStore,
        }
        made: Controller = DataFlowController(
            run_id, sample_queue=queue(), metadata_store=kinds.get(request.param, InMemoryMetadataStore)(), **options
        )
        opened.extend((made.sample_queue, made.store))
        return made

    yield build
    for each in opened:
        if hasattr(each, "close"):
            each.close()


def test_the_defaults_live_in_memory() -> None:
    """A controller needs nothing but a run id."""
    controller: Controller = DataFlowController("run")
    assert isinstance(controller.sample_queue, MemorySampleRefQueue)
    assert isinstance(controller.store, InMemoryMetadataStore)
    controller.commit_samples("w0", refs("a"))
    assert ids(controller.lease_train_refs("t0", 4)) == ["a"]


def test_the_default_queue_takes_the_class_of_the_first_ref() -> None:
    """A controller brings refs of its own class; a later one of another class is refused, as by any queue."""
    controller: Any = DataFlowController("run")
    assert controller.commit_samples("w0", []) == controller.lease_train_refs("t0", 1) == []
    controller.commit_samples("w0", [OwnRef("a", 7)])
    assert controller.lease_train_refs("t0", 1) == [OwnRef("a", 7)]
    with pytest.raises(InvalidRefError, match="OwnRef"):
        controller.commit_samples("w0", refs("b"))
    with pytest.raises(InvalidRefError, match="a dataclass"):
        DataFlowController[Any]("run").sample_queue.put([object()])  # type: ignore[union-attr]


def test_from_commit_to_ack(make: Make) -> None:
    """A committed sample is leased, acknowledged and gone; the status counts it all the way."""
    controller = make()
    controller.commit_samples("w0", refs("a", "b", "c"))
    assert ids(controller.lease_train_refs("t0", 2)) == ["a", "b"]
    assert controller.status() | {"run_id": "run"} == controller.status()
    assert {key: controller.status()[key] for key in ("queue_depth", "queue_in_flight", "train_backlog")} == {
        "queue_depth": 1,
        "queue_in_flight": 2,
        "train_backlog": 3,
    }
    assert controller.ack_train_refs("t0", ["a", "b"], global_step=4, optimizer_durable=True) == []
    status = controller.status()
    assert (status["queue_in_flight"], status["samples_committed"], status["train_backlog"]) == (0, 3, 1)
    assert (status["durable_global_step"], status["durable_acked"]) == (4, 2)
    assert controller.store.durable_marker() == {"acked": {"a", "b"}, "global_step": 4, "optimizer_durable": True}


def test_a_sample_is_committed_once(make: Make) -> None:
    """Offline refs and workers' samples share the ledger: an id is queued once, also after it was acknowledged."""
    controller = make()
    controller.commit_samples("w0", refs("a", "b", "a"))
    controller.commit_samples("w1", refs("a"))
    controller.enqueue_offline_refs(refs("b", "c"))
    assert controller.require_queue("test").depth() == controller.status()["samples_committed"] == 3
    controller.lease_train_refs("t0", 1)
    controller.ack_train_refs("t0", ["a"], global_step=1)
    controller.commit_samples("w0", refs("a"))
    assert ids(controller.lease_train_refs("t0", 9)) == ["b", "c"]


def test_a_commit_returns_what_is_new(make: Make) -> None:
    """In order, and of an id that is there twice the first; so it is with what no worker produced."""
    controller = make()
    given = [ref("a"), ref("b", num_tokens=1), ref("b", num_tokens=2)]
    assert controller.commit_samples("w0", given) == given[:2]
    assert controller.commit_samples("w1", refs("a", "c")) == refs("c")
    assert controller.enqueue_offline_refs(refs("c", "d")) == refs("d")


def test_a_controller_without_a_queue_keeps_the_ledger(make: Make) -> None:
    """What only a queue can do is refused, and the ledger untouched; one that is set later gets what is not trained."""
    controller: Controller = DataFlowController("run", metadata_store=make().store, enable_sample_queue=False)
    assert controller.sample_queue is None
    assert controller.commit_samples("w0", refs("a", "b")) == refs("a", "b")
    assert controller.ack_train_refs("t0", ["a"], global_step=1) == []
    assert (controller.health()["resident_refs"], controller.status()["queue_depth"]) in {(1, 0), (0, 0)}
    lease = controller.train_lease("t0")
    for call in (
        lambda: controller.lease_train_refs("t0", 1),
        lambda: controller.fail_refs("t0", ["b"], "no", True),
        lambda: controller.rewind(after_step=0),
        controller.reconcile_on_restart,
        lambda: lease.renew(refs("b")),
        lambda: lease.release(refs("b")),
        lease.depth,
    ):
        with pytest.raises(NoSampleQueueError, match=r"run 'run' has no sample queue.* needs one"):
            call()
    assert controller.store.progress() == (1, 1)
    controller.sample_queue = MemorySampleRefQueue()
    assert controller.reconcile_on_restart()["requeued"] == ["b"]
    with pytest.raises(InvalidArgumentError, match="enable_sample_queue is False"):
        DataFlowController("run", sample_queue=controller.sample_queue, enable_sample_queue=False)


def test_a_tensor_is_refused_and_nothing_recorded(make: Make) -> None:
    """In a sample, a prompt, or what a worker says of itself: a TypeError that names the place."""
    controller = make()
    tensor = type("Tensor", (), {"dtype": 1, "shape": 2, "device": 3})()
    with pytest.raises(TensorInRefError, match=r"<root>.metadata\['x'\]"):
        controller.commit_samples("w0", [ref("good"), ref("bad", metadata={"x": tensor})])
    with pytest.raises(TypeError):
        controller.ingest_prompts([{"payload": {}}, {"payload": {"x": [tensor]}}])
    with pytest.raises(TypeError):
        controller.register_trainer({"x": tensor})
    status = controller.status()
    assert (status["samples_committed"], status["prompts"], status["trainers"], status["queue_depth"]) == (0, 0, 0, 0)


@pytest.mark.parametrize("slip", ["abc", {"text": "hello"}, 3, ["abc"], [{"text": "hello"}, None]])
def test_what_is_no_list_of_prompts_is_refused(make: Make, slip: Any) -> None:
    controller = make()
    with pytest.raises(InvalidArgumentError, match="ingest_prompts"):
        controller.ingest_prompts(slip)
    assert controller.status()["prompts"] == 0


def test_refs_fail_back_or_for_good(make: Make) -> None:
    """Retryable ones come again, others do not; who asks is not who leased."""
    controller = make()
    controller.commit_samples("w0", refs("a", "b"))
    controller.lease_train_refs("t0", 2)
    controller.fail_refs("t0", ["a"], "no memory", True)
    controller.fail_refs("t0", ["b", "unknown"], "bad features", False)
    assert ids(controller.lease_train_refs("t1", 9)) == ["a"]
    assert controller.require_queue("test").in_flight() == 1


def test_unknown_ids_are_acknowledged_without_harm(make: Make) -> None:
    """The ledger records them; the queue has nothing to do."""
    controller = make()
    assert controller.ack_train_refs("t0", ["nobody"], global_step=1) == []
    assert controller.store.durable_marker()["acked"] == {"nobody"}


def test_a_train_lease_is_a_queue_for_one_trainer(make: Make) -> None:
    """get, ack and fail go through the controller, so that the ledger knows."""
    controller = make()
    controller.commit_samples("w0", numbered(4))
    lease = controller.train_lease("t7")
    (first, second) = lease.get(2, 0.0)
    lease.ack([first], global_step=3, optimizer_durable=True)
    lease.fail([second], "again", True)
    assert controller.store.durable_marker() == {
        "acked": {first.sample_id},
        "global_step": 3,
        "optimizer_durable": True,
    }
    assert (lease.depth(), lease.in_flight()) == (3, 0)
    lease.ack(lease.get(1), step=5)
    lease.ack_ids(ids(lease.get(1)), global_step=6)
    assert controller.status()["durable_global_step"] == 6
    controller.commit_samples("w0", numbered(1, "late"))
    lease.ack_ids(ids(lease.get(2)), step=7)
    assert controller.status()["durable_global_step"] == 7
    controller.commit_samples("w0", numbered(1, "last"))
    lease.release(leased := lease.get(9))
    assert lease.depth() == len(leased) == 1
    assert lease.renew(lease.get(9)) == []
    assert controller.train_lease().trainer_id.startswith("trainer-")
    assert controller.status()["trainers"] == 1


def test_another_packages_queue_gets_the_step_where_its_ack_takes_one(tmp_path: Path) -> None:
    """One whose ack has no step goes without; a TypeError of its own is not taken for that."""

    class Stepped(PlainSqliteQueue):
        steps: list[int | None] = []  # noqa: RUF012

        def ack(self, refs: Any, *, step: int | None = None) -> None:
            self.steps.append(step)
            super().ack(refs)

    class Broken(PlainSqliteQueue):
        def ack(self, refs: Any) -> None:
            raise TypeError("of its own")

    for kind in (Stepped, Broken):
        queue = kind(str(tmp_path / kind.__name__))
        controller: Controller = DataFlowController("run", sample_queue=queue)
        controller.commit_samples("w0", refs("a"))
        leased = ids(controller.lease_train_refs("t0", 1))
        if kind is Stepped:
            controller.ack_train_refs("t0", leased, global_step=4)
            assert (Stepped.steps, queue.in_flight()) == ([4], 0)
        else:
            with pytest.raises(TypeError, match="of its own"):
                controller.ack_train_refs("t0", leased, global_step=4)
        queue.close()


def test_a_partitioned_lease(make: Make) -> None:
    """Each data-parallel rank gets its own samples, all of them together."""
    controller = make()
    controller.commit_samples("w0", numbered(20))
    ranks = [ids(controller.lease_train_refs(f"t{rank}", 20, partition=(rank, 2))) for rank in range(2)]
    assert sorted(ranks[0] + ranks[1]) == ids(numbered(20)) and all(ranks)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_a_lease_that_is_waited_for_can_be_stopped(tmp_path: Path, kind: str) -> None:
    """A stop event ends the wait of a lease in another thread, through the controller and a trainer's client."""
    queue: Any = MemorySampleRefQueue() if kind == "memory" else FileSampleRefQueue(tmp_path / "q")
    controller: Controller = DataFlowController("run", sample_queue=queue)
    lease, stop = controller.train_lease("t0"), threading.Event()
    waiting = [
        InThread(lambda: controller.lease_train_refs("t0", 1, GUARD_S, stop_event=stop)),
        InThread(lambda: lease.get(1, GUARD_S, stop_event=stop)),
    ]
    stop.set()
    controller.commit_samples("w0", refs("a"))
    assert [each.result() for each in waiting] == [[], []]
    assert (queue.depth(), queue.in_flight()) == (1, 0)
    queue.close()


def test_the_queue_may_be_replaced(make: Make) -> None:
    """Some callers set the attribute; an empty queue is a queue."""
    controller = make()
    controller.sample_queue = MemorySampleRefQueue()
    controller.commit_samples("w0", refs("a"))
    assert controller.sample_queue.depth() == 1


# -- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_are_handed_out_once_and_in_order() -> None:
    """A prompt carries the run, and defaults where it says nothing."""
    controller: Controller = DataFlowController("run")
    (made_up,) = controller.ingest_prompts([{"text": "hello"}])
    assert controller.ingest_prompts([{"task_id": "t1", "payload": {"x": 1}, "max_length": 16}]) == ["t1"]
    (one,) = controller.lease_prompt_tasks("w0", 1)
    (two,) = controller.lease_prompt_tasks("w1", 5)
    assert (one.task_id, one.payload, one.max_length, one.run_id) == (made_up, {"text": "hello"}, 2048, "run")
    assert two == PromptTask("t1", "run", "prompt_source", {"x": 1}, 16, None, {}, "unknown", None)
    assert controller.lease_prompt_tasks("w0", 5) == []
    assert {k: v for k, v in controller.status().items() if k.startswith("prompts")} == {
        "prompts": 2,
        "prompts_pending": 0,
        "prompts_leased": 2,
        "prompts_failed": 0,
    }


def test_a_committed_sample_ends_its_prompt() -> None:
    """Whoever holds it, whether or not the sample is new; prompts are not rolled out again."""
    controller: Controller = DataFlowController("run")
    controller.ingest_prompts([{"task_id": "p0"}, {"task_id": "p1"}, {"task_id": "p2"}])
    controller.lease_prompt_tasks("w0", 1)
    controller.commit_samples("w0", [ref("a", source_task_id="p0"), ref("b", source_task_id="p1")])
    controller.commit_samples("w0", [ref("b", source_task_id="p2"), ref("c", source_task_id="unknown")])
    assert controller.status()["prompts"] == controller.status()["prompts_leased"] == 0
    assert controller.lease_prompt_tasks("w0", 9) == []


def test_prompts_are_completed_without_a_sample_here() -> None:
    """By whoever leases them, or where nobody does; another worker's leases stay, and unknown ids do no harm."""
    controller: Controller = DataFlowController("run")
    controller.ingest_prompts([{"task_id": name, "payload": {}} for name in "abc"])
    controller.lease_prompt_tasks("w0", 2)
    controller.complete_prompt_tasks("w1", ["a"])
    controller.complete_prompt_tasks("w0", ["b", "c", "unknown"])
    status = controller.status()
    assert (status["prompts"], status["prompts_leased"], status["prompts_pending"]) == (1, 1, 0)
    controller.fail_prompt_tasks("w0", ["a", "b"], "again", True)
    assert [task.task_id for task in controller.lease_prompt_tasks("w1", 9)] == ["a"]
    with pytest.raises(InvalidArgumentError):
        controller.complete_prompt_tasks("w1", "a")


def test_failed_prompts_come_again_until_their_attempts_are_used_up() -> None:
    """attempt counts up; others' prompts stay; the reason is kept."""
    controller: Controller = DataFlowController("run", max_prompt_attempts=3)
    controller.ingest_prompts([{"task_id": "p0"}, {"task_id": "p1"}])
    for attempt in range(3):
        (task,) = controller.lease_prompt_tasks("w0", 1)
        assert task.attempt == attempt // 2
        controller.fail_prompt_tasks("someone else", [task.task_id], "stolen", True)
        controller.fail_prompt_tasks("w0", [task.task_id], f"died {attempt}", True)
    assert controller.status()["prompts_pending"] == 2
    tasks = controller.lease_prompt_tasks("w0", 9)
    assert {task.task_id: task.attempt for task in tasks} == {"p0": 2, "p1": 1}
    controller.fail_prompt_tasks("w0", ["p0"], "died", True)
    controller.fail_prompt_tasks("w0", ["p1", "unknown"], "bad prompt", False)
    assert controller.status()["prompts_failed"] == 2
    assert controller.lease_prompt_tasks("w0", 9) == []
    assert controller.failed_prompts() == {"p0": "died (attempts exhausted: 3)", "p1": "bad prompt"}


def test_who_takes_part() -> None:
    """Names are made up where none is given, and counted once."""
    controller: Controller = DataFlowController("run")
    assert controller.register_rollout_worker({"worker_id": "w0"}) == "w0"
    assert controller.register_rollout_worker({"worker_id": "w0", "host": "n1"}) == "w0"
    assert controller.register_rollout_worker({}).startswith("rollout-")
    assert controller.register_trainer({"trainer_id": "t0"}) == "t0"
    status = controller.status()
    assert (status["rollout_workers"], status["trainers"]) == (2, 1)


# -- the order of things --------------------------------------------------------------------------------------------


def log_of(tap: Tap) -> list[str]:
    """Return a list that gets, from now on, what a tapped controller does to files, as 'operation what'."""
    seen: list[str] = []

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name in ("fsync", "pwrite"):
            seen.append(f"{name} {folder_of(args[0]).split('-')[0]}")
        elif name == "rename":
            seen.append(f"rename {folder_of(kwargs['src_dir_fd'])} -> {folder_of(kwargs['dst_dir_fd'])}")

    tap.after = note
    return seen


def test_the_ledger_is_durable_before_the_queue_moves(tmp_path: Path) -> None:
    """Commit: the ledger's fsync comes before the ref becomes pending; ack: before it becomes done.

    Before the first acknowledgement, the queue durably names its ledger.
    """
    tap = Tap()
    with tap.here(), FileMetadataStore[SampleRef](tmp_path / "ledger") as store:
        queue = open_tapped(tap, tmp_path / "queue")
        controller: Controller = DataFlowController("run", sample_queue=queue, metadata_store=store)
        seen = log_of(tap)
        controller.commit_samples("w0", refs("a", "b"))
        assert seen.index("pwrite commits") < seen.index("fsync commits") < seen.index("rename tmp -> pending")
        assert seen.count("fsync commits") == 1
        controller.lease_train_refs("t0", 2)
        seen.clear()
        controller.ack_train_refs("t0", ["a", "b"], global_step=7, optimizer_durable=True)
        at = seen.index("pwrite acks")
        assert (seen[0].split(".")[:3], seen[at - 1]) == (["fsync ", "ledger", "json"], "fsync queue")
        assert seen[at : at + 4] == ["pwrite acks", "fsync acks", *["rename leased -> done"] * 2]
        assert "fsync done" in seen[at + 4 :]
        assert names_in(tmp_path / "queue", "done") == ["a@7.json", "b@7.json"]
        queue.close()


def test_samples_whose_put_failed_are_put_by_the_next_commit(tmp_path: Path) -> None:
    """The ledger has them, so committing them again says that they are known: nothing may depend on that."""
    tap = Tap()
    queue = open_tapped(tap, tmp_path / "queue")
    controller: Controller = DataFlowController("run", sample_queue=queue)

    def full(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tap.before = full
    with pytest.raises(QueueIOError, match="free space"):
        controller.commit_samples("w0", refs("a", "b"))
    assert queue.depth() == 0
    tap.before = None
    controller.commit_samples("w0", refs("a", "b"))
    assert ids(controller.lease_train_refs("t0", 9)) == ["a", "b"]
    queue.close()


def test_samples_of_which_the_ledger_could_not_say_whether_it_has_them_are_put_when_they_are_committed_again(
    tmp_path: Path,
) -> None:
    """The server stops to answer once the record is written: neither synced nor taken back, it stays in the log."""
    tap = Tap()
    with tap.here():
        store = FileMetadataStore[SampleRef](tmp_path / "ledger")
    with store, FileSampleRefQueue(tmp_path / "queue") as queue:
        controller: Controller = DataFlowController("run", sample_queue=queue, metadata_store=store)
        controller.commit_samples("w0", refs("first"))
        written = False

        def dead(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal written
            if written and name not in ("unlock", "close"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            written = name in ("write", "pwrite")

        tap.before = dead
        with pytest.raises(QueueIOError, match="EIO"):
            controller.commit_samples("w0", refs("a", "b", "c"))
        tap.before = None
        assert ids(controller.commit_samples("w0", refs("a", "b", "c", "a"))) == ["a", "b", "c"]
        assert controller.commit_samples("w0", refs("a", "b", "c")) == []
        assert ids(controller.lease_train_refs("t0", 9)) == ["first", "a", "b", "c"]


def test_an_acknowledged_sample_is_not_leased_though_it_is_in_the_queue(tmp_path: Path) -> None:
    """Its controller died between ledger and queue: whoever meets it settles it, and gets the next ones instead."""
    with FileMetadataStore[SampleRef](tmp_path / "ledger") as store, FileSampleRefQueue(tmp_path / "queue") as queue:
        controller: Controller = DataFlowController("run", sample_queue=queue, metadata_store=store)
        controller.commit_samples("w0", numbered(6))
        store.record_train_ack([f"s{n:05d}" for n in range(4)], global_step=8, optimizer_durable=True)
        assert ids(controller.lease_train_refs("t0", 2, GUARD_S)) == ["s00004", "s00005"]
        assert controller.lease_train_refs("t0", 2) == []
        assert names_in(tmp_path / "queue", "done") == [f"s{n:05d}@8.json" for n in range(4)]


def test_an_error_of_the_ledger_leaves_nothing_leased(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refs that were leased before the ledger could be asked go back to pending, and come with the next lease."""
    queue = FileSampleRefQueue(tmp_path / "queue", durable=False)
    with FileMetadataStore[SampleRef](tmp_path / "ledger", durable=False) as store:
        controller: Controller = DataFlowController("run", sample_queue=queue, metadata_store=store)
        controller.commit_samples("w", refs("a", "b"))
        with monkeypatch.context() as patched, pytest.raises(OSError, match="Input/output"):
            patched.setattr(store, "acked_steps", lambda ids: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            controller.lease_train_refs("t", 2)
        assert queue.counts() == (2, 0, 0, 0)
        assert ids(controller.lease_train_refs("t", 2)) == ["a", "b"]
    queue.close()


def test_what_a_ledger_knows_is_not_taken_back_on_the_queue_alone(tmp_path: Path) -> None:
    """Rewinding or requeueing beside the ledger is refused, since its controller would only settle the ref again."""
    queue = FileSampleRefQueue(tmp_path / "queue", durable=False)
    with FileMetadataStore[SampleRef](tmp_path / "ledger", durable=False) as store:
        controller: Controller = DataFlowController("run", sample_queue=queue, metadata_store=store)
        controller.commit_samples("w", refs("a"))
        controller.ack_train_refs("t", ids(controller.lease_train_refs("t", 1)), global_step=7)
        with pytest.raises(QueueConfigError, match="controller's rewind"):
            queue.rewind(after_step=5)
        (outcome,) = requeue(str(tmp_path / "queue"), ["a"])
        assert not outcome.moved and "fsqueue rewind" in outcome.detail
        controller.rewind(after_step=5)
        assert ids(controller.lease_train_refs("t", 1)) == ["a"]
    queue.close()
