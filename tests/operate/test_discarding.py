"""What is too old to be worked on, or was made by an older draft, goes to failed/ with its reason."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fsqueue.operate as operate
from fsqueue import FileSampleRefQueue, InvalidArgumentError, SampleRef, TrainerView
from fsqueue.cli.main import cli
from tests.support import Queue, Tap, assert_clean, backdate, content, drain, ids, numbered, open_tapped, ref, refs


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def by(sample_id: str, draft: str | None, **metadata: Any) -> SampleRef:
    return ref(sample_id, draft_weight_version=draft, metadata=metadata)


def test_refs_of_an_older_draft_are_discarded_with_the_reason(path: Path, queue: Queue) -> None:
    queue.put([by("a", "v6"), by("b", "v7"), by("c", "v6")])
    outcomes = operate.discard(path, "draft v6", where=lambda it: (it.ref or {})["draft_weight_version"] == "v6")
    assert [each.sample_id for each in outcomes] == ["a", "c"] and queue.counts() == (1, 0, 0, 2)
    said = content(path / "failed" / "a.json")["_fsqueue"]
    assert said["reason"] == "draft v6" and said["history"][-1]["event"] == "discarded"
    assert "attempts" not in said, "nobody has tried it"
    assert drain(queue) == ["b"]
    assert_clean(path)


def test_what_is_older_is_discarded(path: Path, queue: Queue) -> None:
    queue.put(refs("a", "b"))
    backdate(path / "pending" / "a.json", 7_200.0)
    assert operate.discard(path, "old", older_than_s=3_600.0, where=lambda it: it.sample_id == "b") == []
    assert [each.sample_id for each in operate.discard(path, "old", older_than_s=3_600.0)] == ["a"]
    assert [each.sample_id for each in operate.discard(path, "old", older_than_s=0.0)] == ["b"]


def test_a_dry_run_says_what_would_go(path: Path, queue: Queue) -> None:
    queue.put(refs("a"))
    before = [(each.name, each.stat().st_mtime_ns) for each in sorted(path.rglob("*"))]
    dry = operate.discard(path, "old", older_than_s=0.0, dry_run=True)
    assert [(each.name, each.stat().st_mtime_ns) for each in sorted(path.rglob("*"))] == before
    assert operate.discard(path, "old", older_than_s=0.0) == dry


def test_what_is_leased_meanwhile_is_left_to_its_holder(path: Path, queue: Queue) -> None:
    """Also a ref that was leased, acknowledged and put anew since it was looked at."""
    queue.put(refs("a", "b", "c"))

    def meddle(done: int, total: int | None) -> None:
        if done == 1:
            queue.ack(queue.get(1))
            queue.put(refs("b"))
            queue.get(1)

    outcomes = operate.discard(path, "old", older_than_s=0.0, progress=meddle)
    assert [each.sample_id for each in outcomes] == ["a"]
    assert queue.states(["a", "b", "c"]) == {"a": "failed", "b": "pending", "c": "leased"}


def test_everything_has_to_be_asked_for(path: Path, queue: Queue) -> None:
    with pytest.raises(InvalidArgumentError, match="0 for all"):
        operate.discard(path, "old")
    assert run("discard", path).exit_code == 2


def test_a_discarded_ref_can_be_requeued(path: Path, queue: Queue) -> None:
    queue.put(refs("a"))
    operate.discard(path, "by mistake", older_than_s=0.0)
    assert [each.moved for each in operate.requeue(path, ["a"])] == [True]
    assert ids(queue.get(1)) == ["a"]


@pytest.mark.parametrize(
    ("conditions", "chosen"),
    [
        (["draft_weight_version=v6"], ["a"]),
        (["draft_weight_version!=v7"], ["a", "c"]),
        (["draft_weight_version=null"], ["c"]),
        (["metadata.epoch=3"], ["a", "b"]),
        (["metadata.epoch=3", "draft_weight_version=v7"], ["b"]),
        (["metadata.epoch.x=3"], []),
        (["nowhere!=3"], ["a", "b", "c"]),
        (["metadata.note==="], ["c"]),
    ],
)
def test_conditions_of_the_command(path: Path, queue: Queue, conditions: list[str], chosen: list[str]) -> None:
    """Fields of a ref are compared as text, or as JSON, and nested ones by a dot."""
    queue.put([by("a", "v6", epoch=3), by("b", "v7", epoch=3), by("c", None, note="==")])
    given = [word for condition in conditions for word in ("--where", condition)]
    dry = run("discard", path, *given, "--dry-run")
    assert dry.stdout.split() == chosen and queue.depth() == 3
    assert run("discard", path, *given).stdout.split() == chosen and queue.counts().failed == len(chosen)
    assert run("requeue", path, *given).stdout.split() == chosen and queue.depth() == 3


@pytest.mark.parametrize("condition", ["draft", "=v7", "!=v7"])
def test_a_condition_without_a_key_or_value_is_refused(path: Path, queue: Queue, condition: str) -> None:
    result = run("discard", path, "--where", condition)
    assert result.exit_code == 2 and "KEY=VALUE" in result.stderr


def test_the_command_says_why_in_the_files(path: Path, queue: Queue) -> None:
    queue.put([by("a", "v6"), by("b", "v6")])
    assert run("discard", path, "--where", "sample_id=a").exit_code == 0
    assert run("discard", path, "--older-than", "0", "--reason", "the draft is v7").stderr.endswith("discarded 1 ref\n")
    said = {each.sample_id: each.reason for each in operate.dead_letters(path)}
    assert said == {"a": "discarded: sample_id=a", "b": "discarded: the draft is v7"}
    assert json.loads(run("ls", path, "--state", "failed", "--json").stdout)[0]["id"] in ("a", "b")


def view_of(queue: Queue, **options: Any) -> TrainerView[SampleRef]:
    return TrainerView(queue, **options)


def test_a_view_passes_over_what_it_does_not_accept(path: Path, queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """Full batches all the same; the others are dead letters with the reason, counted and logged."""
    drafts = ["v6", "v7", "v7", "v5", "v7", "v7"]
    queue.put([by(f"s{number}", draft) for number, draft in enumerate(drafts)])

    def accept(ref: SampleRef) -> bool | str:
        return True if ref.draft_weight_version == "v7" else f"made by draft {ref.draft_weight_version}"

    with caplog.at_level("INFO", "fsqueue"), view_of(queue, batch=2, accept=accept) as view:
        assert ids(view.get()) == ["s1", "s2"] and view.discarded == 1
        assert ids(view.get()) == ["s4", "s5"] and view.discarded == 2
        view.ack_ids(["s1", "s2", "s4", "s5"], step=1)
    assert {each.sample_id: each.reason for each in operate.dead_letters(path)} == {
        "s0": "not accepted: made by draft v6",
        "s3": "not accepted: made by draft v5",
    }
    assert any("discarded 1 refs, not accepted: made by draft v6: s0" in line for line in caplog.messages)
    assert queue.counts() == (0, 0, 4, 2)


def test_a_view_passes_over_what_is_too_old(path: Path, queue: Queue) -> None:
    """By the stamp that a ref has while it is pending."""
    queue.put(numbered(4))
    backdate(path / "pending" / "s00001.json", 7_200.0)
    with view_of(queue, batch=3, max_age_s=3_600.0) as view:
        assert ids(view.get()) == ["s00000", "s00002", "s00003"] and view.discarded == 1
    (letter,) = operate.dead_letters(path)
    assert (letter.sample_id, letter.reason) == ("s00001", "stale: older than 3600 s")


def test_the_end_comes_where_all_is_stale(path: Path, queue: Queue) -> None:
    queue.put(numbered(5))
    for file in (path / "pending").iterdir():
        backdate(file, 7_200.0)
    with queue.producer("p"):
        pass
    with view_of(queue, batch=2, max_age_s=60.0) as view:
        assert view.get() == [] and view.discarded == 5
    assert queue.drained()


def test_a_false_names_the_function(path: Path, queue: Queue) -> None:
    queue.put(refs("a", "b"))

    def is_fresh(ref: SampleRef) -> bool:
        return ref.sample_id != "a"

    with view_of(queue, accept=is_fresh) as view:
        assert ids(view.get()) == ["b"]
    (letter,) = operate.dead_letters(path)
    assert letter.reason is not None and letter.reason.endswith("is_fresh")


def test_an_error_of_accept_gives_all_back(path: Path, queue: Queue) -> None:
    queue.put(numbered(3))

    def accept(ref: SampleRef) -> bool:
        raise LookupError(ref.sample_id)

    with view_of(queue, batch=2, accept=accept) as view, pytest.raises(LookupError):
        view.get()
    assert queue.counts() == (3, 0, 0, 0)


@pytest.mark.parametrize("given", [{"accept": "v7"}, {"max_age_s": "1h"}])
def test_what_cannot_be_meant_is_refused(queue: Queue, given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(given))):
        view_of(queue, **given)


def test_only_who_asks_for_an_age_pays_for_it(path: Path) -> None:
    """One stat a ref where max_age_s is given, and none where it is not."""
    spent: list[int] = []
    for options in ({}, {"accept": lambda ref: True}, {"max_age_s": 60.0}):
        tap = Tap()
        there = path / str(len(spent))
        with FileSampleRefQueue(there, durable=False) as other:
            other.put(numbered(50))
        queue = open_tapped(tap, there, durable=False)
        looks = 0

        def count(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            nonlocal looks
            looks += name == "stat" and os.path.basename(os.readlink(f"/proc/self/fd/{named['dir_fd']}")) == "pending"

        with view_of(queue, batch=50, **options) as view:
            tap.before = count
            assert len(view.get()) == 50
            tap.before = None
        spent.append(looks)
        queue.close()
    assert spent == [0, 0, 50]


def test_what_is_no_file_is_left_alone(path: Path, queue: Queue) -> None:
    """A directory in pending/ holds no ref: it is for `check` to tell of."""
    queue.put(refs("a"))
    (path / "pending" / "dir.json").mkdir()
    assert [each.sample_id for each in operate.discard(path, "old", older_than_s=0.0)] == ["a"]
    assert (path / "pending" / "dir.json").is_dir() and [each.name for each in (path / "failed").iterdir()] == [
        "a.json"
    ]
