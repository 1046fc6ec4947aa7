"""What is wrong with a member's arguments is said when it joins; nothing makes it invisible to the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, InvalidArgumentError, QueueConfigError, TrainerView
from fsqueue.operate.status import status
from tests.support import Queue, backdate


@pytest.fixture
def other(queue: Queue) -> Iterator[Queue]:
    with FileSampleRefQueue(queue.path, durable=False) as it:
        yield it


WRONG: list[dict[str, Any]] = [
    *({"attempt": value} for value in ("1", 1.0, True, -1)),
    *({"required": value} for value in ("yes", None, 2)),
    *({"on_sigterm": value} for value in ("exit", True)),
]


@pytest.mark.parametrize("role", ["producer", "consumer", "view"])
@pytest.mark.parametrize("given", WRONG, ids=str)
def test_arguments_that_cannot_be_meant_are_refused(queue: Queue, role: str, given: dict[str, Any]) -> None:
    """Before anything is written: what they would make of a record, nobody could read."""
    (name,) = given
    with pytest.raises(InvalidArgumentError, match=f"{name}.* expected"):
        TrainerView(queue, **given) if role == "view" else getattr(queue, role)("m", **given)
    assert queue.stream().members() == []


@pytest.mark.parametrize("expected", [True, 2.0, "2", -1, None])
def test_so_are_other_numbers_of_members(queue: Queue, expected: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="expected="):
        queue.producer("m", expected=expected)


def test_an_attempt_from_the_environment_is_told_what_it_lacks(queue: Queue) -> None:
    with pytest.raises(InvalidArgumentError, match=r"found '1', a str: write int\(\.\.\.\)"):
        queue.producer("m", attempt="1")  # type: ignore[arg-type]


def test_names_that_no_file_can_have_are_refused(queue: Queue) -> None:
    with pytest.raises(InvalidArgumentError, match="shorter name"):
        queue.producer("x" * 300)
    for session in (5, "x" * 230, "." * 90):
        with pytest.raises(InvalidArgumentError, match=r"TrainerView\(session=\)"):
            TrainerView(queue, partition=(0, 2), session=session)  # type: ignore[arg-type]
    assert queue.stream().members() == []


@pytest.mark.parametrize("silence_s", [1e-9, 0.05, True, "5"])
def test_a_silence_that_nobody_could_keep_is_refused(queue: Queue, silence_s: Any) -> None:
    with pytest.raises(QueueConfigError, match=r"silence_s a number of seconds of 0\.1 or more"):
        queue.configure_stream(silence_s=silence_s)


@pytest.mark.parametrize("content", ["", "{", '{"name":"rollout-0","launch":{"job":"given","restarts":["1"]}}'])
def test_a_member_whose_record_cannot_be_read_is_one_at_work(
    queue: Queue, other: Queue, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    """The stream does not end; its name is its own while it is stamped, and free once it has fallen silent."""
    with other.producer("rollout-1"):
        pass
    member = other.producer("rollout-0")
    file = Path(queue.path) / "stream" / member.file
    file.write_text(content)
    assert not queue.drained()
    assert [it.standing for it in queue.stream().members() if it.unreadable] == ["joined"]
    with monkeypatch.context() as stamped:
        stamped.setattr(queue.handle.ops, "sleep", lambda seconds: file.touch())
        with pytest.raises(QueueConfigError, match="cannot be read"):
            queue.producer("rollout-0")
    member._end()
    backdate(file, 40.0)
    with queue.producer("rollout-0"):
        assert not file.exists()


def test_status_shows_one_whose_record_cannot_be_read(queue: Queue, other: Queue) -> None:
    member = other.producer("rollout-0")
    (Path(queue.path) / "stream" / member.file).write_text("")
    seen = status(queue.path).stream
    assert seen is not None
    assert [(it.role, it.state) for it in seen.members] == [("producer", "joined")]
