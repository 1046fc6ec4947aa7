"""A pytest plugin: prints what the proof suite tried, at the end of the run, summed over its workers."""

from __future__ import annotations

from typing import Any

import pytest

from tests.sweeps.proof.tally import figures

_KEY = "what was tried"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker: hand the figures to the process that prints them."""
    output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_KEY] = dict(figures)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker has ended; one that crashed has nothing to say."""
    figures.update(getattr(node, "workeroutput", {}).get(_KEY, {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not figures:
        return
    terminalreporter.section("what was tried")
    for what, number in sorted(figures.items()):
        terminalreporter.write_line(f"{number:>10,}  {what}")
