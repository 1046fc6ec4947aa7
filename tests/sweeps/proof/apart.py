"""A process apart, for tests that fork by the thousand.

A fork copies the page tables of everything that its process has imported, and what the whole test suite imports
makes that five times as long. This process imports what is run in it, and no more.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from tests.support import Child
from tests.sweeps.proof import tally


def _serve(pipe: Connection) -> None:
    warnings.simplefilter("error")
    while (job := pipe.recv()) is not None:
        work, args, kwargs = job
        tally.figures.clear()
        problem = None
        try:
            work(*args, **kwargs)
        except Exception:
            problem = traceback.format_exc()
        pipe.send((problem, tally.figures))


class Apart:
    """Calls functions in a process of its own; their figures are added to this process's."""

    def __init__(self) -> None:
        self._child: Child | None = None

    def __call__(self, work: Callable[..., None], *args: Any, **kwargs: Any) -> None:
        """Run a module's function; what it raises fails the test."""
        if self._child is None:
            self._child = Child(_serve)
        try:
            self._child.send((work, args, kwargs))
            problem, figures = self._child.pipe.recv()
        except BaseException:
            self._child.kill()  # it is in the middle of something
            self._child = None
            raise
        tally.figures.update(figures)
        if problem is not None:
            pytest.fail(problem, pytrace=False)

    def close(self) -> None:
        if self._child is not None:
            self._child.send(None)
            self._child.join()
