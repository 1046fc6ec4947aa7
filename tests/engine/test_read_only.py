"""Onlookers write nothing; what a person sets in the environment is heeded."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fsqueue import (
    FileSampleRefQueue,
    NotAQueueError,
    QueueConfigError,
    ReadOnlyError,
    SampleRef,
    TrainerView,
)
from fsqueue.cli.main import cli
from tests.support import Child, Queue, Tap, numbered, open_tapped, refs
from tests.support.other_user import as_nobody, readable_by_all

WRITING = {"write", "pwrite", "ftruncate", "fsync", "rename", "link", "unlink", "mkdir", "utime", "lock", "unlock"}


@pytest.fixture
def filled(path: Path) -> Path:
    """A queue with refs in every state, and a stream."""
    with FileSampleRefQueue(path, lease_timeout_s=60.0, durable=False) as queue:
        with queue.producer("p"):
            queue.put(numbered(6))
        ack, fail, _ = queue.get(3)
        queue.ack([ack])
        queue.fail([fail], "broken", retryable=False)
        queue.pause("tests")
    return path


def look(queue: Queue) -> list[Any]:
    """What an onlooker may ask."""
    return [
        queue.counts(),
        queue.depth(),
        queue.in_flight(),
        queue.states([f"s{number:05d}" for number in range(7)]),
        queue.unsettled(["s00000", "s00002", "s00003"]),
        queue.drained(),
        queue.paused() is not None,
        queue.lease_timeout_s,
        [member.standing for member in queue.stream().members()],
    ]


def look_read_only(path: Path) -> list[Any]:
    with FileSampleRefQueue(path, read_only=True) as queue:
        return look(queue)


def test_an_onlooker_sees_what_others_see_and_writes_nothing(filled: Path) -> None:
    with FileSampleRefQueue(filled) as queue:
        expected = look(queue)
    before = {file: file.stat().st_mtime_ns for file in (filled, *filled.rglob("*"))}
    tap = Tap()
    queue = open_tapped(tap, filled, read_only=True)
    assert look(queue) == expected
    queue.close()
    assert not WRITING & set(tap.counts)
    assert {file: file.stat().st_mtime_ns for file in (filled, *filled.rglob("*"))} == before


def test_an_onlooker_needs_no_permission_to_write(filled: Path) -> None:
    """All files belong to another user, and none may be changed."""
    expected = look_read_only(filled)
    with readable_by_all(filled) as public, Child(as_nobody, look_read_only, public) as child:
        assert child.receive() == expected


@pytest.mark.parametrize(
    "call",
    [
        lambda q: q.put(refs("x")),
        lambda q: q.put([]),
        lambda q: q.put_when_below(refs("x"), high=1),
        lambda q: q.get(1),
        lambda q: list(q.consume(idle_s=0)),
        lambda q: q.ack(refs("s00002")),
        lambda q: q.fail(refs("s00002"), "no", retryable=True),
        lambda q: q.release([]),
        lambda q: q.renew(refs("s00002")),
        lambda q: q.adopt(refs("s00002")),
        lambda q: q.release_all(),
        lambda q: q.reclaim(),
        lambda q: q.producer("x"),
        lambda q: q.consumer("x"),
        lambda q: TrainerView(q),
        lambda q: q.configure(lease_timeout_s=1.0),
        lambda q: q.configure_stream(quorum=1),
        lambda q: q.publish_quantum(dp_size=1, batch_size=1),
        lambda q: q.pause(),
        lambda q: q.resume(),
        lambda q: q.rewind(after_step=0),
        lambda q: q.pack(older_than_s=0.0),
    ],
)
def test_what_would_write_says_so(filled: Path, call: Any) -> None:
    """And does nothing, not even half of it."""
    before = {file: file.stat().st_mtime_ns for file in (filled, *filled.rglob("*"))}
    with FileSampleRefQueue(filled, read_only=True) as queue, pytest.raises(ReadOnlyError, match="read_only=True"):
        call(queue)
    assert {file: file.stat().st_mtime_ns for file in (filled, *filled.rglob("*"))} == before


def test_an_onlooker_makes_nothing(tmp_path: Path, filled: Path) -> None:
    """No queue, and no directory that somebody has removed; a queue without a stream is not drained."""
    with pytest.raises(NotAQueueError):
        FileSampleRefQueue(tmp_path / "typo", read_only=True)
    assert not (tmp_path / "typo").exists()
    for file in (filled / "stream").iterdir():
        file.unlink()
    (filled / "stream").rmdir()
    with FileSampleRefQueue(filled, read_only=True) as queue:
        assert not queue.drained()
        for call in (queue.stream, lambda: queue.publish_quantum(dp_size=1, batch_size=1)):
            with pytest.raises(ReadOnlyError):
                call()
    assert not (filled / "stream").exists()


def test_a_copy_of_an_onlooker_is_one(filled: Path) -> None:
    with FileSampleRefQueue(filled, read_only=True) as queue, pickle.loads(pickle.dumps(queue)) as copy:
        assert copy.counts() == queue.counts()
        with pytest.raises(ReadOnlyError):
            copy.get(1)


@pytest.mark.parametrize("given", [{"heartbeat_s": 1.0}, {"read_only": "yes"}, {"lease_timeout_s": 7.0}])
def test_what_contradicts_it_is_refused(filled: Path, given: dict[str, Any]) -> None:
    with pytest.raises((QueueConfigError, TypeError)):
        FileSampleRefQueue(filled, **({"read_only": True} | given))


def test_the_environment_names_owners(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a program gives comes first; a name that is too long is refused with the variable's limit."""
    monkeypatch.setenv("FSQUEUE_OWNER", "rank 7")
    with FileSampleRefQueue(path) as queue:
        assert queue.owner.startswith("rank%207.")
    with FileSampleRefQueue(path, owner="mine") as queue:
        assert queue.owner.startswith("mine.")
    monkeypatch.setenv("FSQUEUE_OWNER", "")
    with FileSampleRefQueue(path) as queue:
        assert queue.owner.startswith(os.uname().nodename)
    monkeypatch.setenv("FSQUEUE_OWNER", "x" * 65)
    with pytest.raises(QueueConfigError, match="64 bytes"):
        FileSampleRefQueue(path)


def test_the_environment_shows_the_log(path: Path) -> None:
    """In a process of its own, as the log is set up once."""
    import subprocess
    import sys

    with FileSampleRefQueue[SampleRef](path, durable=False) as queue:
        queue.put(refs("a"))
    for level, shown in (("info", True), ("WARNING", False), (None, False)):
        given = {} if level is None else {"FSQUEUE_LOG": level}
        program = [sys.executable, "-m", "fsqueue", "discard", str(path), "--older-than", "0"]
        done = subprocess.run(program, env=os.environ | given, capture_output=True, text=True, check=True, timeout=60)
        assert ("INFO fsqueue.operate.discarding" in done.stderr) is shown
        with FileSampleRefQueue[SampleRef](path, durable=False) as queue:
            queue.put(refs("a"))


def test_an_unknown_level_is_refused(path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FSQUEUE_LOG", "loud")
    result = CliRunner().invoke(cli, ["status", str(path)])
    assert result.exit_code == 2 and "FSQUEUE_LOG" in result.stderr and "warning" in result.stderr


def test_the_guide_lists_every_variable() -> None:
    """Each that the package reads stands in the table, and none that it does not."""
    import re

    from tests.support import ROOT

    table = (ROOT / "fsqueue" / "GUIDE.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(FSQUEUE_[A-Z_]+)` \|", table, re.MULTILINE))
    read = set()
    for file in (ROOT / "fsqueue").rglob("*.py"):
        read |= set(re.findall(r'"(FSQUEUE_[A-Z_]+)"', file.read_text(encoding="utf-8")))
    assert listed == read
