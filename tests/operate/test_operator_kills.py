"""The operator's moves and repairs, killed before every single file operation: no ref is lost or doubled."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.disk.fileops import FileOps, using
from fsqueue.engine.layout import STATES
from fsqueue.format.untyped import sight
from fsqueue.operate.check import check_queue, repair
from fsqueue.operate.operator import purge, release
from fsqueue.operate.requeue import requeue, requeue_failed
from tests.support import Tap, in_fork, names_in, ref, refs
from tests.sweeps.proof.apart import Apart

ELSEWHERE = "node9.4242.0a1b2c"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two refs pending, two leased elsewhere, one done and two dead letters."""
    path = tmp_path_factory.mktemp("template") / "q"
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("done", "dead1", "dead2", "a", "b"))
        queue.ack(queue.get(1), step=7)
        queue.fail(queue.get(2), "no good", retryable=False)
    for sample_id in ("held1", "held2"):
        (path / "leased" / f"{sample_id}@{ELSEWHERE}.json").write_bytes(msgspec.json.encode(ref(sample_id)))
    return path


def _break(path: Path) -> None:
    (path / "pending" / "a.json").rename(path / "pending" / "wrong.json")
    shutil.copy(path / "leased" / f"held1@{ELSEWHERE}.json", path / "pending" / "held1.json")
    (path / "leased" / f"held2@{ELSEWHERE}.json").rename(path / "leased" / "held2.json")
    (path / "failed" / "dead1.json").write_bytes((path / "failed" / "dead1.json").read_bytes()[:-9])
    (path / "pending" / "torn.json").write_bytes(b"{")
    (path / "order.lock").write_bytes(b"\0" * 100)


ACTIONS: dict[str, tuple[Callable[[Path], Any], set[str]]] = {
    "requeue": (lambda path: requeue(str(path), ["dead1", "done"]), {"a", "b", "dead1", "done"}),
    "requeue failed": (lambda path: requeue_failed(str(path)), {"a", "b", "dead1", "dead2"}),
    "release": (lambda path: release(str(path), "node9"), {"a", "b", "held1", "held2"}),
    "repair": (repair, {"a", "b", "held2"}),
}


def everything(path: Path) -> list[str]:
    """The ids in all files; the raw bytes of what holds none."""
    seen = [sight(file.read_bytes()) for state in STATES for file in (path / state).iterdir()]
    return sorted(found.sample_id or found.bookkeeping.raw or "{" for found in seen)


def _no_pause(seconds: float) -> None:
    """The checker's pause between two looks: nobody else uses these queues."""


def quick() -> FileOps:
    ops = FileOps()
    ops.sleep = _no_pause
    return ops


def killed_before(operation: int, action: Callable[[Path], Any], path: Path) -> bool:
    """Run action in a child that SIGKILLs itself before its k-th file operation; False when it ended before that."""
    reached = path.parent / f"{path.name}.reached"
    numbers = itertools.count()

    def kill(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if next(numbers) == operation:
            reached.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        tap = Tap()
        tap.before = kill
        tap.ops.sleep = _no_pause
        with tap.here():
            action(path)

    try:
        in_fork(work)
    except AssertionError:
        assert reached.exists(), "the child failed by itself"
    return reached.exists()


def kill_and_try_again(template: Path, tmp_path: Path, name: str) -> None:
    action, expected = ACTIONS[name]
    for operation in itertools.count():
        path = shutil.copytree(template, tmp_path / f"q{operation}")
        if name == "repair":
            _break(path)
        before = everything(path)
        killed = killed_before(operation, action, path)
        # Of the two copies of held1 that _break makes, one is dropped in the end.
        assert set(everything(path)) == set(before)
        assert len(before) - len(everything(path)) in ((0, 1) if name == "repair" else (0,))
        with FileSampleRefQueue(path, durable=False) as queue:
            queue.reclaim()
        with using(quick()):
            _again(name, path)
            assert check_queue(path) == []
        with FileSampleRefQueue(path, durable=False) as queue:
            found = _taken(queue)
        assert sorted(found) == sorted(expected)
        if not killed:
            assert operation > 10
            return
        shutil.rmtree(path)


@pytest.mark.parametrize("name", ACTIONS)
def test_killed_at_any_operation_the_next_try_completes_it(
    template: Path, tmp_path: Path, apart: Apart, name: str
) -> None:
    apart(kill_and_try_again, template, tmp_path, name)


def _again(name: str, path: Path) -> None:
    """Give the command again, as an operator does after one that was killed."""
    if name == "release" and not any(ELSEWHERE in lease for lease in names_in(path, "leased")):
        return
    ACTIONS[name][0](path)


def _taken(queue: FileSampleRefQueue[Any]) -> list[str]:
    found: list[str] = []
    while batch := queue.get(64):
        found += [each.sample_id for each in batch]
        queue.ack(batch)
    return found


def kill_in_a_purge(template: Path, tmp_path: Path) -> None:
    for operation in itertools.count():
        path = shutil.copytree(template, tmp_path / f"q{operation}")
        killed = killed_before(operation, lambda path: purge(str(path), "failed", 0.0), path)
        assert {"done", "a", "b", "held1", "held2"} <= set(everything(path))
        assert check_queue(path) == []
        if not killed:
            assert names_in(path, "failed") == []
            return
        shutil.rmtree(path)


def test_purge_killed_at_any_operation_removes_only_what_it_was_told(
    template: Path, tmp_path: Path, apart: Apart
) -> None:
    apart(kill_in_a_purge, template, tmp_path)


def test_the_requeued_refs_come_back_equal(template: Path, tmp_path: Path) -> None:
    path = shutil.copytree(template, tmp_path / "q")
    requeue(str(path), ["dead1"])
    with FileSampleRefQueue(path, durable=False) as queue:
        assert queue.get(9)[-1] == ref("dead1")
    assert json.loads((path / "failed" / "dead2.json").read_text())["_fsqueue"]["reason"] == "no good"
