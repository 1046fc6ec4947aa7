"""Long work: what is shown of it, on a terminal and elsewhere, and what Ctrl-C leaves and says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.cli import working
from fsqueue.engine.layout import Layout
from tests.support import assert_clean, names_in, numbered
from tests.support.program import run
from tests.support.terminal import Terminal

COUNT = 6
PAUSED = """
import signal, sys
from fsqueue.cli import main, working
from fsqueue.engine.layout import Layout
Layout.batch_size = 2
take_note = working.Working.progress
def progress(work, done, total):
    take_note(work, done, total)
    if done >= 2:
        print("there", file=sys.stderr, flush=True)
        signal.pause()
working.Working.progress = progress
main.main()
"""
AT_ONCE = """
from fsqueue.cli import main, working
from fsqueue.engine.layout import Layout
Layout.batch_size = 2
working.BAR_AFTER_S = working.LINE_EVERY_S = working._LOOK_EVERY_S = 0.0
main.main()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue with dead letters, refs done at steps, and refs pending, six of each."""
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        queue.put([*numbered(COUNT, "dead-"), *numbered(COUNT, "done-"), *numbered(COUNT, "p-")])
        queue.fail(queue.get(COUNT), "no good", retryable=False)
        queue.ack(queue.get(COUNT), step=7)
    return tmp_path / "q"


def program(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


# What each command prints when it is interrupted after two, and in which state it leaves six refs once it was repeated.
LONG = {
    "requeue": (["requeue", "--failed"], "requeued 2 of 6 refs; run it again", "failed", 0),
    "rewind": (["rewind", "--after-step", "6"], "2 of 6 refs rewound; run it again", "done", 0),
    "purge": (["purge", "--state", "failed", "--older-than", "0"], "2 of 6 files removed; run it again", "failed", 0),
    "pack": (["pack", "--older-than", "0"], "0 of 6 refs packed; run it again", "done", 1),
    "check": (["check"], " files checked; ", "failed", COUNT),
}


@pytest.mark.parametrize("name", LONG)
def test_ctrl_c_says_how_far_it_came_and_the_same_command_does_the_rest(path: Path, name: str) -> None:
    arguments, says, state, left = LONG[name]
    command = program(PAUSED, *arguments, "--queue", path)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None and process.stderr.readline() == "there\n"
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.startswith("interrupted: ") and says in said and said.count("\n") == 1, said
    assert len(printed.splitlines()) == (2 if name in ("requeue", "rewind", "purge") else 0), "as they went"
    assert_clean(path)
    assert run(*arguments, "--queue", path).exit_code == 0
    assert len(names_in(path, state)) == left
    assert_clean(path)


def test_a_repair_that_is_interrupted_goes_on_with_the_others(path: Path) -> None:
    for name in ("a", "b", "c"):
        (path / "pending" / f"{name}.json").write_text("{")
    code = PAUSED.replace("done >= 2", "work._noun == 'step' and total == 3 and done == 2")
    command = program(code, "check", path, "--repair")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while process.stderr.readline() != "there\n":
            pass
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted: 2 violations looked into; run it again for the others\n")
    assert run("check", path, "--repair").exit_code == 0
    assert {"a.json", "b.json", "c.json"} <= set(names_in(path, "failed"))


def test_interrupted_json_tells_what_was_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Layout, "batch_size", 2)

    def stop(work: working.Working, done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    monkeypatch.setattr(working.Working, "progress", stop)
    result = run("requeue", path, "--failed", "--json")
    assert result.exit_code == 130
    assert [outcome["moved"] for outcome in json.loads(result.stdout)] == [True, True]


def test_an_interrupted_purge_tells_as_json_what_it_removed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(work: working.Working, done: int, total: int | None) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(working.Working, "progress", stop)
    result = run("purge", path, "--state", "failed", "--older-than", "0", "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["removed"] == ["dead-00000.json", "dead-00001.json"]


def test_a_terminal_shows_a_bar_with_rate_and_time_left_below_the_ids(path: Path) -> None:
    with Terminal(program(AT_ONCE, "requeue", path, "--failed")) as terminal:
        text = terminal.end()
    assert terminal.process.returncode == 0
    for shown in ("requeueing", "6/6\x1b[0m refs", "/s", "0:00:0", *(f"dead-{number:05}" for number in range(COUNT))):
        assert shown in text, shown
    assert text.count("dead-00003") == 1


def test_ids_that_go_into_a_file_are_not_in_the_bar_s_way(path: Path, tmp_path: Path) -> None:
    command = program(AT_ONCE, "purge", path, "--state", "failed", "--older-than", "0", "--yes")
    with Terminal(["sh", "-c", '"$@" > "$0"', str(tmp_path / "ids"), *command]) as terminal:
        text = terminal.end()
    assert "removing" in text and "dead-" not in text
    assert (tmp_path / "ids").read_text().splitlines() == [f"failed/dead-{number:05}.json" for number in range(COUNT)]


def test_elsewhere_lines_tell_of_it(path: Path) -> None:
    command = program(AT_ONCE, "requeue", path, "--failed")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    said = [line.partition(" refs")[0] for line in done.stderr.splitlines()]
    assert said == [
        "requeueing: 0", "requeueing: 2 of 6", "requeueing: 4 of 6", "requeueing: 6 of 6", "requeued 6",
    ]  # fmt: skip
    assert done.stderr.count("/s, ") == done.stderr.count(" left") == 2 and "\x1b" not in done.stderr


@pytest.mark.parametrize("name", LONG)
def test_quiet_says_nothing(path: Path, name: str) -> None:
    command = program(AT_ONCE, *LONG[name][0], "--queue", path, "--quiet")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""


def test_what_is_over_soon_shows_nothing(path: Path) -> None:
    """No terminal library is loaded for it, either."""
    code = "import sys\nfrom fsqueue.cli.main import cli\ncli.main(sys.argv[1:], standalone_mode=False)\n"
    code = f"from fsqueue.cli import working\nworking.BAR_AFTER_S = 600.0\n{code}print('rich' in sys.modules)"
    with Terminal(program(code, "requeue", path, "--failed")) as terminal:
        text = terminal.end()
    assert text.endswith("requeued 6 refs\r\nFalse\r\n") and "requeueing" not in text


@pytest.mark.parametrize(("answer", "left", "code"), [(b"n\n", COUNT, 1), (b"\n", COUNT, 1), (b"y\n", 0, 0)])
def test_purge_asks_on_a_terminal(path: Path, answer: bytes, left: int, code: int) -> None:
    command = program(AT_ONCE, "purge", path, "--state", "failed", "--older-than", "0")
    with Terminal(command) as terminal:
        text = terminal.read_until(lambda text: "[y/N]" in text, "the question")
        assert f"This removes 6 files in {path}/failed, for good." in " ".join(text.split())
        assert len(names_in(path, "failed")) == COUNT
        terminal.press(answer)
        terminal.end()
    assert (terminal.process.returncode, len(names_in(path, "failed"))) == (code, left)


def test_purge_counts_packed_refs_and_with_yes_does_not_ask(path: Path) -> None:
    assert run("pack", path, "--older-than", "0").exit_code == 0
    with Terminal(program(AT_ONCE, "purge", path, "--state", "done", "--older-than", "0", "--yes")) as terminal:
        text = terminal.end()
    assert "[y/N]" not in text and "removed 6 refs in 1 file" in text
    assert names_in(path, "done") == []
