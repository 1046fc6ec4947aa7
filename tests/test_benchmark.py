"""The benchmark script, run as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "bench.py"


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("durability", ["--durable", "--no-durable"])
def test_a_quick_run(tmp_path: Path, durability: str) -> None:
    """A run prints the environment first, loses and doubles nothing, leaves nothing behind, and writes its JSON."""
    result = tmp_path / "result.json"
    done = bench("--dir", str(tmp_path / "scratch"), "--quick", durability, "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "filesystem" in done.stdout.splitlines()[0]
    assert "nothing lost or doubled" in done.stdout
    assert list((tmp_path / "scratch").iterdir()) == []
    found = json.loads(result.read_text())
    assert set(found) == {"environment", "options", "results", "wakeup", "targets", "verified"}
    assert {row["kind"] for row in found["results"]} == {"file", "floor", "sqlite", "sqlite-tuned", "memory"}
    assert {row["kind"] for row in found["wakeup"]} == {"file", "sqlite", "sqlite-tuned"}
    assert all(verdict["clean"] and verdict["put"] == verdict["delivered"] for verdict in found["verified"])


@pytest.mark.parametrize("bad", ["0", "x", "1,,2"])
def test_bad_numbers_are_usage_errors(tmp_path: Path, bad: str) -> None:
    """A list of numbers that is none is refused before anything is written."""
    done = bench("--dir", str(tmp_path), "--batch", bad)
    assert done.returncode == 2
    assert "expected numbers" in done.stderr
    assert list(tmp_path.iterdir()) == []
