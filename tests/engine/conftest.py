"""Fixtures of the engine's tests."""

from __future__ import annotations

import pytest

from fsqueue.engine import lock


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that another holds is waited for briefly."""
    monkeypatch.setattr(lock, "GET_PATIENCE_S", 0.05)
    monkeypatch.setattr(lock, "PUT_TIMEOUT_S", 0.1)
