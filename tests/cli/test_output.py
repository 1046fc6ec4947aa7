"""What becomes of a command whose output nobody takes: a cut pipe, a full disk, a stream that was closed."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

import fsqueue.operate as operate
from fsqueue import FileSampleRefQueue
from tests.support import assert_clean, numbered, refs
from tests.support.program import PROGRAM, run

COUNT = 300
MANY = {
    "discard": "--older-than 0",
    "requeue": "--failed",
    "purge": "--state failed --older-than 0",
    "rewind": "--after-step 0",
}


def shell(command: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a command of bash in which FSQUEUE is the program; its name and the queue's come first."""
    line = command.replace("FSQUEUE", " ".join(PROGRAM)).replace("QUEUE", str(path))
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue of long ids, more than a pipe holds in one write, in pending, failed and done."""
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        queue.put(numbered(3 * COUNT, "x" * 100))
        queue.fail(queue.get(COUNT), "no good", retryable=False)
        queue.ack(queue.get(COUNT), step=7)
    return tmp_path / "q"


@pytest.mark.parametrize("name", MANY)
def test_a_cut_pipe_ends_with_141_and_not_a_word(path: Path, name: str) -> None:
    said = shell(f"FSQUEUE {name} QUEUE {MANY[name]} | true; exit ${{PIPESTATUS[0]}}", path)
    assert (said.returncode, said.stderr) == (141, "")
    assert_clean(path)


def test_help_into_a_cut_pipe_ends_with_141(path: Path) -> None:
    said = shell("FSQUEUE --help | true; exit ${PIPESTATUS[0]}", path)
    assert (said.returncode, said.stderr) == (141, "")


@pytest.mark.parametrize("name", [*MANY, "status", "ls", "--help"])
@pytest.mark.parametrize(("to", "why"), [("/dev/full", "No space left on device"), ("&-", "Bad file descriptor")])
def test_an_output_that_takes_nothing_is_one_line_about_the_output(path: Path, name: str, to: str, why: str) -> None:
    said = shell(f"FSQUEUE {name} QUEUE {MANY.get(name, '')} >{to}", path)
    assert said.returncode == 1
    assert said.stderr == f"Error: cannot write to stdout: {why}; what was done until then stays done\n"
    assert_clean(path)


@pytest.mark.parametrize("to", ["&-", "/dev/full"])
def test_without_stderr_the_work_is_done(tmp_path: Path, to: str) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        queue.put(refs("a", "b"))
    said = shell(f"FSQUEUE discard QUEUE --older-than 0 2>{to}", tmp_path / "q")
    assert (said.returncode, said.stdout) == (0, "a\nb\n")
    assert operate.counts(tmp_path / "q") == (0, 0, 0, 2)
    assert shell(f"FSQUEUE status {tmp_path}/none 2>{to}", tmp_path / "q").returncode == 3
    assert shell(f"FSQUEUE requeue QUEUE 2>{to}", tmp_path / "q").returncode == 2


def test_without_stdin_no_ids_are_read(path: Path) -> None:
    said = shell("FSQUEUE requeue QUEUE - <&-", path)
    assert (said.returncode, said.stdout) == (0, "") and "Traceback" not in said.stderr


@pytest.mark.parametrize("kind", ["a pipe", "a symlink", "a directory", "a socket"])
@pytest.mark.parametrize("command", [["report", "-o"], ["metrics", "--textfile"]])
def test_only_a_regular_file_is_replaced(path: Path, tmp_path: Path, command: list[str], kind: str) -> None:
    (tmp_path / "real").write_text("kept")
    there = tmp_path / "out"
    if kind == "a pipe":
        os.mkfifo(there)
    elif kind == "a symlink":
        there.symlink_to(tmp_path / "real")
    elif kind == "a directory":
        there.mkdir()
    else:
        os.mknod(there, 0o600 | stat.S_IFSOCK)
    before = there.lstat()
    said = run(command[0], path, command[1], there)
    assert said.exit_code == 1 and f"{there} is {kind}, and no regular file" in said.stderr
    after = there.lstat()
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert (tmp_path / "real").read_text() == "kept" and sorted(os.listdir(tmp_path)) == ["out", "q", "real"]
    assert run(command[0], path, command[1], tmp_path / "real").exit_code == 0
    assert (tmp_path / "real").read_text() != "kept"


WORDS = {
    "pause QUEUE --reason WORD": 0,
    "discard QUEUE --older-than 0 --reason WORD": 0,
    "discard QUEUE --older-than 0 --where a=WORD": 0,
    "requeue QUEUE --reason WORD": 0,
    "requeue QUEUE --owner WORD": 0,
    "requeue QUEUE WORD": 1,
    "show QUEUE WORD": 1,
    "release QUEUE --owner WORD": 1,
    "ls QUEUE --owner WORD": 0,
    "init QUEUE/new --run-id WORD": 0,
}


@pytest.mark.parametrize("command", WORDS)
@pytest.mark.parametrize(("word", "locale"), [(r"$'\xff'", ""), ("é", "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 ")])
def test_words_are_taken_as_they_were_typed_or_escaped(tmp_path: Path, command: str, word: str, locale: str) -> None:
    """A byte that is no UTF-8 is no reason for a traceback, and no locale one to refuse what is UTF-8."""
    FileSampleRefQueue(tmp_path / "q").close()
    said = shell(f"{locale}FSQUEUE {command.replace('WORD', word)}", tmp_path / "q")
    assert said.returncode == WORDS[command] and "Traceback" not in said.stderr, said
    if "pause" in command:
        paused = operate.status(tmp_path / "q").paused
        assert paused is not None and paused.reason == ("é" if locale else r"\xff")


def test_ids_on_stdin_that_are_no_utf_8_are_told_escaped(path: Path) -> None:
    said = shell(r"printf '\xff\n' | FSQUEUE requeue QUEUE -", path)
    assert (said.returncode, said.stdout) == (1, "") and r"not \xff: neither in failed/ nor in done/" in said.stderr
