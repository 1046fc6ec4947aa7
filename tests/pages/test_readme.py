"""README stays short, names what exists, and gives commands that work."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fsqueue
from fsqueue.cli.main import COMMANDS
from tests.pages.blocks import pages
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in pages()}
SECTIONS = [
    "Install",
    "A queue in two shells",
    "For you if, and not if",
    "What you see",
    "What it promises",
    "The calls",
    "As the `sample_queue` of a controller",
    "Streams, features, a whole run",
    "The command line",
    "Filesystems",
    "Cost",
    "What was tried",
    "Where next",
]
COMMAND = re.compile(r"`fsqueue ([a-z]+)")
_LINK = re.compile(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")


def test_readme_is_short_and_in_order() -> None:
    """At most 250 lines, in the order in which a newcomer asks; prose wraps at a reader's width."""
    lines = README.splitlines()
    assert len(lines) <= 250
    assert [line[3:] for line in lines if line.startswith("## ")] == SECTIONS
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.DOTALL | re.MULTILINE)
    wide = [line for line in prose.splitlines() if len(line) > 110 and line[:1] not in ("|", "!", "`")]
    assert wide == []


def test_ci_runs_readme_s_test_command() -> None:
    """The one command that README gives for the tests is a line of CI's script."""
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv") and "pytest" in line]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_readme_names_every_command() -> None:
    assert set(COMMAND.findall(README)) == set(COMMANDS)


def test_every_command_has_json_and_what_changes_a_queue_a_dry_run_as_readme_says() -> None:
    assert "Each command has\n`--json`" in README and "`--dry-run`, but for\n`capture`" in README
    commands = {name: getattr(importlib.import_module(f"fsqueue.cli.{name}"), name) for name in COMMANDS}
    options = {name: {each for param in command.params for each in param.opts} for name, command in commands.items()}
    assert [name for name, found in options.items() if "--json" not in found] == []
    only_look = {"status", "ls", "show", "audit", "report", "metrics", "top", "doctor", "demo"}
    assert {name for name, found in options.items() if "--dry-run" not in found} == only_look | {"capture"}


@pytest.mark.parametrize("name", sorted({name for text in TEXTS.values() for name in COMMAND.findall(text)}))
def test_every_command_on_a_page_exists(name: str) -> None:
    """Each `fsqueue COMMAND` that a page names has a help text with an example."""
    done = subprocess.run(
        [sys.executable, "-m", "fsqueue", name, "--help"], capture_output=True, text=True, check=True, timeout=60
    )
    assert "Example" in done.stdout


def _anchors(text: str) -> set[str]:
    """Return the anchors that a page's headings have on GitHub."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_the_page_s_links_lead_somewhere(page: str) -> None:
    """Every relative link is to a file, and every anchor to a heading in it."""
    for target, anchor in _LINK.findall(TEXTS[page]):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in _anchors(file.read_text(encoding="utf-8")), f"{page}: {target}#{anchor}"


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`([\w/]+\.py)`", TEXTS["fsqueue/ARCHITECTURE.md"]))))
def test_every_module_that_the_architecture_names_exists(path: str) -> None:
    assert (ROOT / "fsqueue" / path).is_file() or (ROOT / path).is_file()


def test_the_example_that_help_opens_with_runs(tmp_path: Path) -> None:
    """`help(fsqueue)` begins with a program of a dozen lines; it runs but for its path and its patience."""
    assert fsqueue.__doc__ is not None
    program = "\n".join(
        line[4:] for line in fsqueue.__doc__.splitlines() if line.startswith("    ") or not line.strip()
    )
    program = program.replace("/shared/queue", "queue").replace("timeout_s=5", "timeout_s=0")
    program += "\nassert queue.counts() == (0, 0, 1, 0)\n"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=60)
