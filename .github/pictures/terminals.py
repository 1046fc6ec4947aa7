"""Show what `fsqueue status` and `fsqueue top` look like: `python .github/pictures/terminals.py` writes both SVGs.

A producer and two trainers work on a queue meanwhile, as processes; the commands run on a terminal of their own.
"""

from __future__ import annotations

import fcntl
import io
import multiprocessing
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from fsqueue import FileSampleRefQueue

HERE = Path(__file__).resolve().parent
COLUMNS, LINES = 96, 22
FIRST = "\x1b[H"
_WEB_FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
_FONT = re.compile(r"Fira Code")


@dataclass(frozen=True)
class Sample:
    sample_id: str
    tokens: int


def be_on_node1() -> None:
    """Keep this host's name out of the pictures."""
    here = os.uname()
    there = os.uname_result((here.sysname, "node1", here.release, here.version, here.machine))
    setattr(os, "uname", lambda: there)  # noqa: B010


def produce(path: str) -> None:
    be_on_node1()
    with FileSampleRefQueue(path, ref_type=Sample, owner="rollout-0") as queue, queue.producer("rollout-0"):
        for number in range(100_000):
            queue.put_when_below([Sample(f"sample-{number:05}", 128)], high=96, low=48)
            time.sleep(0.002)


def train(path: str, name: str, batch: int) -> None:
    be_on_node1()
    with (
        FileSampleRefQueue(path, ref_type=Sample, owner=name, heartbeat_s=5) as queue,
        queue.consumer(name),
    ):
        step = 0
        while refs := queue.get(batch, timeout_s=60):
            time.sleep(0.05 * batch)
            step += 1
            if step == 3:
                queue.fail(refs[:1], "the sample's features are of another shape", retryable=False)
                refs = refs[1:]
            queue.ack(refs, step=step)


def command() -> None:
    """Run the program on this other host, whose processes it would not know of otherwise."""
    from fsqueue.cli.main import main

    be_on_node1()
    main()


def screen(command: list[str], folder: str) -> str:
    """Return what a command has written to a terminal by its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES)}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=environment):
        os.close(theirs)
        written = b""
        try:
            while data := os.read(ours, 1 << 16):
                written += data
        except OSError:  # the other end is closed: Linux says EIO
            pass
    os.close(ours)
    return written.decode("utf-8").replace("\r\n", "\n")


def last_frame(written: str) -> str:
    """Return the last whole picture of a program that draws each one from the screen's upper left corner."""
    return written.split("\x1b[?1049l")[0].split(FIRST)[-1]


def as_svg(frame: str, title: str, unique_id: str) -> str:
    """Return a terminal's content as rich draws it."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text.from_ansi(frame.rstrip()), soft_wrap=False, no_wrap=True, crop=True)
    svg = console.export_svg(title=title, unique_id=unique_id)
    return _FONT.sub("ui-monospace, Menlo, DejaVu Sans Mono", _WEB_FONT.sub("", svg))


def draw(target: Path, looks: int = 40, interval: str = "250ms") -> None:
    """Write status.svg and top.svg into a folder.

    Args:
        looks: how often `top` looks before its last look is taken.
        interval: the time between two looks.
    """
    fsqueue = [sys.executable, "-c", "import terminals; terminals.command()"]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "queue")
        queue = FileSampleRefQueue(path, ref_type=Sample, lease_timeout_s=60, run_id="run-1")
        queue.publish_quantum(dp_size=2, batch_size=8)
        spawn = multiprocessing.get_context("spawn")
        members = [
            spawn.Process(target=produce, args=(path,)),
            spawn.Process(target=train, args=(path, "trainer-0", 8)),
            spawn.Process(target=train, args=(path, "trainer-1", 8)),
        ]
        for member in members:
            member.start()
        try:
            while len(queue.stream().members()) < len(members) and all(member.is_alive() for member in members):
                time.sleep(0.1)
            top = screen([*fsqueue, "top", "queue", "--interval", interval, "--count", f"{looks}"], folder)
            status = screen([*fsqueue, "status", "queue", "--watch", "2s", "--count", "1"], folder)
        finally:
            for member in members:
                member.kill()
                member.join()
            queue.close()
    (target / "top.svg").write_text(as_svg(last_frame(top), "fsqueue top queue", "top"), encoding="utf-8")
    (target / "status.svg").write_text(as_svg(status, "fsqueue status queue --watch 2s", "status"), encoding="utf-8")


if __name__ == "__main__":
    draw(HERE)
    print(HERE / "status.svg", HERE / "top.svg")
