"""Programs and transcripts in Markdown pages: finding them, and running them as a reader would.

A ```python block is a program. What it prints is the ```text block that follows at once, or else what its comments
`# prints ...` say. A ```console block is a transcript: `$ ` begins a command, `> ` continues it, and the lines below
are what it prints. All of a page run in one folder, in order, as a reader types them, unless a comment on the line
before says otherwise:

    <!-- test: folder=NAME -->               in the folder of that name, which the page's other blocks of it share
    <!-- test: folder=NAME file=work.py -->  not run, but saved there under that name
    <!-- test: with=sample.py -->            beside a copy of the file that the page saved under that name before
    <!-- test: needs=torch -->               left out where torch is not installed
    <!-- test: warnings=ignore -->           with the warnings that another package makes; else they are errors

Blocks that share a folder run in the page's order, each transcript in a shell of its own; what a shell started in the
background goes on until the last of them has run. On a page, this host is called `node1`.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import ROOT

GUARD_S = 120.0

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<marks>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
_PRINTS = re.compile(r"  # prints (.*)$", re.MULTILINE)
_END = "-- end of the command --"
_VARYING = (
    (re.compile(r"\.\d+\.[0-9a-f]{6}(?![0-9a-f])"), ".PID.HEX"),  # an owner's name
    (re.compile(r"(?<=node1)\s+\d+(?=\s)"), "  PID"),
    (re.compile(r"\bpid \d+"), "pid PID"),
    (re.compile(r"last seen \d+ s ago"), "last seen AGE ago"),
    (re.compile(r"\b\d+\.\d (?:s|min|h|d)\b"), "AGE"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?\b"), "DATE"),
    (re.compile(r"\b\d\d:\d\d:\d\d\b"), "TIME"),
    (re.compile(r"\b[0-9a-f]{12,64}\b"), "HEX"),
    (re.compile(r"\s{2,}"), "  "),
)
_JOB_NOTICE = re.compile(r"\[\d+\]|\S+: line \d+: +\d+ Killed")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        line: the number of the line that its fence is on.
        marks: what the comment before it says, by key.
        beside: the files that it needs, by name.
        printed: of a program: the text block that follows it at once; None where there is none.
    """

    page: str
    line: int
    language: str
    text: str
    marks: dict[str, str]
    printed: str | None = None
    beside: dict[str, str] = field(default_factory=dict)


@dataclass
class Scene:
    """Blocks of a page that share a folder, in order."""

    name: str
    blocks: list[Block] = field(default_factory=list)

    def without_what_is_missing(self) -> Scene:
        """Return the blocks that can be run here; skip the test where one lacks a package, and others rely on it."""
        lacking = [b for b in self.blocks if "needs" in b.marks and find_spec(b.marks["needs"]) is None]
        rest = [block for block in self.blocks if block not in lacking]
        if not rest or any("file" in block.marks for block in lacking):
            pytest.skip(f"{', '.join(sorted({block.marks['needs'] for block in lacking}))} is not installed")
        return Scene(self.name, rest)


def pages() -> list[Path]:
    """Return every Markdown page of the project, README first."""
    found = [*ROOT.glob("fsqueue/**/*.md"), *ROOT.glob("benchmarks/**/*.md"), *ROOT.glob("findings/**/*.md")]
    return [ROOT / "README.md", *sorted([*found, *ROOT.glob(".github/**/*.md")])]


def blocks_of(text: str, page: str) -> list[Block]:
    """Return all fenced blocks of a page."""
    matches = list(_BLOCK.finditer(text))
    blocks: list[Block] = []
    saved: dict[str, str] = {}
    for number, match in enumerate(matches):
        after = matches[number + 1] if number + 1 < len(matches) else None
        follows = after is not None and after["language"] == "text" and not text[match.end() : after.start()].strip()
        marks = dict(mark.partition("=")[::2] for mark in (match["marks"] or "").split())
        line = text.count("\n", 0, match.start("language")) + 1
        printed = after["text"] if after is not None and follows else None
        beside = {marks["with"]: saved[marks["with"]]} if "with" in marks else {}
        blocks.append(Block(page, line, match["language"], match["text"], marks, printed, beside))
        if "file" in marks:
            saved[marks["file"]] = match["text"]
    return blocks


def scenes_of(blocks: list[Block]) -> list[Scene]:
    """Group a page's programs and transcripts by the folder that they run in."""
    scenes: dict[str, Scene] = {}
    for block in blocks:
        if block.language in ("python", "console") or "file" in block.marks:
            folder = block.marks.get("folder", "page")
            scenes.setdefault(folder, Scene(f"{block.page}-{folder}")).blocks.append(block)
    return list(scenes.values())


def play(scene: Scene, folder: Path) -> None:
    """Run a scene's blocks in a fresh folder, and compare what they print with the page."""
    programs = folder.with_name(f"{folder.name}-programs")
    _install_programs(programs)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FSQUEUE")}
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    environment |= {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    folder.mkdir()
    shells: list[Shell] = []
    try:
        for block in scene.blocks:
            for name, text in block.beside.items():
                (folder / name).write_text(text, encoding="utf-8")
            if "file" in block.marks:
                (folder / block.marks["file"]).write_text(block.text, encoding="utf-8")
            elif block.language == "python":
                _run_program(block, folder, environment)
            else:
                shells.append(Shell(folder, environment))
                _follow(block, shells[-1])
    finally:
        for shell in shells:
            shell.end()


def _install_programs(folder: Path) -> None:
    """Put `python` and `fsqueue` into a folder for PATH, such that they are those of the tests."""
    folder.mkdir()
    for name, arguments in (("python", ""), ("fsqueue", "-m fsqueue ")):
        (folder / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments}"$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)


def _run_program(block: Block, folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-W", block.marks.get("warnings", "error"), "-c", block.text],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=GUARD_S,
    )
    if done.returncode:
        pytest.fail(f"{block.page}, line {block.line}, ends with {done.returncode}:\n{done.stderr}", pytrace=False)
    wanted = block.printed if block.printed is not None else "\n".join(_PRINTS.findall(block.text))
    _compare(block, "what it prints", done.stdout, wanted)


def _follow(block: Block, shell: Shell) -> None:
    for command, expected in commands_of(block.text):
        wanted = normalised(expected)
        _compare(block, f"$ {command}", "\n".join(shell.run(command, len(wanted))), expected)


def _compare(block: Block, what: str, printed: str, expected: str) -> None:
    if normalised(printed) != normalised(expected):
        pytest.fail(f"{block.page}, line {block.line}, {what}:\n{printed}\ninstead of:\n{expected}", pytrace=False)


def commands_of(transcript: str) -> Iterator[tuple[str, str]]:
    """Yield each command of a transcript with what it prints."""
    command, printed = "", ""
    for line in transcript.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line[2:], ""
        elif line.startswith("> ") and not printed:
            command += f"\n{line[2:]}"
        else:
            printed += f"{line}\n"
    yield command, printed


def normalised(text: str) -> list[str]:
    """Return the lines of an output without what differs from run to run, and without a shell's notices on jobs."""
    text = re.sub(rf"\b{re.escape(os.uname().nodename)}\b", "node1", text)
    lines = []
    for line in text.rstrip().splitlines():
        if _JOB_NOTICE.match(line):
            continue
        for pattern, instead in _VARYING:
            line = pattern.sub(instead, line)
        lines.append(line.rstrip())
    return lines


class Shell:
    """A bash with its output in a pipe; it and what it started are killed by `end`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._unread = b""

    def run(self, command: str, lines: int) -> list[str]:
        """Run a command, and return what it prints.

        Waits until the command has ended and at least so many lines are there: one in the background prints later.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\necho '{_END}'\n".encode())
        self._process.stdin.flush()
        printed: list[str] = []
        ended, deadline = False, time.monotonic() + GUARD_S
        while not ended or len(normalised("\n".join(printed))) < lines:
            line = self._line(deadline)
            if line is None:
                printed.append("(nothing more came)")
                return printed
            if line == _END:
                ended = True
            else:
                printed.append(line)
        return printed

    def _line(self, deadline: float) -> str | None:
        """Return the next line; None at the shell's end, and when the time is up."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            data = os.read(fd, 1 << 16)
            if not data:
                return None
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode("utf-8", "replace")

    def end(self) -> None:
        """Kill the shell with all that it started."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
