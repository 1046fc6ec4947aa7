"""Packages that fsqueue plugs into, of pinned releases; what these require, which is gigabytes, is not installed."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import pytest


def required(module: str) -> ModuleType:
    """Import a module of such a package; where it is not there, skip the tests, but not under `.ci/upstream`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of theirs
            return importlib.import_module(module)
    except ImportError as error:
        if module.partition(".")[0] in os.environ.get("FSQUEUE_UPSTREAM", "").split():
            raise
        pytest.skip(f"{module} cannot be imported ({error}): .ci/upstream installs it", allow_module_level=True)
