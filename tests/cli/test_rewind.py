"""`fsqueue rewind`: a queue alone, and one whose controller keeps a ledger over it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.control.controller import DataFlowController
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.operate.check import check_queue
from tests.support import Child, assert_clean, content, drain, holders_in, ids, lease_and_obey, names_in, refs
from tests.support.program import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue with a, b, c done at the steps 4, 5 and 6, and d done without a step."""
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        queue.put(refs("a", "b", "c", "d"))
        for step in (4, 5, 6, None):
            queue.ack(queue.get(1), step=step)
    return tmp_path / "q"


class Run:
    """A controller over a queue and a ledger in one directory, which trained a, b and c at the steps 4, 5 and 6."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.queue, self.ledger = path / "queue", path / "ledger"
        with self.controller(**options) as it:
            it.commit_samples("w", refs("a", "b", "c"))
            for step in (4, 5, 6):
                it.ack_train_refs("t", ids(it.lease_train_refs("t", 1)), global_step=step)

    def controller(self, **options: Any) -> _Open:
        return _Open(self, options)

    def acked(self) -> set[str]:
        with FileMetadataStore[SampleRef](self.ledger, durable=False) as store:
            return store.durable_marker()["acked"]


class _Open:
    def __init__(self, run: Run, options: dict[str, Any]) -> None:
        self._queue: Any = FileSampleRefQueue(run.queue, durable=False, **options)
        self._store: Any = FileMetadataStore(run.ledger, durable=False)

    def __enter__(self) -> DataFlowController[Any]:
        return DataFlowController("run", sample_queue=self._queue, metadata_store=self._store)

    def __exit__(self, *exc_info: object) -> None:
        self._queue.close()
        self._store.close()


def test_refs_of_later_steps_are_pending_again_in_the_order_of_their_steps(path: Path) -> None:
    result = run("rewind", path, "--after-step", 4)
    assert (result.exit_code, result.stdout) == (0, "b\nc\n")
    assert result.stderr == "rewound 2 refs to step 4\n"
    assert names_in(path, "done") == ["a@4.json", "d.json"]
    book = content(path / "pending" / "b.json")["_fsqueue"]
    assert book.get("attempts", 0) == 0 and book["history"][0]["event"] == "rewound"
    assert run("rewind", path, "--after-step", 4).stdout == ""
    assert_clean(path)


def test_packed_refs_come_back_as_well(path: Path) -> None:
    run("pack", path, "--older-than", "0")
    assert run("rewind", path, "--after-step", 4, "--dry-run").stdout == "b\nc\n"
    assert run("rewind", path, "--after-step", 4).stdout == "b\nc\n"
    assert names_in(path, "pending") == ["b.json", "c.json"]
    assert_clean(path)


def test_a_dry_run_tells_the_same_and_changes_nothing(path: Path) -> None:
    before = {file: file.lstat().st_mtime_ns for file in path.rglob("*")}
    result = run("rewind", path, "--after-step", 4, "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "b\nc\n")
    assert result.stderr == "would rewind 2 refs to step 4\n"
    assert {file: file.lstat().st_mtime_ns for file in path.rglob("*")} == before


def test_json_has_stable_keys(path: Path) -> None:
    found = json.loads(run("rewind", path, "--after-step", 5, "--json").stdout)
    assert found == {"after_step": 5, "ledger": None, "dry_run": False, "returned": ["c"], "missing": []}


def test_it_is_refused_while_others_hold_leases_and_force_leaves_those_alone(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("e"))
    with Child(lease_and_obey, path, 1, {"durable": False}) as child:
        owner, _ = child.receive()
        refused = run("rewind", path, "--after-step", 4)
        assert refused.exit_code == 1 and owner in refused.stderr and "release --owner" in refused.stderr
        assert names_in(path, "pending") == []
        tried = run("rewind", path, "--after-step", 4, "--dry-run")
        assert (tried.exit_code, tried.stdout, tried.stderr) == (1, "", refused.stderr)
        assert run("rewind", path, "--after-step", 4, "--dry-run", "--force").stdout == "b\nc\n"
        assert run("rewind", path, "--after-step", 4, "--force").stdout == "b\nc\n"
        assert holders_in(path) == [f"e@{owner}"]
        child.kill()
    assert run("rewind", path, "--after-step", 3, "--dry-run").stdout == "a\n", "it is told what would be live then"
    assert run("rewind", path, "--after-step", 3).stdout == "a\n", (
        "the leases of a process that is gone are no obstacle"
    )
    assert names_in(path, "pending") == ["a.json", "b.json", "c.json", "e.json"]
    assert_clean(path)


def test_a_dry_run_leaves_aside_leases_that_have_expired_and_counts_those_that_have_not(tmp_path: Path) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False, lease_timeout_s=600) as queue:
        queue.put(refs("a", "b"))
        queue.ack(queue.get(1), step=5)
        queue.get(1)
        (lease,) = (tmp_path / "q" / "leased").iterdir()
        assert run("rewind", tmp_path / "q", "--after-step", 4, "--dry-run").exit_code == 1
        os.utime(lease, (1, 1))
        assert run("rewind", tmp_path / "q", "--after-step", 4, "--dry-run").stdout == "a\n"
        assert lease.exists()
        assert run("rewind", tmp_path / "q", "--after-step", 4).stdout == "a\n"


def test_a_dry_run_does_not_count_what_is_live_again(path: Path) -> None:
    """A ref that was put again after it was acked is left alone by a rewind, however often it was acked."""
    with FileSampleRefQueue(path, durable=False) as queue:
        for step in (7, 8):
            queue.put(refs("b"))
            queue.ack(queue.get(1), step=step)
        queue.put(refs("c"))
    assert run("rewind", path, "--after-step", 4, "--dry-run").stdout == "b\n"
    assert run("rewind", path, "--after-step", 4).stdout == "b\n"


def test_a_dry_run_looks_into_the_ledger(tmp_path: Path) -> None:
    """It is refused where the ledger cannot be read, and tells what the controller would have to put anew."""
    it = Run(tmp_path, keep_done=False)
    tried = run("rewind", it.queue, "--after-step", 4, "--dry-run", "--json")
    assert json.loads(tried.stdout)["missing"] == ["b", "c"] and it.acked() == {"a", "b", "c"}
    (it.ledger / "fsledger.json").write_text('{"format": 99, "created_at": 0}')
    tried, refused = (run("rewind", it.queue, "--after-step", 4, *how) for how in (["--dry-run"], []))
    assert (tried.exit_code, tried.stderr) == (refused.exit_code, refused.stderr) and refused.exit_code


def test_what_is_no_queue_is_not_made_one(tmp_path: Path) -> None:
    assert run("rewind", tmp_path / "q", "--after-step", 1).exit_code == 3
    assert not (tmp_path / "q").exists()


def test_the_ledger_that_the_controller_noted_is_rewound_too(tmp_path: Path) -> None:
    """Rewound refs can be leased and trained through the controller, each sample once."""
    it = Run(tmp_path)
    result = run("rewind", it.queue, "--after-step", 4)
    assert (result.exit_code, result.stdout) == (0, "b\nc\n")
    assert f"and the ledger {it.ledger}" in result.stderr
    assert it.acked() == {"a"}
    with it.controller() as controller:
        assert ids(controller.lease_train_refs("t", 9)) == ["b", "c"]
    assert check_queue(it.queue) == []


def test_queue_and_ledger_may_be_moved_together(tmp_path: Path) -> None:
    """The note is relative: another node may have mounted both elsewhere."""
    Run(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    found = json.loads(run("rewind", tmp_path / "there" / "queue", "--after-step", 5, "--json").stdout)
    assert found["ledger"] == str(tmp_path / "there" / "ledger") and found["returned"] == ["c"]


def test_a_ledger_that_is_not_there_is_an_error_and_nothing_is_changed(tmp_path: Path) -> None:
    it = Run(tmp_path)
    it.ledger.rename(tmp_path / "moved")
    refused = run("rewind", it.queue, "--after-step", 4)
    assert refused.exit_code == 1 and "--ledger" in refused.stderr and not it.ledger.exists()
    assert len(names_in(it.queue, "done")) == 3
    assert run("rewind", it.queue, "--after-step", 4, "--ledger", tmp_path / "nowhere").exit_code == 1
    assert not (tmp_path / "nowhere").exists()
    assert run("rewind", it.queue, "--after-step", 4, "--ledger", tmp_path / "moved").stdout == "b\nc\n"
    (tmp_path / "moved").rename(it.ledger)
    assert it.acked() == {"a"}


def test_a_queue_that_keeps_no_done_files_says_what_the_controller_has_to_put_anew(tmp_path: Path) -> None:
    it = Run(tmp_path, keep_done=False)
    result = run("rewind", it.queue, "--after-step", 4, "--json")
    assert json.loads(result.stdout)["missing"] == ["b", "c"] and "reconciles" in result.stderr
    with it.controller(keep_done=False) as controller:
        assert controller.reconcile_on_restart()["requeued"] == ["b", "c"]
        queue: Any = controller.sample_queue
        assert sorted(drain(queue)) == ["b", "c"]


def test_a_damaged_note_is_an_error_until_the_next_acknowledgement_writes_it_anew(tmp_path: Path) -> None:
    it = Run(tmp_path)
    (it.queue / "ledger.json").write_text("{")
    assert run("rewind", it.queue, "--after-step", 4).exit_code == 1
    with it.controller() as controller:
        controller.ack_train_refs("t", [], global_step=7)
    assert content(it.queue / "ledger.json") == {"path": "../ledger"}
    assert run("rewind", it.queue, "--after-step", 4).stdout == "b\nc\n"
