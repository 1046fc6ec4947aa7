"""The control plane's benchmark script, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT


def test_a_quick_run(tmp_path: Path) -> None:
    """It prints the environment first, verifies what it did, leaves nothing behind, and writes its JSON."""
    command = [sys.executable, str(ROOT / "benchmarks" / "control_plane.py"), "--dir", str(tmp_path / "scratch")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    result = tmp_path / "result.json"
    done = subprocess.run(
        [*command, "--quick", "--json", str(result)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "filesystem" in done.stdout.splitlines()[0]
    assert list((tmp_path / "scratch").iterdir()) == []
    sections = json.loads(result.read_text())["sections"]
    assert all(section["rows"] and section["targets"] and not section["faults"] for section in sections)


def test_without_torch_the_loader_is_left_out(tmp_path: Path) -> None:
    """Whoever wants to know about the ledger need not install it; what is missing is said."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, str(ROOT / "benchmarks" / "control_plane.py"), "--dir", str(tmp_path / "scratch")]
    done = subprocess.run(
        [*command, "--quick", "--only", "loader"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pip install 'fsqueue-shared[features]'" in done.stdout
