"""The queue knows what it holds: the wrong reader is not wrong data."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from fsqueue import FileSampleRefQueue, InvalidRefError, RefTypeError, SampleRef, UnreadableRefWarning
from fsqueue.operate.requeue import requeue
from tests.support import Tap, assert_clean, content, ids, names_in, numbered, open_tapped, refs


@dataclass(frozen=True)
class Old:
    """Was put."""

    sample_id: str
    uri: str = "f"
    kind: str = "plain"


@dataclass(frozen=True)
class New:
    """Requires one field more."""

    sample_id: str
    weight_version: int
    uri: str = "f"


@dataclass(frozen=True)
class Picky:
    """Takes some values only, and says so in its own way."""

    sample_id: str
    uri: str = "f"
    kind: Literal["plain", "odd", "key"] = "plain"

    def __post_init__(self) -> None:
        assert self.kind != "odd", "not odd"
        if self.kind == "key":
            raise KeyError("kind")


@dataclass(frozen=True)
class Ending:
    """Ends the program over one value."""

    sample_id: str
    uri: str = "f"
    kind: str = "plain"

    def __post_init__(self) -> None:
        if self.kind == "exit":
            raise SystemExit("no such kind")
        if self.kind == "huge":
            raise MemoryError


def put(path: Path, *found: Old) -> None:
    with FileSampleRefQueue(path, ref_type=Old, durable=False) as queue:
        queue.put(found)


@pytest.mark.parametrize("ref_type", [New, SampleRef], ids=["one field more", "forgotten"])
def test_a_reader_that_does_not_fit_moves_nothing(tmp_path: Path, ref_type: type[Any]) -> None:
    """get raises at once, naming both classes and the field; everything is pending, in its order, for who fits."""
    path = tmp_path / "q"
    put(path, *(Old(f"s{k}") for k in range(50)))
    with FileSampleRefQueue(path, ref_type=ref_type) as wrong:
        for _ in range(2):
            with pytest.raises(
                RefTypeError, match=rf"Old.*{ref_type.__name__} requires the field .*ref_type="
            ) as caught:
                wrong.get(4, timeout_s=60.0)
            assert caught.value.stored.endswith(".Old") and caught.value.given.endswith(f".{ref_type.__name__}")
        assert tuple(wrong.counts()) == (50, 0, 0, 0)
    with FileSampleRefQueue(path, ref_type=Old) as right:
        assert [r.sample_id for r in right.get(50)] == [f"s{k}" for k in range(50)]


def test_a_putter_that_does_not_fit_puts_nothing(tmp_path: Path) -> None:
    """put raises at once where the queue's readers would miss a field."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path) as queue, FileSampleRefQueue(path, ref_type=Old) as wrong:
        queue.put(refs("a"))
        with pytest.raises(RefTypeError, match=r"SampleRef requires the field run_id"):
            wrong.put([Old("b")])
        assert tuple(queue.counts()) == (1, 0, 0, 0)
        assert names_in(path, "tmp") == []


def test_a_reader_that_waits_before_the_first_put(tmp_path: Path) -> None:
    """A reader that found an empty queue of unknown class compares with the first refs that it leases."""
    path, tap = tmp_path / "q", Tap()
    first: list[Callable[[], None]] = [lambda: put(path, Old("a"), Old("b"))]
    tap.ops.sleep = lambda seconds: first.pop()() if first else None
    with open_tapped(tap, path, ref_type=New) as wrong:
        assert wrong.get(1) == []
        with pytest.raises(RefTypeError):
            wrong.get(1, timeout_s=60.0)
        assert tuple(wrong.counts()) == (2, 0, 0, 0)
    assert "_fsqueue" not in content(path / "pending" / "a.json")


def test_a_queue_of_unknown_class_takes_any(tmp_path: Path) -> None:
    """Refs that other programs put come without type.json: whoever can read them gets them."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path, ref_type=New) as queue:
        (path / "pending" / "s.json").write_text('{"sample_id":"s","weight_version":7}')
        assert queue.get(1, 1.0) == [New("s", 7)]
        assert not (path / "type.json").exists()
        queue.put([New("t", 8)])
        assert content(path / "type.json")["name"].endswith(".New")


def test_type_json_is_written_once(tmp_path: Path) -> None:
    """A class of a later release that fits leaves the description as it is; removing it lets the next put say."""
    path = tmp_path / "q"
    put(path, Old("a"))
    before = (path / "type.json").read_bytes()
    with FileSampleRefQueue(path, ref_type=Picky, durable=False) as later:
        later.put([Picky("b")])
    assert (path / "type.json").read_bytes() == before
    assert_clean(path)
    (path / "type.json").unlink()
    with FileSampleRefQueue(path, ref_type=New, durable=False) as queue:
        queue.put([New("c", 1)])
    assert b".New" in (path / "type.json").read_bytes()


def test_settling_needs_no_class(tmp_path: Path) -> None:
    """A handle of another class counts, releases and acknowledges what it cannot read."""
    path = tmp_path / "q"
    put(path, Old("a"), Old("b"))
    with FileSampleRefQueue(path, ref_type=Old) as queue, FileSampleRefQueue(path) as other:
        queue.get(2)
        other.ack(refs("a"))
        other.release(refs("b"))
        assert tuple(other.counts()) == (1, 0, 1, 0)


def test_a_value_outside_a_literal_is_delivered_failed_and_requeued_like_any_other(tmp_path: Path) -> None:
    """Dataclasses do not check it either; what kind of value it is counts."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path, ref_type=Picky, durable=False) as queue:
        bad: Any = Picky("bad", kind="unheard of")  # type: ignore[arg-type]
        queue.put([bad])
        assert queue.get(1) == [bad]
        assert queue.fail([bad], "again", retryable=True) == []
        (again,) = queue.get(1)
        assert (again, type(again)) == (bad, Picky)
        queue.fail([again], "enough", retryable=False)
        requeue(str(path), ["bad"])
        assert queue.get(1) == [bad]
        assert queue.ack([bad]) == []
        with pytest.raises(InvalidRefError, match=r"does not fit Picky: Expected `str`, got `int` - at `\$.kind`"):
            queue.put([Picky("worse", kind=3)])  # type: ignore[arg-type]
    assert_clean(path)


@pytest.mark.parametrize("kind", ["odd", "key"])
def test_what_the_class_refuses_ends_in_failed_after_its_attempts(tmp_path: Path, kind: str) -> None:
    """No exception of the class's own comes out of get."""
    path = tmp_path / "q"
    put(path, Old("a"), Old("bad", kind=kind), Old("c"))
    with FileSampleRefQueue(path, ref_type=Picky, max_attempts=2, durable=False) as queue:
        with pytest.warns(UnreadableRefWarning, match=r"'bad' cannot be read as a .*Picky"):
            assert [r.sample_id for r in queue.get(3)] == ["a", "c"]
        assert content(path / "pending" / "bad.json")["_fsqueue"]["attempts"] == 1
        with FileSampleRefQueue(path, ref_type=Old, durable=False) as other:
            other.release(other.get(1))  # who can read it may have it
        with pytest.warns(UnreadableRefWarning):
            assert queue.get(3) == []
        assert queue.get(3) == []
    kept = content(path / "failed" / "bad.json")
    assert kept["kind"] == kind and kept["_fsqueue"]["attempts"] == 2
    assert "Picky" in kept["_fsqueue"]["reason"]


def test_a_default_of_three_attempts(tmp_path: Path) -> None:
    """Where nothing limits the attempts, a ref that cannot be read still ends in failed/."""
    path = tmp_path / "q"
    put(path, Old("bad", kind="odd"))
    with FileSampleRefQueue(path, ref_type=Picky, durable=False) as queue:
        for _ in range(3):
            assert names_in(path, "failed") == []
            with pytest.warns(UnreadableRefWarning):
                queue.get(1)
    assert names_in(path, "failed") == ["bad.json"]


def test_one_get_does_not_go_through_a_backlog_that_it_cannot_read(tmp_path: Path) -> None:
    """What the class refuses costs a few attempts a call, not one of every ref in the queue."""
    path = tmp_path / "q"
    put(path, *(Old(f"s{k}", kind="odd") for k in range(200)))
    with FileSampleRefQueue(path, ref_type=Picky, durable=False) as queue:
        with pytest.warns(UnreadableRefWarning):
            assert queue.get(1) == []
        touched = [name for name in names_in(path, "pending") if "_fsqueue" in content(path / "pending" / name)]
        assert len(touched) <= 16
        assert tuple(queue.counts()) == (200, 0, 0, 0)


def test_warnings_that_are_errors_leave_nothing_leased(tmp_path: Path) -> None:
    """Where a program turns warnings into errors, each attempt still counts."""
    path = tmp_path / "q"
    put(path, Old("bad", kind="odd"))
    with FileSampleRefQueue(path, ref_type=Picky, durable=False) as queue, warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            with pytest.raises(UnreadableRefWarning):
                queue.get(1)
        assert queue.get(1) == []
        assert tuple(queue.counts()) == (0, 0, 0, 1)


UNSEEN = {
    "number": b'"loss":1e400',
    "digits": b'"n":' + b"9" * 5000,
    "value not UTF-8": b'"t":"\xff"',
    "key not UTF-8": b'"\xff":1',
    "deep down": b'"x":{"loss":[1e400]}',
}


@pytest.mark.parametrize("extra", UNSEEN.values(), ids=UNSEEN)
def test_values_under_unknown_keys_are_never_looked_at(tmp_path: Path, extra: bytes) -> None:
    """A ref that get delivers can be failed, reclaimed, buried, shown, checked, packed and requeued, byte for byte."""
    path = tmp_path / "q"
    line = json.dumps(asdict(refs("s")[0])).encode()[:-1] + b"," + extra
    with FileSampleRefQueue(path, max_attempts=3, lease_timeout_s=60, durable=False) as queue:
        (path / "pending" / "s.json").write_bytes(line + b"}\n")
        got = queue.get(1, 1.0)
        queue.fail(got, "flaky", retryable=True)
        got = queue.get(1)
        assert ids(got) == ["s"]
        assert_clean(path)
        queue.fail(got, "broken", retryable=False)
        for command in (["show", "s", "--json"], ["ls", "--state", "failed", "--json"], ["requeue", "s"]):
            done = subprocess.run(
                [sys.executable, "-m", "fsqueue", command[0], str(path), *command[1:]], capture_output=True, timeout=60
            )
            assert done.returncode == 0, done
        queue.ack(queue.get(1, 1.0))
        assert (path / "done" / "s.json").read_bytes().startswith(line)
        assert queue.pack(older_than_s=-3600).refs == 1
        assert tuple(queue.counts()) == (0, 0, 1, 0)


def test_fsqueue_put_checks_against_the_queue_s_class(tmp_path: Path) -> None:
    """`fsqueue put` refuses to mix its sample refs into a queue of another class, also with --dry-run."""
    path, lines = tmp_path / "q", tmp_path / "refs.jsonl"
    with FileSampleRefQueue(path, ref_type=New, durable=False) as queue:
        queue.put([New("a", 1)])
    lines.write_text("".join(json.dumps(asdict(ref)) + "\n" for ref in numbered(3)))
    for extra in ([], ["--dry-run"]):
        command = [sys.executable, "-m", "fsqueue", "put", str(path), str(lines), *extra]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "New requires the field weight_version" in done.stderr
    assert names_in(path, "pending") == ["a.json"]


def test_a_class_that_exits_over_a_ref_ends_three_gets_and_not_all(tmp_path: Path) -> None:
    """A SystemExit may be a signal's; where it comes with the same ref again and again, it is the ref's reading."""
    path = tmp_path / "q"
    put(path, Old("s0"), Old("s1", kind="exit"), Old("s2"))
    with FileSampleRefQueue(path, ref_type=Ending) as queue:
        for _ in range(2):
            with pytest.raises(SystemExit):
                queue.get(3)
        with pytest.warns(UnreadableRefWarning, match=r"'s1' cannot be read as a .*Ending: SystemExit: no such kind"):
            got = queue.get(3)
        assert sorted(ids(got)) == ["s0", "s2"]  # type: ignore[arg-type]
        assert queue.ack(got) == []
        assert content(path / "pending" / "s1.json")["_fsqueue"]["attempts"] == 1
    with FileSampleRefQueue(path, ref_type=Old) as queue:
        assert [each.kind for each in queue.get(1)] == ["exit"]


def test_a_ref_that_does_not_fit_into_memory_costs_itself_only(tmp_path: Path) -> None:
    """The others of the batch are delivered, no attempt is counted, and the error is raised where it is alone."""
    path = tmp_path / "q"
    put(path, Old("s0"), Old("s1", kind="huge"), Old("s2"))
    with FileSampleRefQueue(path, ref_type=Ending) as queue:
        got = queue.get(3)
        assert ids(got) == ["s0", "s2"]  # type: ignore[arg-type]
        with pytest.raises(MemoryError):
            queue.get(3)
        assert queue.ack(got) == []
    assert b"attempts" not in (path / "pending" / "s1.json").read_bytes()
    assert_clean(path)
