"""The manual page says what `--help` says, and `man` shows it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from fsqueue.cli.main import COMMANDS
from fsqueue.cli.manual import _roff, manual
from tests.support import ROOT

PAGE = ROOT / "fsqueue" / "cli" / "fsqueue.1"
MAN = shutil.which("man")


def test_the_page_is_as_the_commands_are_now() -> None:
    """Else: python -m fsqueue.cli.manual > fsqueue/cli/fsqueue.1"""
    assert PAGE.read_text(encoding="utf-8") == manual()


def test_every_command_is_in_it_with_its_example() -> None:
    text = manual()
    for name in COMMANDS:
        assert f'.SS "fsqueue {name} ' in text
    assert text.count("Example:") == len(COMMANDS)


def test_the_wheel_puts_it_where_man_looks() -> None:
    tomllib = pytest.importorskip("tomllib")
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"][
        "wheel"
    ]
    assert wheel["shared-data"] == {"fsqueue/cli/fsqueue.1": "share/man/man1/fsqueue.1"}


@pytest.mark.skipif(MAN is None, reason="there is no man here")
def test_man_shows_it_without_warnings() -> None:
    done = subprocess.run(
        ["man", "--warnings=all", "-l", str(PAGE)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANROFFOPT": "-c"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(".\b", "", done.stdout)
    assert (
        "--lease-timeout" in shown and "$FSQUEUE_DIR" in shown and "fsqueue status /shared/queue --watch 10s" in shown
    )


@pytest.mark.parametrize(
    ("text", "roff"),
    [(".x", "\\&.x"), ("'x", "\\(aqx"), ("a\\b", "a\\eb"), ("--x", "\\-\\-x"), ("see `ls`", "see \\fBls\\fP")],
)
def test_nothing_in_a_text_is_a_command_of_roff(text: str, roff: str) -> None:
    assert _roff(text) == roff
