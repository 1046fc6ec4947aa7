"""The whole demo killed at random instants, and resumed: every sample is in the final optimizer state exactly once."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.demo_dir import DemoDirectory, all_sample_ids
from fsqueue.demo.journal import JournalEvent, JournalReader
from fsqueue.demo.options import DemoOptions
from fsqueue.operate.check import check_queue
from tests.support import ROOT, running
from tests.support.tiny_target import make_tiny_target
from tests.sweeps.proof import tally

HANG_GUARD_S = 300.0

START = """
import sys, msgspec
from fsqueue.demo.options import DemoOptions
from fsqueue.demo.run import run_demo
run_demo(msgspec.json.decode(sys.argv[1], type=DemoOptions))
"""


class Life:
    """One process group of the demo, from its start to its death; always killed and reaped."""

    def __init__(self, options: DemoOptions) -> None:
        self.demo = DemoDirectory(options.directory)
        resumes = os.path.exists(self.demo.at("options.json"))
        command = ["-m", "fsqueue", "demo", self.demo.path, "--resume", "--json"]
        arguments = command if resumes else ["-c", START, msgspec.json.encode(options).decode()]
        self._printed, self._errors = Path(f"{self.demo.path}.stdout"), Path(f"{self.demo.path}.stderr")
        with self._printed.open("wb") as stdout, self._errors.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, stdout=stdout, stderr=stderr, start_new_session=True
            )
        self._follower = JournalReader(self.demo.log)
        self._events()  # of earlier lives

    def _events(self) -> list[JournalEvent]:
        return list(self._follower.read()) if os.path.isdir(self.demo.log) else []

    def wait_until(self, started: bool, acked: int) -> None:
        """Until the run has begun and, in this life, so many samples were acknowledged, or it has ended by itself."""
        deadline = time.monotonic() + HANG_GUARD_S
        while self.process.poll() is None:
            if started and not os.path.exists(self.demo.at("options.json")):
                pass
            elif acked <= 0:
                return
            else:
                acked -= sum(len(event.ids) for event in self._events() if event.kind == "acked")
            assert time.monotonic() < deadline, self.errors()
            time.sleep(0.02)

    def kill(self) -> bool:
        """SIGKILL the whole group and wait until all of it is gone; False where it had ended before."""
        alive = self.process.poll() is None
        members = group_members(self.process.pid)
        if alive:
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        assert alive or code == 0, self.errors()
        deadline = time.monotonic() + HANG_GUARD_S
        while any(map(running, members)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return alive

    def end(self) -> str:
        """Let it come to its end; returns what it printed."""
        try:
            self.process.wait(HANG_GUARD_S)
        finally:
            self.kill()
        assert self.process.returncode == 0, self.errors()
        return self._printed.read_text()

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")


def group_members(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        try:
            if os.getpgid(int(entry)) == group:
                found.append(int(entry))
        except ProcessLookupError:
            continue
    return found


def in_the_state(demo: DemoDirectory) -> list[str]:
    """Return the ids that the final checkpoint counts as trained into it."""
    plan = demo.read_plan()
    assert plan is not None
    state = TrainingState(plan)
    state.load(demo)
    return state.trained_ids()


def sequence_of_steps(demo: DemoDirectory, steps: int) -> list[str]:
    """The ids that went into each step up to the last one, by the trainers' journals: what a rank wrote last counts."""
    latest: dict[tuple[int, str], JournalEvent] = {}
    for event in JournalReader(demo.log).read():
        if event.kind == "step" and event.step <= steps:
            before = latest.get((event.step, event.worker))
            if before is None or event.at >= before.at:
                latest[event.step, event.worker] = event
    return [sample_id for _, event in sorted(latest.items()) for sample_id in event.ids]


@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_everything_and_resume(tmp_path: Path, kills: int) -> None:
    """Whenever the whole group dies, what it resumes to trains each sample once: no duplicate and no gap."""
    options = DemoOptions(
        str(tmp_path / "demo"),
        samples=25,
        passes=8 if kills > 2 else 6,
        tokens=16,
        held_out_samples=2,
        rollouts=1,
        batch_size=2 if kills > 2 else 1,
        high_watermark=16,
        low_watermark=8,
        vocabulary=50,
        target=make_tiny_target(tmp_path / "target"),
        checkpoint_every_steps=3,
    )
    chance, killed = random.Random(kills), 0
    for number in range(kills):
        life = Life(options)
        try:
            if kills > 2 and number == 0:
                life.wait_until(started=True, acked=0)
                time.sleep(chance.uniform(0.0, 2.0))  # while it prepares
            else:
                life.wait_until(started=True, acked=chance.randrange(2, 16))
                time.sleep(chance.uniform(0.0, 0.2))
        finally:
            killed += life.kill()
    report = json.loads(Life(options).end())
    demo = DemoDirectory(options.directory)
    everything = sorted(all_sample_ids(options))
    assert report["ok"], report
    assert (report["once"], report["twice"], report["never"]) == (options.total, 0, 0)
    assert sorted(in_the_state(demo)) == everything
    assert Counter(sequence_of_steps(demo, report["steps"])) == Counter(everything)
    assert 1 <= killed <= kills, "a busy machine may let the run end before its last kills, not before its first"
    assert report["starts"] == kills + 1
    assert check_queue(demo.queue, notes=True) == []
    tally.count("SIGKILLs of the whole demo, resumed: samples lost or trained twice 0", killed)
    tally.count("samples delivered again after them, each once in the final state", report["delivered_twice"])
