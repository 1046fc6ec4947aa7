"""Another build beside this one: processes that import its fsqueue."""

from __future__ import annotations

import os
from pathlib import Path

_BENCHMARKS = Path(__file__).resolve().parents[1]


def importing(checkout: str | None) -> dict[str, str]:
    """Return variables with which Python imports the fsqueue of a checkout, or this one's, and these benchmarks."""
    path = [checkout or str(_BENCHMARKS.parent), str(_BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
