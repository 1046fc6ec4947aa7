"""An exception at every line of a call: the handle goes on, no lock is held, nothing is leased to nobody."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sweeps.proof import tally
from tests.sweeps.proof.interrupted import CALLS, Scene, interrupt
from tests.sweeps.proof.lines import lines_of

_STRIDE = 13


def sweep(tmp_path: Path, name: str, stride: int, error: type[BaseException]) -> None:
    """Interrupt a call at every stride-th of its lines; others for each call."""
    call = CALLS[name]
    scene = Scene(tmp_path / "whole", **call.options)
    call.prepare(scene)
    lines = lines_of(lambda: call.run(scene))
    scene.queue.close()
    scene.other.close()
    problems: list[str] = []
    for at in range(1 + len(name) % stride, lines + 1, stride):
        try:
            interrupt(tmp_path / str(at), call, at, error)
        except AssertionError as problem:
            problems.append(f"{at}: {problem}: {problem.__cause__!r}")
        tally.count("lines at which a call of a queue was interrupted: locks held, refs lost or leased to nobody 0")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", CALLS)
def test_interrupted_at_some_lines(tmp_path: Path, name: str) -> None:
    """After a Ctrl-C in the midst of a call the same handle works, holds no lock, and leases nothing to nobody."""
    sweep(tmp_path, name, _STRIDE, KeyboardInterrupt)


@pytest.mark.slow
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("name", CALLS)
def test_interrupted_at_every_line(tmp_path: Path, name: str, error: type[BaseException]) -> None:
    """The same at every line, and for an exception such as a signal handler of torch's DataLoader raises."""
    sweep(tmp_path, name, 1, error)
