"""The soak, run as a user runs it, for a few seconds: nothing is lost, and what was to happen did happen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from history.recording import Call
from soaking.merging import vanished, verdict_of
from soaking.site import Site
from tests.support import GUARD_S, ROOT, wait_until

SECONDS = 6


def soak(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "soak.py"), "--dir", str(directory), *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def processes_of(session: int) -> list[int]:
    """The processes of a session that run; zombies, which are reaped by whoever started them, do not."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] not in b"ZX":
            found.append(int(entry.name))
    return found


def outcome(process: subprocess.Popen[str]) -> str:
    """Wait for its end, and for exit code 0; returns what it said."""
    try:
        said, complaints = process.communicate(timeout=3 * GUARD_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said + complaints
    assert processes_of(process.pid) == []
    return said


def assert_nothing_lost(found: dict[str, Any]) -> None:
    assert found["problems"] == []
    for finding in ("lost", "unexpected", "double_leases", "broken_leases", "unexplained"):
        assert found["verdict"][finding] == 0
    assert found["check"]["left"]["pending"] == found["check"]["left"]["leased"] == found["check"]["unmended"] == 0
    assert found["done"]["kills"] > 0 and found["done"]["restarts"] > 0
    assert found["returned"] > 0 and found["verdict"]["deliveries"] > 0


def test_a_short_soak(tmp_path: Path) -> None:
    """Kills, stops, moves by hand and, as root, a full disk lose nothing, and leave no process, file or mount."""
    directory, result = tmp_path / "soak", tmp_path / "result.json"
    times = ("--minutes", str(SECONDS / 60), "--kill-every", "0.5", "--lease-timeout", "1")
    said = outcome(soak(directory, *times, "--json", str(result), "--fill", "32"))
    assert "filesystem" in said.splitlines()[0]
    assert "lost 0" in said.splitlines()[-1]
    found = json.loads(result.read_text())
    assert_nothing_lost(found)
    assert found["done"]["stops"] > 0
    assert found["done"]["made by hand"] > 0
    assert list(directory.iterdir()) == []
    assert str(directory) not in Path("/proc/mounts").read_text()


def test_two_nodes(tmp_path: Path) -> None:
    """A second node that joins takes part, and its calls are in the history that the first one judges."""
    directory, result = tmp_path / "soak", tmp_path / "result.json"
    workers = ("--producers", "1", "--consumers", "1", "--kill-every", "0.5")
    times = ("--minutes", str(SECONDS / 60), "--nodes", "2")
    first = soak(directory, *workers, *times, "--json", str(result), "--keep")
    try:
        second = soak(directory, *workers, "--join")
        assert "kills" in outcome(second)
    finally:
        outcome(first)
    found = json.loads(result.read_text())
    assert_nothing_lost(found)
    (doings,) = found["other_nodes"].values()
    assert doings["kills"] > 0
    nodes = list(Site(str(directory)).nodes())
    assert len(nodes) == 2
    for node in nodes:
        assert list((directory / "logs" / node).glob("*-producer0-*.jsonl"))


def test_ctrl_c_leaves_no_process(tmp_path: Path) -> None:
    """An interrupted soak ends its workers before it ends itself, and says so with its exit code."""
    process = soak(tmp_path / "soak", "--minutes", "5", "--kill-every", "0.3")
    try:
        wait_until(lambda: len(list(tmp_path.glob("soak/logs/*/*.jsonl"))) > 4, "the first workers")
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=GUARD_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, complaints
    assert "reaped" in complaints
    assert processes_of(process.pid) == []


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    """Files that are not the soak's are neither used nor removed."""
    (tmp_path / "precious").touch()
    process = soak(tmp_path)
    _, complaints = process.communicate(timeout=GUARD_S)
    assert process.returncode == 2 and "not empty" in complaints
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("second_get_at, problems", [(4.0, 0), (1.5, 2)])
def test_what_the_judge_would_find(second_get_at: float, problems: int) -> None:
    """The judge accepts a second delivery after the lease, and neither one during it nor a ref that never came."""
    calls = [
        Call("put", "p", ("a", "b"), 0.0, 0.1, 0.1),
        Call("get", "one", ("a", "b"), 1.0, 1.1, 1.1),
        Call("get", "two", ("a",), second_get_at, second_get_at + 0.1, second_get_at + 0.1),
    ]
    assert len(verdict_of(calls, 2.0).problems()) == problems
    lost = verdict_of([*calls, Call("put", "p", ("c",), 0.2, 0.3, 0.3)], 2.0)
    assert len(lost.lost) == 1


def test_a_ref_that_vanishes_after_its_delivery() -> None:
    """A ref that came once, was given back and is gone is found too, though a checker of deliveries is content."""
    calls = [
        Call("put", "p", ("a", "b"), 0.0, 0.1, 0.1),
        Call("get", "one", ("a", "b"), 1.0, 1.1, 1.1),
        Call("release", "one", ("b",), 1.2, 1.3, 1.3),
        Call("ack", "one", ("a",), 1.4, 1.5, 1.5),
    ]
    assert verdict_of(calls, 2.0).problems() == []
    assert vanished(calls) == ["b"]
