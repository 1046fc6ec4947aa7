"""Backpressure: when prompt leasing pauses and resumes, the caps, and the two kinds of starvation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.control.backpressure import BackpressureConfig, BackpressureConfigError, BackpressureController
from fsqueue.control.controller import DataFlowController
from fsqueue.control.ledger import FileMetadataStore
from tests.support import ids, numbered, ref, refs

Controller = DataFlowController[Any]


class Load:
    """A feature store that says how full it is."""

    def __init__(self) -> None:
        self.now: dict[str, Any] = {"resident_bytes": 0}

    def health(self) -> dict[str, Any]:
        return self.now


def test_it_pauses_at_the_high_watermark_and_resumes_at_the_low_one() -> None:
    """In between it stays as it was; transitions are counted."""
    load = Load()
    policy = BackpressureController(BackpressureConfig(high_watermark_bytes=100, low_watermark_bytes=40), load)
    paused = []
    for now in (0, 99, 100, 99, 41, 40, 99, 100, 0):
        load.now = {"resident_bytes": now}
        paused.append(policy.should_pause_prompts())
    assert paused == [False, False, True, True, True, False, False, True, False]
    snapshot = policy.snapshot()
    assert (snapshot["pause_transitions"], snapshot["resume_transitions"]) == (2, 2)


def test_refs_and_bytes_share_one_latch() -> None:
    """Either pauses; both must be low to resume. A feature store counts samples, which are refs."""
    load = Load()
    limits = BackpressureConfig(
        high_watermark_refs=10, low_watermark_refs=4, high_watermark_bytes=100, low_watermark_bytes=40
    )
    policy = BackpressureController(limits, load)
    steps = [(9, 99), (10, 20), (5, 20), (4, 41), (4, 40), (1, 100), (1, 50), (1, 40)]
    paused = []
    for count, size in steps:
        load.now = {"resident_samples": count, "resident_bytes": size}
        paused.append(policy.should_pause_prompts())
    assert paused == [False, True, True, True, False, True, True, False]


def test_without_a_low_watermark_it_resumes_just_below_the_high_one() -> None:
    load = Load()
    policy = BackpressureController(BackpressureConfig(high_watermark_bytes=10), load)
    for now, expected in ((10, True), (10, True), (9, False)):
        load.now = {"resident_bytes": now}
        assert policy.should_pause_prompts() is expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"high_watermark_bytes": 10, "low_watermark_bytes": 11},
        {"low_watermark_bytes": 1},
        {"high_watermark_refs": 4, "low_watermark_refs": -1},
        {"low_watermark_refs": 1},
        {"high_watermark_refs": 0},
        {"max_train_lease": 0},
        {"max_inflight_prompts_per_worker": 0},
    ],
)
def test_contradictory_limits_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(BackpressureConfigError, match=list(wrong)[-1]):
        BackpressureConfig(**wrong)


def test_no_limits_no_pause() -> None:
    """Neither without limits nor without anybody who knows the load."""
    assert not BackpressureController().should_pause_prompts()
    assert not BackpressureController(BackpressureConfig(high_watermark_bytes=1)).should_pause_prompts()
    policy = BackpressureController()
    assert (policy.cap_prompt_grant(7, 9), policy.cap_train_lease(9)) == (9, 9)


def test_caps_on_a_worker_and_on_a_lease() -> None:
    """A worker never holds more prompts than its cap, a lease never returns more refs."""
    policy = BackpressureController(BackpressureConfig(max_inflight_prompts_per_worker=3, max_train_lease=2))
    controller: Controller = DataFlowController("run", backpressure=policy)
    controller.ingest_prompts([{"task_id": f"p{n}"} for n in range(10)])
    assert [len(controller.lease_prompt_tasks("w0", 2)) for _ in range(3)] == [2, 1, 0]
    assert len(controller.lease_prompt_tasks("w1", 9)) == 3
    controller.fail_prompt_tasks("w0", ["p0"], "died", True)
    controller.commit_samples("w0", [ref("a", source_task_id="p1")])
    assert len(controller.lease_prompt_tasks("w0", 9)) == 2
    controller.enqueue_offline_refs(numbered(5))
    assert len(controller.lease_train_refs("t0", 64)) == 2


def test_the_two_starvations_are_counted_apart() -> None:
    """A worker that asks while paused, a trainer that asks in vain: opposite cures."""
    load = Load()
    policy = BackpressureController(BackpressureConfig(high_watermark_bytes=10), load)
    controller: Controller = DataFlowController("run", backpressure=policy)
    controller.ingest_prompts([{"task_id": "p0"}])
    assert controller.lease_train_refs("t0", 1) == []
    load.now = {"resident_bytes": 10, "max_resident_bytes": 50}
    assert [controller.lease_prompt_tasks("w0", 1) for _ in range(2)] == [[], []]
    assert controller.status()["backpressure"] == {
        "paused": True,
        "rollout_starved": 2,
        "trainer_starved": 1,
        "pause_transitions": 1,
        "resume_transitions": 0,
        "resident_bytes": 10,
        "resident_refs": 0,
        "max_resident_bytes": 50,
        "free_to_high_watermark_bytes": 0,
    }


def test_a_controller_tells_its_own_load(tmp_path: Path) -> None:
    """Refs and bytes that are pending or leased, whichever process put them; dead letters weigh nothing."""
    policy = BackpressureController(
        BackpressureConfig(high_watermark_bytes=500, low_watermark_bytes=200, high_watermark_refs=100)
    )
    with FileSampleRefQueue(tmp_path / "queue") as queue, FileMetadataStore[SampleRef](tmp_path / "ledger") as store:
        controller: Controller = DataFlowController(
            "run", sample_queue=queue, metadata_store=store, backpressure=policy
        )
        controller.ingest_prompts([{"task_id": f"p{n}"} for n in range(9)])
        with (
            FileSampleRefQueue(tmp_path / "queue") as theirs,
            FileMetadataStore[SampleRef](tmp_path / "ledger") as ledger,
        ):
            elsewhere: Controller = DataFlowController("run", sample_queue=theirs, metadata_store=ledger)
            elsewhere.commit_samples("w9", [ref(f"x{n}", estimated_bytes=100) for n in range(4)])
        assert len(controller.lease_prompt_tasks("w0", 1)) == 1
        controller.commit_samples("w0", [ref("y", estimated_bytes=100)])
        assert controller.health() == {"resident_refs": 5, "resident_bytes": 500}
        assert controller.lease_prompt_tasks("w0", 1) == []
        leased = ids(controller.lease_train_refs("t0", 3))
        controller.ack_train_refs("t0", leased[:2], global_step=1)
        assert controller.lease_prompt_tasks("w0", 1) == []
        controller.fail_refs("t0", leased[2:], "poisoned", False)
        assert controller.health() == {"resident_refs": 2, "resident_bytes": 200}
        assert len(controller.lease_prompt_tasks("w0", 1)) == 1


def test_someone_elses_policy() -> None:
    """A policy of another package is asked and told, and otherwise left alone."""

    class Policy:
        capacity = None
        told: list[str] = []  # noqa: RUF012

        def should_pause_prompts(self) -> bool:
            return True

        def note_rollout_starved(self) -> None:
            self.told.append("rollout")

        def note_trainer_starved(self) -> None:
            self.told.append("trainer")

        def cap_prompt_grant(self, worker_inflight: int, requested: int) -> int:
            return requested

        def cap_train_lease(self, requested: int) -> int:
            return min(requested, 1)

        def snapshot(self) -> dict[str, Any]:
            return {"mine": True}

    controller: Controller = DataFlowController("run", backpressure=Policy())
    assert controller.lease_train_refs("t0", 5) == controller.lease_prompt_tasks("w0", 5) == []
    controller.commit_samples("w0", refs("a", "b"))
    assert len(controller.lease_train_refs("t0", 5)) == 1
    assert (Policy.told, Policy.capacity) == (["trainer", "rollout"], None)
    assert controller.status()["backpressure"] == {"mine": True}
