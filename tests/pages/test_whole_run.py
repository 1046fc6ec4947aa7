"""The guide's disaggregated run: the program as it stands, in two processes, one of them killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.pages.blocks import blocks_of
from tests.support import ROOT

pytest.importorskip("torch")
pytest.importorskip("safetensors")

from fsqueue.operate.check import check_queue

GUIDE = ROOT / "fsqueue" / "control" / "GUIDE.md"
GUARD_S = 200.0


def start(folder: Path, role: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "run.py", role], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )


def test_the_disaggregated_run_survives_the_kill_of_its_trainer(tmp_path: Path) -> None:
    """Under 60 lines; after a SIGKILL in mid-run and a restart, the checkpoint has seen every sample once."""
    blocks = blocks_of(GUIDE.read_text(encoding="utf-8"), "GUIDE.md")
    (program,) = (block.text for block in blocks if block.marks.get("file") == "run.py")
    assert len(program.splitlines()) < 60
    (tmp_path / "run.py").write_text(program)
    producer, trainer = start(tmp_path, "producer"), start(tmp_path, "trainer")
    try:
        deadline = time.monotonic() + GUARD_S
        while not (tmp_path / "run-1" / "checkpoint.safetensors").exists():
            assert time.monotonic() < deadline and trainer.poll() is None
            time.sleep(0.01)
        trainer.send_signal(signal.SIGKILL)
        trainer.communicate()
        trainer = start(tmp_path, "trainer")
        printed, _ = trainer.communicate(timeout=GUARD_S)
        producer.communicate(timeout=GUARD_S)
    finally:
        for process in (producer, trainer):
            process.kill()
            process.communicate()
    assert printed == "64 samples are in the checkpoint\n" and producer.returncode == 0
    assert check_queue(tmp_path / "run-1" / "queue") == []
