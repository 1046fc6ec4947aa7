"""What SpecForge's queue, ledger and controller do, and what fsqueue's do in their place: each line runs for both.

Where the two differ on purpose, the test says so, and holds both of them to what they do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsqueue.control import DataFlowController
from tests.support import GUARD_S, InThread, wait_until
from tests.support.upstream import required

required("specforge.runtime.contracts")

from tests.support.specforge import (  # noqa: E402  # only where there is SpecForge
    CONTROLLERS,
    LEDGERS,
    QUEUES,
    SampleRef,
    Site,
    Tensor,
    control_plane,
    ref,
    refs,
)


def ids(found: Any) -> list[str]:
    return [each.sample_id for each in found]


def _site(request: pytest.FixtureRequest, path: Path) -> Iterator[Site]:
    it = Site(path, request.param)
    with it.closing:
        yield it


@pytest.fixture(params=QUEUES)
def queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    for site in _site(request, tmp_path):
        yield site.queue()


@pytest.fixture(params=LEDGERS)
def ledgers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    yield from _site(request, tmp_path)


@pytest.fixture(params=CONTROLLERS)
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    yield from _site(request, tmp_path)


def is_theirs(thing: Any) -> bool:
    return type(thing).__module__.startswith("specforge.")


# -- the queue --------------------------------------------------------------------------------------------------------


def test_refs_come_in_the_order_in_which_they_were_put(queue: Any) -> None:
    """Perhaps fewer than asked for, perhaps none, and none twice."""
    queue.put(refs("a", "b", "c"))
    assert ids(queue.get(2)) == ["a", "b"]
    assert ids(queue.get(2, timeout_s=0.0)) == ["c"]
    assert queue.get(2) == queue.get(2, timeout_s=0.01) == []
    assert (queue.depth(), queue.in_flight()) == (0, 3)


def test_refs_come_back_equal_and_of_their_own_class(queue: Any) -> None:
    """Also with a word outside the class's Literal, and with tuples where it says Any."""
    given = ref("a", strategy="not one of theirs", metadata={"span": (0, 128), "nested": [{"k": (1,)}]})
    queue.put([given])
    (found,) = queue.get(1)
    assert (found, type(found)) == (given, SampleRef)
    queue.fail([found], "again", retryable=True)
    assert queue.get(1) == [given]


def test_an_id_that_is_pending_or_leased_is_skipped(queue: Any) -> None:
    """One that was acknowledged, or failed for good, may come again."""
    queue.put(refs("a", "b", "a"))
    queue.get(1)
    queue.put(refs("a", "b"))
    assert (queue.depth(), queue.in_flight()) == (1, 1)
    queue.ack(refs("a"))
    queue.get(1)
    queue.fail(refs("b"), "bad", False)
    queue.put(refs("a", "b"))
    assert ids(queue.get(9)) == ["a", "b"]


def test_a_tensor_in_a_ref_is_a_type_error(queue: Any) -> None:
    """Theirs has put by then what comes before it; ours puts nothing of the batch."""
    with pytest.raises(TypeError, match=r"<root>\.metadata\['x'\]\[1\]"):
        queue.put([ref("good"), ref("bad", metadata={"x": [1, Tensor()]})])
    assert queue.depth() == (1 if is_theirs(queue) else 0)


def test_acks_go_by_id(queue: Any) -> None:
    """Twice is once, unknown ids do no harm, and a ref that nobody has leased stays pending."""
    queue.put(refs("a", "b"))
    queue.get(1)
    for _ in range(2):
        queue.ack(refs("a", "b", "unknown"))
        assert (queue.depth(), queue.in_flight()) == (1, 0)


def test_what_failed_goes_to_the_tail_or_is_gone(queue: Any) -> None:
    queue.put(refs("a", "b", "c", "d"))
    queue.get(3)
    queue.fail(refs("a"), "no memory", True)
    queue.fail(refs("b"), "bad features", False)
    queue.fail(refs("c"), "no memory", retryable=True)
    assert ids(queue.get(9)) == ["d", "a", "c"]


def test_failing_what_is_not_there(queue: Any) -> None:
    """Theirs puts it; ours leaves it alone, for another owner may have finished it."""
    queue.fail(refs("unknown"), "late", True)
    assert queue.depth() == (1 if is_theirs(queue) else 0)


def test_an_empty_queue_is_true(queue: Any) -> None:
    """Controllers test it so."""
    assert queue and queue.depth() == queue.in_flight() == 0
    queue.put([])
    queue.ack([])
    queue.fail([], "nothing", True)
    assert queue


def test_a_waiting_get_sees_a_later_put(queue: Any) -> None:
    waiting = InThread(lambda: queue.get(4, timeout_s=GUARD_S))
    queue.put(refs("late"))
    assert ids(waiting.result()) == ["late"]


# -- the ledger -------------------------------------------------------------------------------------------------------


def test_a_sample_is_committed_once(ledgers: Site) -> None:
    """A batch is told for each ref whether it is new, also where an id is in it twice."""
    ledger = ledgers.ledger()
    assert ledger and ledger.commit_sample(ref("b")) is True
    assert ledger.commit_sample(ref("b", num_tokens=9)) is False
    assert list(ledger.commit_samples(refs("c", "b", "a", "a"))) == [True, False, True, False]
    assert list(ledger.commit_samples([])) == []
    assert (ledger.committed_count(), ledger.all_committed_ids()) == (3, ["b", "c", "a"])
    assert ledger.get_committed("b") == ref("b")
    assert (ledger.is_committed("a"), ledger.is_committed("z"), ledger.get_committed("z")) == (True, False, None)


def test_refs_are_kept_as_they_are(ledgers: Site) -> None:
    """Theirs in SQLite makes lists of tuples where the class says Any."""
    ledger = ledgers.ledger()
    given = ref("a", strategy="not one of theirs", metadata={"span": (0, 128)})
    ledger.commit_sample(given)
    found = ledger.get_committed("a")
    assert type(found) is SampleRef
    assert found == (ref("a", strategy=given.strategy, metadata={"span": [0, 128]}) if "SQL" in ledgers.kind else given)


def test_the_marker(ledgers: Site) -> None:
    """Acknowledged ids add up; the last step that was named stays; the last word about the optimizer counts."""
    ledger = ledgers.ledger()
    assert ledger.durable_marker() == {"acked": set(), "global_step": None, "optimizer_durable": False}
    ledger.record_train_ack(["a", "unknown"], global_step=7, optimizer_durable=True)
    ledger.record_train_ack(["a", "b"], global_step=None, optimizer_durable=True)
    assert ledger.durable_marker() == {"acked": {"a", "b", "unknown"}, "global_step": 7, "optimizer_durable": True}
    ledger.record_train_ack([], global_step=8, optimizer_durable=False)
    assert ledger.durable_marker() == {"acked": {"a", "b", "unknown"}, "global_step": 8, "optimizer_durable": False}


@pytest.mark.parametrize("ledgers", ["theirs in SQLite", "ours"], indirect=True)
def test_it_is_all_there_when_it_is_opened_again(ledgers: Site) -> None:
    """And what one object records, another one over the same files sees at once."""
    before = ledgers.ledger()
    before.commit_samples(refs("a", "b"))
    before.record_train_ack(["a"], global_step=3, optimizer_durable=True)
    after = ledgers.ledger()
    assert (after.all_committed_ids(), after.get_committed("b")) == (["a", "b"], ref("b"))
    assert after.durable_marker() == {"acked": {"a"}, "global_step": 3, "optimizer_durable": True}
    before.commit_sample(ref("c"))
    assert after.is_committed("c") and after.commit_sample(ref("c")) is False


# -- the controller ---------------------------------------------------------------------------------------------------


def test_from_prompt_to_trained_sample(site: Site) -> None:
    """The status counts it all the way, under the same keys."""
    controller = site.controller()
    controller.ingest_prompts([{"task_id": f"p{n}", "payload": {"text": "hello"}} for n in range(3)])
    assert [task.task_id for task in controller.lease_prompt_tasks("w0", 2)] == ["p0", "p1"]
    assert controller.commit_samples("w0", [ref("a", source_task_id="p0"), ref("b", source_task_id="p1")]) == [
        ref("a", source_task_id="p0"),
        ref("b", source_task_id="p1"),
    ]
    assert ids(controller.sample_queue.get(1)) == ["a"]
    expected = {
        "run_id": "run",
        "prompts": 1,
        "prompts_pending": 1,
        "prompts_leased": 0,
        "prompts_failed": 0,
        "samples_committed": 2,
        "train_backlog": 2,
        "queue_depth": 1,
        "queue_in_flight": 1,
        "rollout_workers": 0,
        "trainers": 0,
        "durable_global_step": None,
        "durable_acked": 0,
    }
    assert controller.status() == expected
    controller.ack_train_refs("t0", ["a"], global_step=1, optimizer_durable=True)
    changed = {"train_backlog": 1, "queue_in_flight": 0, "durable_global_step": 1, "durable_acked": 1}
    assert controller.status() == expected | changed


def test_a_commit_returns_what_is_new(site: Site) -> None:
    """Of an id that is there twice, the first; only what is new is queued."""
    controller = site.controller()
    given = [ref("a"), ref("b", num_tokens=1), ref("b", num_tokens=2)]
    assert controller.commit_samples("w0", given) == given[:2]
    assert controller.commit_samples("w1", refs("a", "c")) == refs("c")
    assert controller.commit_samples("w1", refs("a")) == controller.commit_samples("w1", []) == []
    assert controller.sample_queue.get(9) == [*given[:2], ref("c")]


@pytest.mark.parametrize("kind", [control_plane.DataFlowController, DataFlowController])
def test_a_controller_that_is_given_nothing_takes_their_refs(kind: Any) -> None:
    """Its queue and its ledger are in memory, and ask for no class."""
    controller = kind("run")
    controller.commit_samples("w0", refs("a", "b"))
    assert controller.sample_queue.get(1) == refs("a")
    controller.ack_train_refs("t0", ["a"], global_step=1, optimizer_durable=True)
    status = controller.status()
    assert (status["queue_depth"], status["queue_in_flight"], status["durable_acked"]) == (1, 0, 1)


def test_prompts_carry_what_was_said_of_them(site: Site) -> None:
    """And defaults for the rest; a name is made up where there is none."""
    controller = site.controller()
    (made_up,) = controller.ingest_prompts([{"text": "hello"}])
    controller.ingest_prompts([{"task_id": "p", "payload": [1], "max_length": "16", "chat_template": "c"}])
    one, two = controller.lease_prompt_tasks("w0", 9)
    assert (one.task_id, one.payload, one.max_length, one.attempt) == (made_up, {"text": "hello"}, 2048, 0)
    assert (two.run_id, two.source_id, two.payload, two.max_length) == ("run", "prompt_source", [1], 16)
    assert (two.chat_template, two.target_model_version, two.draft_weight_version) == ("c", "unknown", None)


def test_prompts_fail_complete_and_are_others_business(site: Site) -> None:
    """Attempts count up to the limit; a worker ends its own leases only."""
    controller = site.controller(max_prompt_attempts=2)
    controller.ingest_prompts([{"task_id": name} for name in ("p0", "p1", "p2", "p3")])
    controller.lease_prompt_tasks("w0", 3)
    controller.complete_prompt_tasks("w1", ["p0"])
    controller.fail_prompt_tasks("w1", ["p0"], "not mine", False)
    controller.complete_prompt_tasks("w0", ["p0", "unknown"])
    controller.fail_prompt_tasks("w0", ["p1", "unknown"], "no memory", True)
    controller.fail_prompt_tasks("w0", ["p2"], "bad", False)
    tasks = controller.lease_prompt_tasks("w1", 9)
    assert [(task.task_id, task.attempt) for task in tasks] == [("p3", 0), ("p1", 1)]
    controller.fail_prompt_tasks("w1", ["p1"], "no memory", True)
    status = controller.status()
    assert [status[key] for key in ("prompts", "prompts_pending", "prompts_leased", "prompts_failed")] == [1, 0, 1, 2]


def test_who_takes_part(site: Site) -> None:
    controller = site.controller()
    assert controller.register_rollout_worker({"worker_id": "w0"}) == "w0"
    assert controller.register_trainer({}).startswith("trainer-")
    assert controller.register_rollout_worker({}).startswith("rollout-")
    status = controller.status()
    assert (status["rollout_workers"], status["trainers"]) == (2, 1)


def test_no_tensor_gets_in(site: Site) -> None:
    """A TypeError, and nothing of the call is recorded."""
    controller = site.controller()
    with pytest.raises(TypeError):
        controller.commit_samples("w0", [ref("good"), ref("bad", metadata={"x": Tensor()})])
    with pytest.raises(TypeError):
        controller.ingest_prompts([{"payload": {}}, {"payload": {"x": [Tensor()]}}])
    for register in (controller.register_trainer, controller.register_rollout_worker):
        with pytest.raises(TypeError):
            register({"x": Tensor()})
    status = controller.status()
    counts = ("prompts", "samples_committed", "queue_depth", "trainers", "rollout_workers")
    assert {status[key] for key in counts} == {0}


def test_a_controller_without_a_queue(site: Site) -> None:
    """It records and returns, and somebody else hands out; what needs the queue is a ValueError."""
    controller = site.controller(enable_sample_queue=False)
    assert controller.sample_queue is None
    assert controller.commit_samples("w0", refs("a", "b", "a")) == refs("a", "b")
    controller.ack_train_refs("t0", ["a"], global_step=2, optimizer_durable=True)
    status = controller.status()
    assert (status["queue_depth"], status["queue_in_flight"], status["train_backlog"]) == (0, 0, 1)
    with pytest.raises(ValueError, match="sample queue"):
        controller.reconcile_on_restart()


def test_acks_of_what_is_unknown(site: Site) -> None:
    controller = site.controller()
    controller.commit_samples("w0", refs("a"))
    controller.ack_train_refs("t0", ["unknown"], global_step=1)
    assert controller.status()["queue_depth"] == 1
    assert controller.store.durable_marker()["acked"] == {"unknown"}


class Features:
    """Notes what a store is asked to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def adopt(self, given: Any) -> None:
        self.calls.append(("adopt", given.sample_id))

    def abort(self, sample_id: str, *, reason: str) -> None:
        self.calls.append((reason, sample_id))


@pytest.mark.parametrize("site", [kind for kind in CONTROLLERS if kind != "ours in memory"], indirect=True)
def test_a_restart_finds_what_was_not_trained(site: Site) -> None:
    """In commit order; the features of what was are aborted, by a store that is told of them first. Idempotent.

    The crash fell between the ledger's ack of b and the queue's. Their controller expects a queue that is empty after
    a restart; ours settles there what the ledger has.
    """
    before, features = site.controller(), Features()
    before.commit_samples("w0", refs("a", "b", "c"))
    before.sample_queue.ack(before.sample_queue.get(1))
    before.store.record_train_ack(["b"], global_step=4, optimizer_durable=True)
    site.closing.close()
    after = site.controller()
    for _ in range(2):
        report = after.reconcile_on_restart(features)
        assert (report["requeued"], report["released"]) == (["a", "c"], ["b"])
        assert (report["global_step"], report["optimizer_durable"]) == (4, True)
    assert features.calls == [("adopt", "b"), ("reconciled-released", "b")] * 2
    left = ["a", "b", "c"] if "over ours" in site.kind else ["a", "c"]
    assert sorted(ids(after.sample_queue.get(9))) == left


@pytest.mark.parametrize("site", ["theirs", "ours"], indirect=True)
def test_acks_that_no_checkpoint_covers(site: Site) -> None:
    """Theirs trains all again that the ledger has; ours trusts its acks, and is told by `rewind` which ones not to."""
    before = site.controller()
    before.commit_samples("w0", refs("a", "b"))
    before.ack_train_refs("t0", ids(before.sample_queue.get(1)), global_step=1, optimizer_durable=False)
    site.closing.close()
    after = site.controller()
    report = after.reconcile_on_restart()
    assert report["optimizer_durable"] is False
    if site.is_theirs:
        assert (report["requeued"], report["released"]) == (["a", "b"], [])
    else:
        assert (report["requeued"], report["released"]) == (["b"], ["a"])
        assert after.rewind(after_step=0)["requeued"] == ["a", "b"]
    wait_until(lambda: sorted(ids(after.sample_queue.get(9))) == ["a", "b"], "both are pending")
