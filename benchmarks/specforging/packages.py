"""SpecForge itself, of the release that this is about; where it is not installed, it is put into a folder."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

VERSION = "0.2.0"


class NoPackageError(Exception):
    """SpecForge, or what it imports, cannot be had."""


def ready(folder: Path) -> list[str]:
    """Return what to add to a process's import path so that SpecForge is there; installs it where it is not."""
    lacking = [name for name in ("torch", "transformers", "safetensors") if importlib.util.find_spec(name) is None]
    if lacking:
        raise NoPackageError(f"{', '.join(lacking)} is not installed: pip install '.[demo]'")
    if sys.version_info < (3, 11):
        raise NoPackageError(f"SpecForge needs Python 3.11 or newer, this is {sys.version.partition(' ')[0]}")
    if importlib.util.find_spec("specforge") is not None:
        return []
    wanted = f"specforge=={VERSION}"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoPackageError(f"{' '.join(command)} failed: {done.stderr.strip()[-400:]}")
    return [str(folder)]
