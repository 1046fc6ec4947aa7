"""The demo under a scheduler, and under Ctrl-C: real processes, real signals, and each sample once in the end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.demo_dir import DemoDirectory, all_sample_ids
from fsqueue.demo.journal import JournalReader
from fsqueue.demo.options import DemoOptions
from fsqueue.demo.run import run_demo
from fsqueue.demo.scheduler import PREEMPTIONS
from tests.support import ROOT

HANG_GUARD_S = 300.0


def test_members_that_are_preempted_come_back_and_each_sample_is_trained_once(tmp_path: Path, tiny_target: str) -> None:
    """Asked to leave, hung when asked, and killed at once: rollouts and trainers go on as the next attempt."""
    said: list[str] = []
    options = DemoOptions(
        str(tmp_path / "demo"),
        samples=40,
        passes=3,
        tokens=16,
        held_out_samples=2,
        batch_size=2,
        high_watermark=6,
        low_watermark=2,
        vocabulary=50,
        target=tiny_target,
        preempt=True,
        requeue_s=0.2,
        checkpoint_every_steps=4,
    )
    report = run_demo(options, lambda snapshot: said.append(snapshot.message or snapshot.waits_for))
    assert report.ok, report
    assert (report.once, report.twice, report.never) == (options.total, 0, 0)
    assert sorted(in_the_state(options)) == sorted(all_sample_ids(options))
    done = [(it.worker.partition("-")[0], it.how) for it in report.preemptions]
    assert sorted(done) == sorted((order.kind, order.how) for order in PREEMPTIONS)
    assert all(it.back_after_s is not None for it in report.preemptions)
    starts = sum(it.starts for it in report.ranks) + sum(it.starts for it in report.rollouts)
    assert starts == options.rollouts + options.trainers + len(PREEMPTIONS)
    for number, text in [(2, "withdrew after"), (1, "did not leave in time: SIGKILL"), (2, "SIGKILL at once")]:
        assert sum(text in message for message in said) == number, (text, said)
    assert sum("is back in its place as attempt" in message for message in said) == len(PREEMPTIONS)
    assert any(message.startswith("the first features") for message in said), said


def in_the_state(options: DemoOptions) -> list[str]:
    demo = DemoDirectory(options.directory)
    plan = demo.read_plan()
    assert plan is not None
    state = TrainingState(plan)
    state.load(demo)
    return state.trained_ids()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on_and_where(tmp_path: Path, tiny_target: str, number: signal.Signals) -> None:
    """The directory is named at the start where nobody has; the command that is printed ends the run well."""
    options = "--samples 30 --passes 4 --tokens 16 --batch 2 --rollouts 1 --trainers 1 --high 8 --low 4 --json"
    words = [sys.executable, "-m", "fsqueue", "demo", *options.split(), "--target", tiny_target]
    said = tmp_path / "said"
    with said.open("wb") as stderr:
        run = subprocess.Popen(
            words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, "TMPDIR": str(tmp_path)}
        )
    try:
        directory = wait_for_steps(run, said)
        run.send_signal(number)
        assert run.wait(HANG_GUARD_S) == 128 + number
    finally:
        run.kill()
        run.wait()
    lines = [line for line in said.read_text().splitlines() if line]
    assert lines[0] == f"the run is in {directory}, which is kept"
    assert any("preparing: loading torch and transformers" in line for line in lines)
    assert shlex.split(lines[-1]) == ["fsqueue", "demo", directory, "--resume", "--json"]
    again = [sys.executable, "-m", *shlex.split(lines[-1])]
    report = json.loads(subprocess.run(again, cwd=ROOT, capture_output=True, check=True, timeout=HANG_GUARD_S).stdout)
    assert report["ok"] and (report["once"], report["starts"]) == (120, 2)


def wait_for_steps(run: subprocess.Popen[bytes], said: Path) -> str:
    """Return the directory that was named, once something was trained."""
    deadline = time.monotonic() + HANG_GUARD_S
    while True:
        assert run.poll() is None and time.monotonic() < deadline, said.read_text()
        named = re.match(r"the run is in (\S+),", said.read_text())
        log = Path(named[1], "log") if named else None
        if named and log and log.exists() and any(event.kind == "step" for event in JournalReader(str(log)).read()):
            return named[1]
        time.sleep(0.05)


def test_before_there_is_a_run_nothing_is_said_of_resuming(tmp_path: Path, tiny_target: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    words = [sys.executable, "-m", "fsqueue", "demo", str(tmp_path / "full"), "--target", tiny_target]
    run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=HANG_GUARD_S)
    assert run.returncode == 1 and "is not empty" in run.stderr and "To go on" not in run.stderr
