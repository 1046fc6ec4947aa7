"""Fixtures of the sources' tests: servers in miniature, and a store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("urllib3")

from fsqueue.features import SharedDirFeatureStore
from tests.support.inference import FakeSglang, FakeVllm


@pytest.fixture
def states(tmp_path: Path) -> Path:
    """The directory that the connector writes into."""
    (tmp_path / "states").mkdir()
    return tmp_path / "states"


@pytest.fixture
def vllm(states: Path) -> Iterator[FakeVllm]:
    server = FakeVllm(states)
    yield server
    server.close()


@pytest.fixture
def sglang() -> Iterator[FakeSglang]:
    server = FakeSglang()
    yield server
    server.close()


@pytest.fixture
def store(tmp_path: Path) -> SharedDirFeatureStore:
    return SharedDirFeatureStore(tmp_path / "features")
