"""Tell how large a sample will be in memory, by its ref alone. Imports no torch."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_BITS = re.compile(r"\d+")


def bytes_of(ref: Any) -> int | None:
    """Return the bytes of a sample's features: what its specs add up to, or what is estimated, if that is more.

    None where the ref says neither. The estimate is the file's size, unless whoever made the ref gave another one.
    """
    specs = getattr(ref, "feature_specs", None)
    widths = [_bytes_of_spec(spec) for spec in specs.values()] if isinstance(specs, Mapping) else []
    by_specs = None if not widths or None in widths else sum(width or 0 for width in widths)
    known = [it for it in (by_specs, getattr(ref, "estimated_bytes", None)) if isinstance(it, int) and it > 0]
    return max(known, default=by_specs)


def _bytes_of_spec(spec: Any) -> int | None:
    """Go by the type's name: ``float8_e4m3fn`` has eight bits; None where it does not say, or the class has others."""
    dtype, shape = getattr(spec, "dtype", None), getattr(spec, "shape", None)
    if not isinstance(dtype, str) or not isinstance(shape, (list, tuple)):
        return None
    bits = 8 if dtype == "bool" else next(map(int, _BITS.findall(dtype)), None)
    fixed = all(isinstance(size, int) and size >= 0 for size in shape)
    return math.prod(shape) * bits // 8 if bits is not None and fixed else None
