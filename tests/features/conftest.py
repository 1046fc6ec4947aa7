"""Fixtures of the tests of feature stores and loaders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.loading import Site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(kind: str = "file", samples: int = 12) -> Site:
        made.append(Site(tmp_path, kind, samples))
        return made[-1]

    yield make
    for each in made:
        each.close()
