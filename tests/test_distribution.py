"""The distribution: its name in every hint, its licence, and the checks that CI and pre-commit share."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fsqueue.errors import DISTRIBUTION, install_command

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]

INSTALLS = re.compile(r"pip install ([^`\n#()]+)")
OWN = re.compile(r"(?<![\w./-])(\.|fsqueue(?:-[a-z]+)?)(?:\[([\w,]*)\])?(?![\w/.:=<>-])")
CALLS = re.compile(r"install_command\(['\"](\w+)['\"]\)")


def texts() -> list[Path]:
    """Everything that a user may read: the package, the benchmarks, the pages."""
    folders = [
        path for folder in ("fsqueue", "benchmarks", ".github", "findings") for path in (ROOT / folder).rglob("*")
    ]
    return [ROOT / "README.md", *sorted(path for path in folders if path.suffix in (".py", ".md"))]


def faults(text: str) -> list[str]:
    """Return each hint to install this distribution whose name or extras pip would not find."""
    found = [call for call in CALLS.findall(text) if call not in EXTRAS]
    for command in INSTALLS.findall(text):
        for name, extras in OWN.findall(command.partition("&&")[0]):
            unknown = set(filter(None, extras.split(","))) - EXTRAS.keys()
            if name not in (".", PROJECT["name"]) or unknown:
                found.append(command)
    return found + re.findall(r"(?<![\w.-])fsqueue\[\w+\]", text)


def test_every_hint_names_this_distribution_and_its_extras() -> None:
    """`pip install fsqueue` would install a stranger's package, so nothing says so."""
    found = {str(path.relative_to(ROOT)): faults(path.read_text(encoding="utf-8")) for path in texts()}
    found["README.md"] = [hint for hint in found["README.md"] if hint != "fsqueue"]  # the warning itself
    assert {path: hints for path, hints in found.items() if hints} == {}


@pytest.mark.parametrize(
    "text",
    [
        "pip install fsqueue",
        "pip install 'fsqueue[demo]'",
        "pip install '.[demos]'",
        "pip install 'fsqueue-shared[feature]'",
        "pip install --quiet '.[features,demos]'",
        "pip install -U fsqueue-queue",
        "needs fsqueue[demo]",
        "install_command('demos')",
    ],
)
def test_a_wrong_hint_is_found(text: str) -> None:
    """The test above sees a wrong name and a wrong extra."""
    assert faults(text)


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_commands_in_error_texts_are_right(extra: str) -> None:
    """The helper that error texts use builds commands for this distribution, installed or checked out."""
    assert PROJECT["name"] == DISTRIBUTION
    assert faults(install_command(extra)) == []
    assert f"'{DISTRIBUTION}[{extra}]'" in install_command(extra)
    assert f"'.[{extra}]'" in install_command(extra)


def test_extras_that_name_extras_name_their_own() -> None:
    """No extra pulls in the stranger's package, and each that is named exists."""
    for requirement in (each for extra in EXTRAS.values() for each in extra if each.startswith("fsqueue")):
        assert OWN.fullmatch(requirement), requirement
        assert faults(f"pip install {requirement}") == []


def test_the_licence_lies_where_the_project_says() -> None:
    """The licence file is there, inside the package, and is the one that is named."""
    assert PROJECT["license"] == "Apache-2.0"
    for name in PROJECT["license-files"]:
        assert name.startswith("fsqueue/")
        assert "Apache License\n                           Version 2.0" in (ROOT / name).read_text(encoding="utf-8")


def test_pre_commit_runs_what_ci_runs() -> None:
    """Each static check of CI's script is a hook, and each hook is a check of CI's."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    checks = re.findall(r"^\.venv/bin/(?!pip)(.+)$", script, flags=re.MULTILINE)
    assert checks
    assert re.findall(r"entry: \.venv/bin/(.+)$", hooks, flags=re.MULTILINE) == checks
