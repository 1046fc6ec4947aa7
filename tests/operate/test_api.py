"""`fsqueue.operate`: what its functions return, choose, and say on the way."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fsqueue.operate as operate
from fsqueue import FileSampleRefQueue, InvalidArgumentError, NotAQueueError, SampleRef
from fsqueue.cli.main import cli
from fsqueue.operate import Detail
from tests.support import Queue, assert_clean, backdate, ids, numbered, ref, refs


@pytest.fixture
def queue(path: Path) -> Any:
    with FileSampleRefQueue(path, lease_timeout_s=600.0, durable=False) as opened:
        yield opened


def bury(queue: Queue, reason: str, *some: SampleRef) -> None:
    queue.put(some)
    queue.fail(queue.get(len(some)), reason, retryable=False)


def test_counts_are_those_of_the_queue(path: Path, queue: Queue) -> None:
    queue.put(numbered(5))
    queue.ack(queue.get(1))
    bury(queue, "broken")
    queue.fail(queue.get(1), "broken", retryable=False)
    queue.get(2)
    assert operate.counts(path) == queue.counts() == (1, 2, 1, 1)


def test_iterate_yields_states_one_after_the_other(path: Path, queue: Queue) -> None:
    queue.put(refs("b", "a", "c"))
    queue.get(1)
    assert [(entry.state, entry.id) for entry in operate.iterate(path, "pending", "leased")] == [
        ("pending", "a"),
        ("pending", "c"),
        ("leased", "b"),
    ]
    (leased,) = operate.iterate(str(path), "leased", owner=queue.owner, details=True)
    assert leased.owner == queue.owner and leased.age_s is not None


def test_iterate_closes_the_queue_that_nobody_reads_on(path: Path, queue: Queue) -> None:
    """An iterator that is closed, or dropped, holds no descriptor."""
    queue.put(refs("a", "b"))
    before = len(os.listdir("/proc/self/fd"))
    found = operate.iterate(path, "pending")
    assert next(found).id == "a" and len(os.listdir("/proc/self/fd")) > before
    found.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_peek_shows_refs_and_leases_none(path: Path, queue: Queue) -> None:
    queue.put([ref("b", num_tokens=7), ref("a")])
    (first,) = operate.peek(path)
    assert first.sample_id == "b" and first.ref is not None and first.ref["num_tokens"] == 7
    assert [each.sample_id for each in operate.peek(path, count=5)] == ["b", "a"]
    assert operate.peek(path, "failed") == [] and queue.depth() == 2


@pytest.mark.parametrize("call", [operate.peek, operate.iterate])
def test_a_state_that_there_is_not_is_named(path: Path, queue: Queue, call: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="'dead'"):
        call(path, "dead")


def test_dead_letters_tell_why_and_can_be_chosen(path: Path, queue: Queue) -> None:
    bury(queue, "CUDA out of memory\ntrace", ref("a", draft_weight_version="v1"))
    bury(queue, "no features", ref("b", draft_weight_version="v2"))
    backdate(path / "failed" / "a.json", 3600.0)
    found = {each.sample_id: each for each in operate.dead_letters(path)}
    assert {name: each.reason for name, each in found.items()} == {"a": "CUDA out of memory\ntrace", "b": "no features"}
    assert found["a"].attempts == 1 and found["a"].history[-1].event == "failed"

    def chosen(**given: Any) -> list[str]:
        return [each.sample_id for each in operate.dead_letters(path, **given)]

    assert chosen(reason="*OUT OF memory*") == ["a"] == chosen(older_than_s=1800.0)
    assert chosen(owner=queue.owner) == ["a", "b"] and chosen(owner="nobody") == []
    assert chosen(where=lambda letter: letter.ref["draft_weight_version"] == "v2") == ["b"]
    assert chosen(reason="*", older_than_s=1800.0, where=lambda letter: letter.sample_id == "b") == []


def test_requeue_takes_what_dead_letters_shows(path: Path, queue: Queue) -> None:
    """By age and predicate; a dry run moves nothing, and returns the same."""
    for name in ("a", "b", "c"):
        bury(queue, f"{name} is broken", ref(name))
    backdate(path / "failed" / "a.json", 3600.0)
    backdate(path / "failed" / "b.json", 3600.0)

    def is_wanted(letter: Detail) -> bool:
        return letter.sample_id != "b"

    dry = operate.requeue_failed(path, older_than_s=60.0, where=is_wanted, dry_run=True)
    assert queue.depth() == 0
    assert operate.requeue_failed(path, older_than_s=60.0, where=is_wanted) == dry
    assert [(each.sample_id, each.moved) for each in dry] == [("a", True)]
    assert ids(queue.get(5)) == ["a"]


def test_an_error_of_a_predicate_moves_nothing(path: Path, queue: Queue) -> None:
    bury(queue, "broken", ref("a"), ref("b"))

    def failing(letter: Detail) -> bool:
        raise KeyError(letter.sample_id)

    with pytest.raises(KeyError):
        operate.requeue_failed(path, where=failing)
    assert queue.counts().failed == 2
    assert_clean(path)


def test_long_work_says_how_far_it_is(path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reports in order, and ends with all of it done."""
    said: list[tuple[int, int | None]] = []

    def hear(done: int, total: int | None) -> None:
        said.append((done, total))

    def heard() -> list[tuple[int, int | None]]:
        found, said[:] = list(dict.fromkeys(said)), []
        return found

    queue.put(numbered(300))
    leased = queue.get(300)
    operate.release(path, queue.owner, force=True, progress=hear)
    assert heard() == [(done, 300) for done in range(1, 301)]
    del leased
    queue.fail(queue.get(300), "broken", retryable=False)
    operate.requeue_failed(path, progress=hear)
    assert heard() == [(0, None), (256, 300), (300, 300)], "they are read before"
    queue.ack(queue.get(300))
    monkeypatch.setattr("fsqueue.engine.packing.pack.SEGMENT_REFS", 200)
    assert operate.pack(path, 0.0, progress=hear).refs == 300
    assert heard() == [(done, 300) for done in range(1, 301)]
    queue.put(refs("x", "y"))
    queue.fail(queue.get(2), "broken", retryable=False)
    operate.purge(path, "failed", 0.0, progress=hear)
    assert heard() == [(1, 2), (2, 2)]


def test_a_purge_counts_refs_also_in_segments(path: Path, queue: Queue) -> None:
    queue.put(numbered(6))
    queue.ack(queue.get(4))
    queue.pack(older_than_s=0.0)
    queue.ack(queue.get(2))
    dry = operate.purge(path, "done", 0.0, dry_run=True)
    assert (len(dry.files), dry.refs) == (3, 6)
    assert operate.purge(path, "done", 0.0) == dry and queue.counts().done == 0


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_purge_leaves_what_came_anew_under_a_name_that_it_has_seen(path: Path, queue: Queue, state: str) -> None:
    """Another process settles the ref again, while the purge is at the file before it."""

    def settle(count: int) -> None:
        leased = queue.get(count)
        lost = queue.ack(leased) if state == "done" else queue.fail(leased, "broken", retryable=False)
        assert lost == []

    def meddle(name: str) -> None:
        assert name == "a.json"
        if state == "failed":
            operate.requeue(path, ["b"])
        else:
            queue.put(refs("b"))
        settle(1)

    queue.put(refs("a", "b"))
    settle(2)
    for name in ("a.json", "b.json"):
        backdate(path / state / name, 7_200.0)
    assert operate.purge(path, state, 3_600.0, each=meddle).files == ["a.json"]
    assert queue.states(["b"]) == {"b": state}


def test_only_settled_refs_are_purged(path: Path, queue: Queue) -> None:
    queue.put(refs("a"))
    with pytest.raises(InvalidArgumentError, match="'pending'"):
        operate.purge(path, "pending", 0.0)
    assert queue.depth() == 1


def test_nothing_creates_a_queue(tmp_path: Path) -> None:
    """Each function says of a path without a queue that there is none."""
    there = tmp_path / "typo"
    calls: list[Any] = [
        lambda: operate.status(there),
        lambda: operate.counts(there),
        lambda: list(operate.iterate(there, "pending")),
        lambda: operate.peek(there),
        lambda: list(operate.dead_letters(there)),
        lambda: operate.requeue(there, ["a"]),
        lambda: operate.requeue_failed(there),
        lambda: operate.release(there, "node"),
        lambda: operate.purge(there, "done", 0.0),
        lambda: operate.pack(there, 0.0),
    ]
    for call in calls:
        with pytest.raises(NotAQueueError, match="typo"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_every_public_name_is_there_and_says_what_it_does() -> None:
    """Each begins with a verb in the imperative or, for a class, says what it holds; none is a module."""
    for name in operate.__all__:
        found = getattr(operate, name)
        assert type(found).__name__ != "module", name
        assert name in ("Predicate", "Progress") or (found.__doc__ or "").strip(), name


def test_work_of_an_hour_ago_is_requeued_by_the_command(path: Path, queue: Queue) -> None:
    bury(queue, "broken", ref("a"), ref("b"))
    backdate(path / "failed" / "a.json", 3600.0)
    assert time.time() - (path / "failed" / "a.json").stat().st_mtime > 3000

    def run(*arguments: str) -> Any:
        return CliRunner().invoke(cli, ["requeue", str(path), *arguments])

    result = run("--older-than", "30m", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "a\n")
    assert run("--older-than", "30m").stdout == "a\n" and queue.depth() == 1
