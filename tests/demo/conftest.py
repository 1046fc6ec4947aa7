"""Fixtures of the demo's tests."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a model of two random layers."""
    from tests.support.tiny_target import make_tiny_target  # needs torch and transformers

    return make_tiny_target(tmp_path_factory.mktemp("tiny-target"))
