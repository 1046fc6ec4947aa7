"""README is tested: its program prints what it says, and its test command is the one that CI runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_program_prints_what_readme_says(tmp_path: Path) -> None:
    """The program on README's first screen runs as it stands and prints the block below it."""
    program, printed = re.findall(r"```(?:python)?\n(.*?)```", README, flags=re.DOTALL)[:2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == printed


def test_ci_runs_readme_s_test_command() -> None:
    """The one command that README gives for the tests is a line of CI's script."""
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv") and "pytest" in line]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`fsqueue ([a-z]+)", README))))
def test_every_command_in_readme_exists(name: str) -> None:
    """Each `fsqueue COMMAND` that README names has a help text with an example."""
    done = subprocess.run(
        [sys.executable, "-m", "fsqueue", name, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Example" in done.stdout
