"""A pytest plugin: prints what the proof suite tried, at the end of the run."""

from __future__ import annotations

import pytest

from proof.tally import figures


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not figures:
        return
    terminalreporter.section("what was tried")
    for what, number in sorted(figures.items()):
        terminalreporter.write_line(f"{number:>10,}  {what}")
