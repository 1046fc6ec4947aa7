"""Fixtures of the contract's tests: the implementations that each of them holds for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.implementations import EVERY, FULL, SHARED, Implementation


def _implementation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Implementation]:
    it = Implementation(request.param, tmp_path)
    yield it
    it.close()


@pytest.fixture(params=EVERY)
def any_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Implementation]:
    """Every implementation."""
    yield from _implementation(request, tmp_path)


@pytest.fixture(params=SHARED)
def shared_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Implementation]:
    """Those that several handles share."""
    yield from _implementation(request, tmp_path)


@pytest.fixture(params=FULL)
def full_queue(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Implementation]:
    """Those with fencing, attempts, release, renew, dead letters and counts."""
    yield from _implementation(request, tmp_path)
