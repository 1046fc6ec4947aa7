"""`fsqueue top`, on a real pseudo-terminal and off one."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.cli.screen import sparkline
from tests.support import Child, lease_and_obey, numbered, refs
from tests.support.program import PROGRAM, run
from tests.support.terminal import Terminal

TOP = [*PROGRAM, "top"]
ENTER_SCREEN, LEAVE_SCREEN = "\x1b[?1049h", "\x1b[?1049l"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue with three pending refs."""
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=600.0, durable=False) as queue:
        queue.put(refs("a", "b", "c"))
    return tmp_path / "q"


def watch(path: Path, *options: str) -> Terminal:
    return Terminal([*TOP, str(path), *options])


def shows(state: str, number: int) -> re.Pattern[str]:
    return re.compile(rf"{state}\s+{number}\b")


def test_q_quits_and_leaves_the_terminal_as_it_was(path: Path) -> None:
    with watch(path, "--interval", "1h") as terminal:
        terminal.read_until(lambda text: shows("pending", 3).search(text) is not None, "the first view")
        assert terminal.text.startswith(ENTER_SCREEN) or ENTER_SCREEN in terminal.text
        terminal.press(b"q")
        text = terminal.end()
        assert terminal.process.returncode == 0
        assert LEAVE_SCREEN in text
        assert terminal.settings() == terminal.before


def test_other_keys_do_nothing(path: Path) -> None:
    with watch(path, "--interval", "10ms") as terminal:
        terminal.read_until(lambda text: "pending" in text, "the first view")
        terminal.press(b"xyz\x1b[A ")
        (path / "pending" / "a.json").rename(path / "done" / "a.json")
        terminal.read_until(lambda text: shows("done", 1).search(text) is not None, "the next view")
        terminal.press(b"Q")
        terminal.end()
        assert terminal.process.returncode == 0


def test_ctrl_c_exits_with_130_and_leaves_the_terminal_as_it_was(path: Path) -> None:
    with watch(path, "--interval", "1h") as terminal:
        terminal.read_until(lambda text: "HEARTBEAT" in text, "the first view")
        os.kill(terminal.process.pid, 2)
        text = terminal.end()
        assert terminal.process.returncode == 130
        assert "Traceback" not in text and LEAVE_SCREEN in text
        assert terminal.settings() == terminal.before


def test_the_view_follows_the_queue(path: Path) -> None:
    with Child(lease_and_obey, path, 1, {"durable": False}) as child, watch(path, "--interval", "10ms") as terminal:
        owner, _ = child.receive()
        terminal.read_until(lambda text: shows("leased", 1).search(text) is not None, "the lease")
        terminal.read_until(lambda text: owner in text and "alive" in text, "its owner")
        child.send("ack")
        child.receive()
        terminal.read_until(lambda text: shows("done", 1).search(text) is not None, "the ack")
        child.kill()
        terminal.read_until(lambda text: "dead" in text, "the owner's end")
        terminal.press(b"q")
        terminal.end()


def test_a_queue_that_goes_away_ends_it_in_one_line(path: Path) -> None:
    with watch(path, "--interval", "10ms") as terminal:
        terminal.read_until(lambda text: "pending" in text, "the first view")
        path.rename(path.with_name("elsewhere"))
        text = terminal.end()
        assert terminal.process.returncode == 3
        assert "Error: queue" in text and "Traceback" not in text
        assert terminal.settings() == terminal.before


def test_count_ends_it(path: Path) -> None:
    with watch(path, "--interval", "10ms", "--count", "3") as terminal:
        terminal.end()
        assert terminal.process.returncode == 0


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_every_number_is_whole_on_a_narrow_terminal_and_on_a_wide_one(tmp_path: Path, columns: int) -> None:
    """What does not fit is left out by the column, or cut where it is a name."""
    path = tmp_path / "a-queue-whose-path-is-as-long-as-paths-are-where-many-people-share-a-filesystem"
    owner = "trainer-0-under-a-name"
    with FileSampleRefQueue(path, durable=False, owner=owner, heartbeat_s=5.0) as queue:
        queue.put(numbered(1500))
        queue.ack(queue.get(1234))
        queue.get(100)
        queue.publish_quantum(dp_size=4, batch_size=8, accumulation_steps=2)
        command = [*TOP, str(path), "--interval", "10ms", "--count", "2"]
        with queue.producer("rollout-0"), Terminal(command, columns=columns) as terminal:
            frame = terminal.end().split(LEAVE_SCREEN)[0].split("\x1b[H")[-1]
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame).replace("\r", "").splitlines()
    assert max(map(len, shown)) <= columns
    text = "\n".join(shown)
    assert shown[0].rstrip().endswith("filesystem" + shown[0].rstrip()[-19:]) and shown[0].rstrip().endswith("q quits")
    for state, number in (("pending", "166"), ("leased", "100"), ("done", "1,234"), ("failed", "0")):
        assert re.search(rf"^{state}\s+{number}\b", text, re.MULTILINE), text
    assert "rollout-0" in text and "joined" in text and "64 refs at a time" in text
    assert re.search(rf"{owner[:20]}\S*( +alive)? +100\b", text), text
    assert "LEASES" in text and ("HEARTBEAT" in text) == (columns > 40)


def test_it_never_looks_more_than_a_few_times_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("fsqueue.cli.top.time.sleep", slept.append)
    assert run("top", path, "--interval", "0", "--count", "3").exit_code == 0
    assert slept == [0.2, 0.2]


def test_off_a_terminal_it_prints_plain_lines(path: Path) -> None:
    command = [*TOP, str(path), "--interval", "10ms", "--count", "3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stderr) == (0, "")
    first, *others = result.stdout.splitlines()
    assert "pending 3  leased 0  done 0  failed 0  owners 0  oldest lease -" in first
    assert len(others) == 2 and all("put 0.0/s" in line for line in others)


def test_without_a_keyboard_it_still_shows_the_screen(path: Path) -> None:
    command = f"{' '.join(TOP)} {path} --interval 10ms --count 2 </dev/null"
    with Terminal(["bash", "-c", command]) as terminal:
        assert shows("pending", 3).search(terminal.end())
        assert terminal.process.returncode == 0


@pytest.mark.parametrize(
    ("values", "line"),
    [([], ""), ([0.0, 0.0], "  "), ([1.0], "█"), ([0.0, 4.0, 8.0], " ▄█"), ([1e-9, 1e9], " █")],
)
def test_the_sparkline_is_as_high_as_its_largest_value(values: list[float], line: str) -> None:
    assert sparkline(values) == line
