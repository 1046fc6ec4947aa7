"""`--json`: every command has it, and prints the keys that the guide lists, no more and no fewer."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.cli.main import COMMANDS
from fsqueue.demo.options import DemoReport
from fsqueue.sources.capture_run import Progress
from tests.support import ROOT, numbered
from tests.support.program import run

GUIDE = (ROOT / "fsqueue" / "cli" / "GUIDE.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (?P<commands>[^|]*)\| `(?P<part>\.[^`]*)` \| (?P<keys>.*) \|$", re.MULTILINE)
WORD = re.compile(r"`([^`]+)`")
CALLS: dict[str, list[str]] = {
    "init": [],
    "status": ["--watch", "10ms", "--count", "1"],
    "top": ["--count", "1"],
    "config": [],
    "ls": ["--state", "all", "--long"],
    "show": ["n-00002"],
    "put": ["FILE"],
    "requeue": ["n-00002", "--dry-run"],
    "release": ["--owner", "OWNER", "--force", "--dry-run"],
    "rewind": ["--after-step", "0", "--force", "--dry-run"],
    "purge": ["--state", "failed", "--older-than", "0", "--dry-run"],
    "pack": ["--older-than", "0", "--dry-run"],
    "check": [],
    "audit": [],
    "metrics": [],
    "report": [],
    "discard": ["--older-than", "0", "--dry-run"],
    "pause": ["--reason", "x"],
    "resume": [],
    "doctor": [],
}
ELSEWHERE = {
    "capture": {"prompts", *(field.name for field in dataclasses.fields(Progress))} - {"waiting"},
    "demo": {*(field.name for field in dataclasses.fields(DemoReport)), "ok"},
}
"""What takes minutes is tried in tests of its own; here, what it prints the fields of."""


def documented() -> dict[tuple[str, str], set[str]]:
    """Return the keys of each part of what each command prints."""
    found: dict[tuple[str, str], set[str]] = {}
    commands: list[str] = []
    for row in ROW.finditer(GUIDE):
        commands = WORD.findall(row["commands"]) or commands
        keys = set(WORD.findall(row["keys"])) - {"null", "--long"}
        found |= {(command, row["part"]): keys for command in commands}
    return found


def parts(document: Any, path: str) -> list[Any]:
    """Return what jq would for a path of keys and [] alone; nothing where it leads to null."""
    found = [document]
    for step in re.findall(r"\[\]|\w+", path):
        found = [each for one in found for each in (one if step == "[]" else [one[step]])]
        found = [one for one in found if one is not None]
    return found


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every command prints of a queue in which there is something of everything."""
    folder = tmp_path_factory.mktemp("json")
    path = folder / "q"
    with FileSampleRefQueue(path, lease_timeout_s=60.0, durable=False) as queue:
        queue.put(numbered(8, "n-"))
        queue.ack(queue.get(2), step=1)
        queue.fail(queue.get(2), "no good", retryable=False)
        queue.get(1)
        queue.publish_quantum(dp_size=1, batch_size=1)
        (path / "pending" / "torn.json").write_text("{")
        (folder / "refs.jsonl").write_text("")
        names = {"OWNER": queue.owner, "FILE": str(folder / "refs.jsonl")}
        found: dict[str, Any] = {}
        with queue.producer("p"):
            for command, options in CALLS.items():
                words = [names.get(word, word) for word in options]
                where = [str(path), *words] if command in ("metrics", "doctor") else [*words, "--queue", path]
                found[command] = json.loads(run(command, *where, "--json").stdout)
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_it_and_is_in_the_table(command: str) -> None:
    assert "--json" in run(command, "--help").output
    assert command in {command for command, _ in documented()}
    assert command in CALLS or command in ELSEWHERE


@pytest.mark.parametrize(("command", "part"), documented())
def test_the_keys_are_those_of_the_table(printed: dict[str, Any], command: str, part: str) -> None:
    wanted = documented()[command, part]
    if command in ELSEWHERE:
        assert ELSEWHERE[command] == wanted
        return
    if command == "top" and part == ".rates":
        return  # its first look has nothing to compare with
    found = parts(printed[command], part)
    assert found, "there is something to compare"
    for each in found:
        assert set(each) == wanted
