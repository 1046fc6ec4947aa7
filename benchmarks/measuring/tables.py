"""Tables as aligned text, and quantiles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def quantile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Plain text with aligned columns; the first column is left-aligned, the others right."""
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
    ruled = [header, ["-" * width for width in widths], *lines]
    first = widths[0]
    return "\n".join(
        "  ".join([line[0].ljust(first), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
        for line in ruled
    )
