"""`fsqueue audit`: which samples are in a checkpoint, how often, and what became of the others."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.control.controller import DataFlowController
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.features import SharedDirFeatureStore
from tests.cli.test_program import snapshot
from tests.support import Queue, ids, numbered, refs
from tests.support.features import publish
from tests.support.program import run


def train(queue: Queue, *steps: int | None) -> None:
    """Acknowledge the next ref at each of the steps."""
    for step in steps:
        queue.ack(queue.get(1), step=step)


def audited(path: Path, *arguments: object) -> tuple[int, dict[str, list[str]]]:
    """Return the exit code, and the ids of each kind that has some."""
    result = run("audit", path, *arguments, "--json")
    found = json.loads(result.stdout)
    assert found["counts"] == {kind: len(ids) for kind, ids in found["ids"].items()}
    return result.exit_code, {kind: ids for kind, ids in found["ids"].items() if ids}


def test_every_sample_is_of_one_kind(path: Path, queue: Queue) -> None:
    """By the step of its acknowledgement, packed or not, and by where it is."""
    queue.put(refs("early", "at", "after", "unknown", "dead", "held", "waits"))
    train(queue, 3, 4)
    run("pack", path, "--older-than", "0")
    train(queue, 5, None)
    queue.fail(queue.get(1), "bad", retryable=False)
    queue.get(1)
    before = snapshot(path)
    result = run("audit", path, "--checkpoint-step", 4)
    assert (result.exit_code, snapshot(path)) == (0, before)
    lines = [re.split("  +", line)[:2] for line in result.stdout.splitlines()]
    assert lines == [
        ["KIND", "SAMPLES"], ["trained", "2"], ["twice", "0"], ["later", "1"], ["no step", "1"], ["live", "2"],
        ["dead", "1"], ["missing", "0"],
    ]  # fmt: skip
    assert result.stderr == f"{path}: 2 samples in the checkpoint of step 4; none twice, none missing\n"
    everything = {"trained": ["after", "at", "early", "unknown"], "dead": ["dead"], "live": ["held", "waits"]}
    assert audited(path) == (0, everything)


def test_a_sample_that_was_trained_twice_is_an_error(path: Path, queue: Queue) -> None:
    """Put again after its acknowledgement, and acknowledged again: in the state of one checkpoint, not of another."""
    for step in (3, 6):
        queue.put(refs("a", f"b{step}"))
        train(queue, step, step)
    assert audited(path, "--checkpoint-step", 5) == (0, {"trained": ["a", "b3"], "later": ["b6"]})
    assert audited(path, "--checkpoint-step", 6) == (1, {"twice": ["a"], "trained": ["b3", "b6"]})
    result = run("audit", path)
    assert (
        result.exit_code == 1 and re.search("^twice +1 +a$", result.stdout, re.M) and "1 sample twice" in result.stderr
    )


def test_the_ledger_knows_what_should_be_there(tmp_path: Path) -> None:
    """A committed sample that is nowhere is missing; one whose file was purged was trained all the same."""
    queue, ledger = tmp_path / "queue", tmp_path / "ledger"
    with FileSampleRefQueue(queue, durable=False) as handle, FileMetadataStore[Any](ledger, durable=False) as store:
        controller = DataFlowController("run", sample_queue=handle, metadata_store=store)
        controller.commit_samples("w", refs("a", "b", "c", "lost"))
        for step in (1, 2):
            controller.ack_train_refs("t", ids(controller.lease_train_refs("t", 1)), global_step=step)
    os.remove(queue / "pending" / "lost.json")
    os.remove(queue / "done" / "a@1.json")
    found = {"trained": ["a"], "later": ["b"], "live": ["c"], "missing": ["lost"]}
    assert audited(queue, "--checkpoint-step", 1) == (1, found)
    assert audited(queue, "--ledger", ledger) == (1, {"trained": ["a", "b"], "live": ["c"], "missing": ["lost"]})
    result = run("audit", queue)
    assert re.search("^missing +1 +lost$", result.stdout, re.M) and "1 sample missing" in result.stderr


def test_features_that_a_rewind_would_need(path: Path, tmp_path: Path) -> None:
    """Samples that are to be trained, now or after a rewind, without features; and features without a ref."""
    with SharedDirFeatureStore(tmp_path / "features", durable=False) as store, FileSampleRefQueue(path) as queue:
        stored = publish(store, 5)
        queue.put(stored[:4])
        train(queue, 1, 2)
        for ref in stored[:3]:
            store.abort(ref.sample_id)
        store.release(stored[3].sample_id)
    assert audited(path, "--checkpoint-step", 1, "--store", tmp_path / "features") == (
        1,
        {"trained": ["s000"], "later": ["s001"], "live": ["s002", "s003"], "missing": ["s004"],
         "no features": ["s001", "s002"]},
    )  # fmt: skip


def test_a_ref_that_moves_while_the_audit_looks_is_not_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes from leased/ back to pending/ between the two listings: the next look finds it."""
    from fsqueue.operate import audit as module

    calls: list[str] = []
    path = tmp_path / "q"
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(numbered(3))
        held = queue.get(3)
        listing: Any = vars(module)["files_in"]

        def moving(layout: Any, state: str) -> Any:
            if calls == ["pending"]:
                queue.release(held)
            calls.append(state)
            return listing(layout, state)

        monkeypatch.setattr(module, "files_in", moving)
        ledger = module.Ledger([ref.sample_id for ref in numbered(3)], {})
        found = module.audit(path, ledger=ledger)
    assert found.well and found.ids["live"] == ["s00000", "s00001", "s00002"] and len(calls) > 4


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--store", "nowhere"], 1, "features.json"),
        (["--ledger", "nowhere"], 1, "fsledger.json"),
        (["--checkpoint-step", "-1"], 2, "range"),
    ],
)
def test_what_is_not_there_is_said(path: Path, queue: Queue, arguments: list[str], code: int, says: str) -> None:
    result = run("audit", path, *arguments)
    assert result.exit_code == code and says in result.stderr and "Traceback" not in result.stderr
    assert run("audit", path / "nowhere").exit_code == 3
