"""benchmarks/verify_filesystem.py, run as a user runs it: on a mount that keeps its promises, and on peers that lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

SMALL = ("--refs", "20", "--files", "60", "--rounds", "3")
FILES = {
    "flock excludes", "a rename decides", "O_EXCL decides", "listings are fresh", "opening refreshes names",
    "stat of names is fresh", "mtime by open+fstat", "mtime by stat", "one clock stamps",
}  # fmt: skip
QUEUES = {
    "FIFO", "an id is queued once", "nothing lost", "never leased twice", "acknowledged once", "a put is seen at once",
    "put to get",
}  # fmt: skip
LEASES = {"leases expire", "a late ack is fenced off", "a heartbeat keeps leases", "delivered again"}


def verify(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "verify_filesystem.py"), str(directory), *SMALL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )
    assert list(directory.iterdir()) == [], "something was left behind"
    return done


def verdicts(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {verdict["promise"]: verdict for verdict in json.loads(done.stdout)["verdicts"]}


def lying_python(directory: Path, lie: str) -> Path:
    """A stand-in for the peer's Python whose file operations are patched before the tasks run."""
    program = directory / "lie.py"
    program.write_text(
        f"import errno, os\nfrom fsqueue.disk.fileops import FileOps\n{lie}\n"
        "from fsqueue.operate.doctor import peer_tasks\npeer_tasks.serve()\n"
    )
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}"\n')
    python.chmod(0o755)
    return python


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The directory to verify."""
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


def test_two_processes_on_a_local_disk_keep_every_promise(shared: Path) -> None:
    done = verify(shared, "--json", "--lease-timeout", "3")
    assert done.returncode == 0, done.stderr
    seen = verdicts(done)
    assert set(seen) == FILES | QUEUES | LEASES
    assert seen["nothing lost"]["figures"] == {"put": 40, "done": 40, "lost": []}
    assert json.loads(done.stdout)["environment"]["python"]


def test_a_peer_command_stands_for_a_second_node(shared: Path) -> None:
    done = verify(shared, "--peer", "sh -c", "--peer-python", sys.executable, "--only", "files,queues")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("commit ") and lines[1].startswith("A: ") and lines[2].startswith("B: ")
    assert len(lines) == 3 + len(FILES | QUEUES) + 1 and lines[-1] == "all promises hold"


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting takes root")
def test_a_second_mount_shows_the_same_queue(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    if subprocess.run(["mount", "--bind", str(shared), str(tmp_path / "second")], check=False).returncode:
        pytest.skip("this root may not mount")
    try:
        done = verify(shared, "--second-mount", str(tmp_path / "second"), "--only", "queues", "--json")
    finally:
        subprocess.run(["umount", str(tmp_path / "second")], check=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_second_mount_of_something_else_is_refused(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    done = verify(shared, "--second-mount", str(tmp_path / "other"))
    assert done.returncode == 1 and "is it the same filesystem?" in done.stderr


def test_a_flock_that_does_not_exclude_fails_its_promise_and_loses_nothing(shared: Path, tmp_path: Path) -> None:
    python = lying_python(tmp_path, "FileOps.lock = FileOps.unlock = staticmethod(lambda fd: True)")
    done = verify(shared, "--peer", "sh -c", "--peer-python", str(python), "--only", "files,queues", "--json")
    seen = verdicts(done)
    assert done.returncode == 1 and seen["flock excludes"]["holds"] is False
    assert seen["nothing lost"]["holds"] and seen["never leased twice"]["holds"]


def test_a_missing_flock_is_named_and_the_queues_run_without(shared: Path, tmp_path: Path) -> None:
    lie = "def lock(fd): raise OSError(errno.ENOLCK, 'none')\nFileOps.lock = staticmethod(lock)"
    python = lying_python(tmp_path, lie)
    done = verify(shared, "--peer", "sh -c", "--peer-python", str(python), "--only", "files,queues", "--json")
    seen = verdicts(done)
    assert done.returncode == 1 and seen["flock excludes"]["figures"] == {"error": "ENOLCK"}
    assert seen["FIFO"]["holds"] is None and seen["nothing lost"]["holds"]


def test_a_rename_that_both_sides_win_fails_the_promise(shared: Path, tmp_path: Path) -> None:
    python = lying_python(tmp_path, "FileOps.rename = staticmethod(os.link)")
    done = verify(shared, "--peer", "sh -c", "--peer-python", str(python), "--only", "files")
    assert done.returncode == 1 and "FAILS  a rename decides" in done.stdout
    assert done.stdout.rstrip().endswith("NOT all promises hold")


def test_stale_mtimes_fail_the_promise(shared: Path, tmp_path: Path) -> None:
    lie = "old = {}\nfresh = FileOps.fstat\nFileOps.fstat = staticmethod(lambda fd: old.setdefault('first', fresh(fd)))"
    python = lying_python(tmp_path, lie)
    done = verify(shared, "--peer", "sh -c", "--peer-python", str(python), "--only", "files", "--json")
    assert done.returncode == 1 and verdicts(done)["mtime by open+fstat"]["figures"]["stale"] > 0


def test_a_peer_that_cannot_start_says_what_is_missing(shared: Path) -> None:
    done = verify(shared, "--peer", "sh -c", "--peer-python", "/nonexistent/python")
    assert done.returncode == 1 and "can import this fsqueue" in done.stderr


@pytest.mark.parametrize("arguments", [["--only", "everything"], ["--lock", "hope"]])
def test_bad_arguments_are_usage_errors(shared: Path, arguments: list[str]) -> None:
    assert verify(shared, *arguments).returncode == 2
