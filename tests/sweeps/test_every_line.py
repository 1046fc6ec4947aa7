"""An exception at every line of a call: the handle goes on, no lock is held, nothing is leased to nobody."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweeps.proof import tally
from tests.sweeps.proof.interrupted import CALLS, Call, Scene, interrupt
from tests.sweeps.proof.interrupted_ledger import LEDGER_CALLS, interrupt_ledger, prepared
from tests.sweeps.proof.interrupted_stream import STREAM_CALLS, StreamScene
from tests.sweeps.proof.lines import lines_of

_STRIDE = 47

# An exception that comes while an object ends, a generator say, is reported by the interpreter and goes nowhere.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def sweep(lines: int, stride: int, name: str, what: str, interrupt_at: Callable[[int], object]) -> None:
    """Interrupt a call at every stride-th of its lines; others for each call."""
    problems: list[str] = []
    for at in range(1 + len(name) % stride, lines + 1, stride):
        try:
            interrupt_at(at)
        except AssertionError as problem:
            problems.append(f"line {at}: {problem}: {problem.__cause__!r}")
        tally.count(f"lines at which a call of a {what} was interrupted: locks held, refs lost or leased to nobody 0")
    assert not problems, "\n".join(problems)


def sweep_queue(
    tmp_path: Path, name: str, call: Call, stride: int, error: type[BaseException], kind: type[Scene] = Scene
) -> None:
    scene = kind(tmp_path / "whole", **call.options)
    call.prepare(scene)
    lines = lines_of(lambda: call.run(scene))
    scene.settle()
    scene.queue.close()
    scene.other.close()
    what = "queue" if kind is Scene else "stream"
    sweep(lines, stride, name, what, lambda at: interrupt(tmp_path / str(at), call, at, error, kind))


def sweep_ledger(tmp_path: Path, name: str, stride: int, error: type[BaseException]) -> None:
    with prepared(tmp_path / "whole") as ledger:
        lines = lines_of(lambda: LEDGER_CALLS[name](ledger))
    sweep(lines, stride, name, "ledger", lambda at: interrupt_ledger(tmp_path / str(at), name, at, error))


@pytest.mark.parametrize("name", CALLS)
def test_interrupted_at_some_lines(tmp_path: Path, name: str) -> None:
    """After a Ctrl-C in the midst of a call the same handle works, holds no lock, and leases nothing to nobody."""
    sweep_queue(tmp_path, name, CALLS[name], _STRIDE, KeyboardInterrupt)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", CALLS)
def test_interrupted_at_every_line(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    """The same at every line, and for an exception such as a signal handler of torch's DataLoader raises."""
    sweep_queue(tmp_path, name, CALLS[name], 1 if error is KeyboardInterrupt else 7, error)


@pytest.mark.parametrize("name", STREAM_CALLS)
def test_a_stream_interrupted_at_some_lines(tmp_path: Path, name: str) -> None:
    """After a Ctrl-C in a stream's call, too, and no member lives for ever whose block has ended."""
    sweep_queue(tmp_path, name, STREAM_CALLS[name], 2 * _STRIDE + 3, KeyboardInterrupt, StreamScene)


@pytest.mark.slow
@pytest.mark.parametrize("name", STREAM_CALLS)
def test_a_stream_interrupted_at_every_line(tmp_path: Path, name: str) -> None:
    """The same at every line."""
    sweep_queue(tmp_path, name, STREAM_CALLS[name], 1, KeyboardInterrupt, StreamScene)


@pytest.mark.parametrize("name", LEDGER_CALLS)
def test_ledger_interrupted_at_some_lines(tmp_path: Path, name: str) -> None:
    """After a Ctrl-C in the midst of a transaction the same ledger works, and what it says is what is written."""
    sweep_ledger(tmp_path, name, 11, KeyboardInterrupt)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", LEDGER_CALLS)
def test_ledger_interrupted_at_every_line(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    """The same at every line."""
    sweep_ledger(tmp_path, name, 1, error)
