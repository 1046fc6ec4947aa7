"""`fsqueue doctor`: what a mount can do, found out on real ones and on ones that lie."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.disk.fileops import FileOps, using
from fsqueue.operate.doctor import diagnosis, probes
from fsqueue.operate.doctor.diagnosis import Effort, diagnose
from fsqueue.operate.doctor.probes import GranularityFindings
from fsqueue.operate.doctor.races import LockFindings
from tests.support import ROOT

command = importlib.import_module("fsqueue.cli.doctor")
SMALL = Effort(processes=2, files=60, lock_rounds=60, lock_limit_s=30.0, cost_budget_s=0.01)
OPERATIONS = {
    "create_write_close", "fsync", "fsync_directory", "rename", "utime", "unlink", "stat", "open_read_close",
    "listdir", "lock_unlock",
}  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command with little effort."""
    monkeypatch.setattr(diagnosis, "Effort", lambda: SMALL)


@pytest.fixture
def lying_peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that gives all peers started from now on a patched table of file operations."""

    def patch(lie: str) -> None:
        program = (
            "import errno, os\nfrom fsqueue.disk.fileops import FileOps\n"
            f"{lie}\nfrom fsqueue.operate.doctor import peer_tasks\npeer_tasks.serve()"
        )
        monkeypatch.setattr("fsqueue.operate.doctor.peer.local_command", lambda module: [sys.executable, "-c", program])

    return patch


class TestDiagnosis:
    def test_a_local_directory_is_fit_and_left_as_it_was(self, tmp_path: Path) -> None:
        seen = diagnose(str(tmp_path), SMALL)
        assert seen.fit and seen.problems == []
        assert seen.rename_race is not None and seen.rename_race.decided and seen.rename_race.one_winner == 60
        assert seen.create_race is not None and seen.create_race.decided
        assert seen.lock is not None and seen.lock.excludes and seen.lock.rounds >= 120
        assert seen.rename_times is not None and seen.rename_times.keeps_mtime
        assert set(seen.costs) == OPERATIONS
        assert list(tmp_path.iterdir()) == []

    def test_a_lock_that_does_not_exclude_is_seen_and_costs_no_fitness(self, tmp_path: Path, lying_peers: Any) -> None:
        lying_peers("FileOps.lock = FileOps.unlock = staticmethod(lambda fd: True)")
        seen = diagnose(str(tmp_path), replace(SMALL, lock_rounds=300))
        assert seen.lock is not None and not seen.lock.excludes
        assert seen.lock.overlaps + seen.lock.lost_updates > 0
        assert seen.fit and seen.advice is not None and seen.advice.lock == "lease"

    def test_a_missing_flock_is_named_and_answered_with_another_lock(self, tmp_path: Path, lying_peers: Any) -> None:
        lying_peers("def lock(fd): raise OSError(errno.ENOSYS, 'not here')\nFileOps.lock = staticmethod(lock)")
        seen = diagnose(str(tmp_path), SMALL)
        assert seen.lock == LockFindings(False, "ENOSYS", 2)
        assert seen.fit and seen.advice is not None and seen.advice.lock == "lease"
        assert "lock_unlock" not in seen.costs

    def test_a_rename_that_several_processes_win_makes_the_mount_unfit(self, tmp_path: Path, lying_peers: Any) -> None:
        lying_peers("FileOps.rename = staticmethod(os.link)")
        seen = diagnose(str(tmp_path), SMALL)
        assert seen.rename_race is not None and seen.rename_race.several_winners == 60
        assert not seen.fit and "a rename does not decide" in seen.problems[0]

    def test_a_rename_that_loses_files_makes_the_mount_unfit(self, tmp_path: Path, lying_peers: Any) -> None:
        lying_peers(
            "def rename(name, new_name, *, src_dir_fd, dst_dir_fd): os.unlink(name, dir_fd=src_dir_fd)\n"
            "FileOps.rename = staticmethod(rename)"
        )
        seen = diagnose(str(tmp_path), SMALL)
        assert seen.rename_race is not None and seen.rename_race.gone == 60
        assert not seen.fit

    def test_a_rename_that_is_done_and_reported_as_failed_still_decides(self, tmp_path: Path, lying_peers: Any) -> None:
        lying_peers(
            "def rename(name, new_name, **where):\n"
            "    os.rename(name, new_name, **where)\n    raise FileNotFoundError(name)\n"
            "FileOps.rename = staticmethod(rename)"
        )
        seen = diagnose(str(tmp_path), SMALL)
        assert seen.rename_race is not None and seen.rename_race.unreported == 60 and seen.rename_race.decided
        assert seen.fit

    def test_a_peer_that_cannot_start_is_a_problem_and_not_a_verdict(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("fsqueue.operate.doctor.peer.local_command", lambda module: [sys.executable, "-c", "pass"])
        seen = diagnose(str(tmp_path), SMALL)
        assert not seen.fit and seen.rename_race is None and seen.lock is None
        assert list(tmp_path.iterdir()) == []

    def test_an_mtime_that_does_not_move_makes_the_mount_unfit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(probes, "granularity", lambda *_: GranularityFindings(None, 0.1))
        seen = diagnose(str(tmp_path), SMALL)
        assert not seen.fit and "mtime" in seen.problems[0]

    def test_a_filesystem_where_no_queue_can_be_kept_is_refused_without_a_trial(self, tmp_path: Path) -> None:
        ops = FileOps()
        ops.filesystem_type = lambda path: "fuse.s3fs"
        with using(ops):
            seen = diagnose(str(tmp_path), SMALL)
            result = CliRunner().invoke(command.doctor, [str(tmp_path), "--second-mount", str(tmp_path)])
        assert not seen.fit and not seen.examined and seen.rename_race is None
        assert "s3fs" in seen.problems[0] and "keep it on" in seen.problems[0]
        assert result.exit_code == 1 and "NOT FIT" in result.stdout and "between two sides" not in result.stdout

    @pytest.mark.parametrize("named", ["queues", "./queues", "queues/../queues", "."])
    def test_a_relative_path_is_the_current_directory_s_in_every_process(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
    ) -> None:
        (tmp_path / "queues").mkdir()
        monkeypatch.chdir(tmp_path)
        seen = diagnose(named, SMALL)
        assert seen.fit and seen.problems == [] and seen.directory == os.path.normpath(tmp_path / named)
        assert [path.name for path in tmp_path.iterdir()] == ["queues"] and not any((tmp_path / "queues").iterdir())

    def test_a_queue_is_not_touched(self, tmp_path: Path) -> None:
        with FileSampleRefQueue(tmp_path / "q") as queue:
            queue.put([SampleRef("s1", "run", None, "file:///f", {}, {}, "eagle3")])
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*")}
        diagnose(str(tmp_path / "q"), SMALL)
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "q").rglob("*")} == before


@pytest.mark.usefixtures("small")
class TestCommand:
    def run(self, *arguments: str, **environment: str) -> Any:
        return CliRunner().invoke(command.doctor, list(arguments), env=environment)

    def test_json_has_every_finding_under_its_key(self, tmp_path: Path) -> None:
        result = self.run(str(tmp_path), "--json")
        seen = json.loads(result.stdout)
        assert result.exit_code == 0 and seen["fit"] is True
        assert set(seen) == {
            "fit", "problems", "directory", "mount", "mount_notes", "rename_race", "lock", "create_race",
            "rename_times", "hard_links", "exclusive_create", "clock", "granularity", "names", "costs", "advice",
            "kind", "two_sides",
        }  # fmt: skip
        assert seen["rename_race"]["decided"] and seen["lock"]["excludes"]
        assert set(seen["costs"]) == OPERATIONS == set(command.OPERATIONS)
        assert seen["costs"]["rename"].keys() == {"median_us", "p99_us", "samples"}

    def test_text_says_what_was_found_and_what_to_do(self, tmp_path: Path) -> None:
        result = self.run(str(tmp_path))
        assert result.exit_code == 0
        for words in ("a rename decides a race", "flock excludes", "rename between directories", "lease_timeout_s="):
            assert words in result.stdout
        assert result.stdout.rstrip().endswith("fit: a queue's promises can be kept here")

    def test_the_directory_comes_from_the_environment_when_none_is_given(self, tmp_path: Path) -> None:
        result = self.run("--json", FSQUEUE_DIR=str(tmp_path))
        assert json.loads(result.stdout)["directory"] == str(tmp_path)

    def test_a_relative_path_is_the_same_for_the_processes_that_race(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path.parent)
        result = self.run(tmp_path.name, "--json")
        assert result.exit_code == 0 and json.loads(result.stdout)["problems"] == []

    def test_a_mount_that_breaks_a_promise_exits_with_1(self, tmp_path: Path, lying_peers: Any) -> None:
        lying_peers("FileOps.rename = staticmethod(os.link)")
        result = self.run(str(tmp_path))
        assert result.exit_code == 1 and "NOT FIT" in result.stdout
        assert list(tmp_path.iterdir()) == []

    def test_a_directory_that_cannot_be_written_to_is_one_clear_error(self) -> None:
        result = self.run("/proc")
        assert result.exit_code == 1 and "diagnosing /proc failed" in result.output

    def test_a_missing_directory_is_a_usage_error(self, tmp_path: Path) -> None:
        assert self.run(str(tmp_path / "missing")).exit_code == 2


PAUSED = """
import importlib, signal, sys
command = importlib.import_module("fsqueue.cli.doctor")
def pause(work, what):
    if what == "a race for renames":
        print("racing", flush=True)
        signal.pause()
command.Working.step = pause
command.doctor([sys.argv[1]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc names a process's children")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_neither_files_nor_children(tmp_path: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PAUSED, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"racing\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert len(children) == Effort().processes and len(list(tmp_path.iterdir())) == 1
            process.send_signal(number)
            assert process.wait(60) != 0
        finally:
            process.kill()
    assert list(tmp_path.iterdir()) == []
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
