"""Files that other programs leave in the directories are ignored or buried, and never followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fsqueue import (
    FileSampleRefQueue,
)
from tests.support import (
    drain,
    ids,
    names_in,
    refs,
)

STATES = ("pending", "leased", "done", "failed")

STATES = ("pending", "leased", "done", "failed")
FOREIGN = (".hidden.json", ".nfs0000000001", "a.json~", "#a.json#", "a.json.swp", "notes.txt", "a", ".json", "a b.json")


@pytest.mark.parametrize("state", STATES)
def test_foreign_files_are_ignored(tmp_path: Path, state: str) -> None:
    """Files outside the name grammar are neither counted nor handed out nor touched, in any state."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path) as queue:
        for name in FOREIGN:
            (path / state / name).write_text("{}")
        queue.put(refs("real"))
        assert tuple(queue.counts()) == (1, 0, 0, 0)
        assert drain(queue) == ["real"]
        assert queue.reclaim() == 0
    assert set(FOREIGN) <= set(names_in(path, state))
    assert all((path / state / name).read_text() == "{}" for name in FOREIGN)


@pytest.mark.parametrize("kind", ["symlink", "dangling", "symlink to fifo", "fifo", "directory", "full directory"])
def test_planted_files_are_buried(tmp_path: Path, kind: str) -> None:
    """A link, FIFO or directory in pending/ is neither followed nor waited on: it goes to failed/, get goes on."""
    path, outside = tmp_path / "q", tmp_path / "outside.json"
    outside.write_text('{"sample_id":"outside"}')
    os.mkfifo(tmp_path / "pipe")
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
        plant(path / "pending" / "planted.json", kind, outside, tmp_path / "pipe")
        queue.put(refs("b"))
        found: list[str] = []
        for _ in range(5):
            found += ids(queue.get(10, 1.0 if len(found) < 2 else 0.0))
        assert sorted(found) == ["a", "b"]
        assert names_in(path, "failed") == ["planted.json"]
        assert names_in(path, "pending") == []
        assert queue.in_flight() == 2
    assert outside.read_text() == '{"sample_id":"outside"}'


def plant(at: Path, kind: str, outside: Path, pipe: Path) -> None:
    if kind == "symlink":
        at.symlink_to(outside)
    elif kind == "dangling":
        at.symlink_to("nowhere")
    elif kind == "symlink to fifo":
        at.symlink_to(pipe)
    elif kind == "fifo":
        os.mkfifo(at)
    else:
        at.mkdir()
        if kind == "full directory":
            (at / "inside").write_text("x")


def test_planted_twice(tmp_path: Path) -> None:
    """A directory planted under a name that failed/ has already does not stop get from going on."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path) as queue:
        (path / "failed" / "planted.json").write_text("{}")
        (path / "pending" / "planted.json").mkdir()
        queue.put(refs("a"))
        assert ids(queue.get(10, 1.0)) == ["a"]
