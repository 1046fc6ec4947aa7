"""The feature store's benchmark script, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT


def test_a_quick_run(tmp_path: Path) -> None:
    """It says what it runs on, leaves nothing behind, and has a row for each way and size; all samples arrive."""
    result = tmp_path / "result.json"
    script = ROOT / "benchmarks" / "features.py"
    done = subprocess.run(
        [sys.executable, str(script), "--dir", str(tmp_path / "scratch"), "--quick", "--json", str(result)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GPU" in done.stdout.splitlines()[0] and "filesystem" in done.stdout.splitlines()[1]
    assert list((tmp_path / "scratch").iterdir()) == []
    found = json.loads(result.read_text())
    assert {row["way"] for row in found["files"]} >= {"put", "save_file", "get", "get, verified", "load_file"}
    assert [row["loop"] for row in found["loops"]] == ["bare", *(f"loader, {n} threads" for n in (0, 1, 2))]
    assert all(row["MB/s"] > 0 for row in (*found["files"], *found["loops"])) and found["ends"]["samples"] == 6
