"""The doctor on a mount where every file operation takes a fifth of a second: it says so, and comes to an end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import CALLS, FileOps, using
from fsqueue.operate.doctor import peer_tasks
from fsqueue.operate.doctor.diagnosis import Effort, diagnose

OPERATION_S = 0.2
LIMIT_S = 100.0


class SlowOps(FileOps):
    """Real file operations by a clock of their own, which each of them moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0
        for name in CALLS:
            setattr(self, name, self._slow(getattr(FileOps, name)))
        self.monotonic = lambda: self.now_s
        self.sleep = self._pass

    def _slow(self, call: Any) -> Any:
        def slow(*arguments: Any, **options: Any) -> Any:
            self._pass(OPERATION_S)
            return call(*arguments, **options)

        return slow

    def _pass(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowOps]:
    """Slow operations, for this process and for what it does in a peer's place."""
    ops = SlowOps()
    monkeypatch.setattr(peer_tasks, "ops", ops)
    with using(ops):
        yield ops


def test_all_that_one_process_tries_takes_less_than_the_limit(slow: SlowOps, tmp_path: Path) -> None:
    found = diagnose(str(tmp_path), Effort(processes=2, files=60, lock_rounds=20))
    assert found.costs["rename"].median_us == pytest.approx(OPERATION_S * 1e6)
    assert found.advice is not None and found.advice.lease_timeout_s >= 300
    assert slow.now_s < LIMIT_S and found.fit, found.problems


@pytest.mark.parametrize("task", [peer_tasks.rename_race, peer_tasks.create_race])
def test_a_peers_race_ends_in_time_and_says_how_far_it_came(slow: SlowOps, tmp_path: Path, task: Any) -> None:
    for name in ("from", "to", "made"):
        (tmp_path / name).mkdir()
    for number in range(100):
        (tmp_path / "from" / str(number)).touch()
    share = task(str(tmp_path), "A", 100, 6.0)
    assert 0 < share["tried"] < 100 and share["won"] == list(range(share["tried"]))
    assert slow.now_s < 8


def test_a_peers_turns_at_the_lock_end_in_time(slow: SlowOps, tmp_path: Path) -> None:
    (tmp_path / peer_tasks.LOCKED).touch()
    share = peer_tasks.lock_rounds(str(tmp_path), "A", 500, 5.0)
    assert 0 < share["rounds"] == len(share["visits"]) < 500 and slow.now_s < 10
    with closing(Directory(FileOps(), str(tmp_path))) as folder:
        assert peer_tasks.read_counter(FileOps().read_file(folder.fd, peer_tasks.LOCKED)) == share["rounds"]
