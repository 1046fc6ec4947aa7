"""Ctrl-C in the midst of a batch: what was moved by then is told, and nothing else is."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fsqueue.operate as operate
from fsqueue.cli import working
from fsqueue.operate import Outcome
from tests.support import Queue, assert_clean, names_in, numbered
from tests.support.program import run

COUNT = 6
MODULES = {"requeue": "fsqueue.operate.requeue", "release": "fsqueue.operate.operator"}
CALLS: dict[str, Callable[[Path, Queue, Any], object]] = {
    "requeue": lambda path, queue, each: operate.requeue_failed(path, each=each),
    "release": lambda path, queue, each: operate.release(path, queue.owner, force=True, each=each),
}


@pytest.fixture
def full(path: Path, queue: Queue) -> Queue:
    """A queue with six dead letters and six leases."""
    queue.put([*numbered(COUNT, "dead-"), *numbered(COUNT, "held-")])
    queue.fail(queue.get(COUNT), "no good", retryable=False)
    queue.get(COUNT)
    return queue


def interrupt(monkeypatch: pytest.MonkeyPatch, module: str, name: str, at: int, after: bool) -> None:
    """Let Ctrl-C come before or after the call of this number."""
    real, calls = getattr(sys.modules[module], name), []

    def interrupted(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == at and not after:
            raise KeyboardInterrupt
        result = real(*args)
        if len(calls) == at:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(sys.modules[module], name, interrupted)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("call", "step"), [*((call, step) for call in CALLS for step in ("fetch", "hand_in"))])
def test_what_was_moved_when_ctrl_c_came_is_told(
    path: Path, full: Queue, monkeypatch: pytest.MonkeyPatch, call: str, step: str, after: bool
) -> None:
    module = "fsqueue.operate.operator" if step == "hand_in" else MODULES[call]
    interrupt(monkeypatch, module, step, 3, after)
    told: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        CALLS[call](path, full, told.append)
    assert sorted(f"{it.sample_id}.json" for it in told if it.moved) == sorted(names_in(path, "pending"))
    assert len(told) == len({it.sample_id for it in told}) >= 2
    assert_clean(path)


def test_ctrl_c_while_it_is_told_ends_the_telling_no_earlier(path: Path, full: Queue) -> None:
    told: list[str] = []

    def each(outcome: Outcome) -> None:
        if outcome.sample_id not in told:
            told.append(outcome.sample_id)
            if len(told) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        operate.requeue_failed(path, each=each)
    assert sorted(f"{it}.json" for it in told) == sorted(names_in(path, "pending")) and len(told) == COUNT


def test_ctrl_c_waits_for_the_line_that_is_printed(path: Path, full: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    real = vars(working)["data"]

    def data(text: str) -> None:
        if "00001" in text:
            signal.raise_signal(signal.SIGINT)
        real(text)

    monkeypatch.setattr(working, "data", data)
    said = run("requeue", path, "--failed")
    assert said.exit_code == 130 and "requeued 6 of 6 refs" in said.stderr
    assert said.stdout.splitlines() == [f"dead-{number:05}" for number in range(COUNT)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
