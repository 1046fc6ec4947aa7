"""Packages that fsqueue plugs into, of pinned releases; what these require, which is gigabytes, is not installed."""

from __future__ import annotations

import importlib
import os
import warnings
from types import ModuleType

import pytest

INSTALL = "pip install --no-deps specforge==0.2.0 nemo_automodel==0.7.0"


def required(module: str) -> ModuleType:
    """Import a module of such a package; where it is not there, skip the tests and say how to get it. In CI, fail."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of theirs
            return importlib.import_module(module)
    except ImportError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{module} cannot be imported ({error}): `{INSTALL}`", allow_module_level=True)
