"""Lets simulated creators wait as long as real ones do: their time is a simulated one."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def creators_settle_soon() -> None:
    """They settle when others do."""
