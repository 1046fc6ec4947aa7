"""A picture of a run: throughput and get latency over the backlog. Needs matplotlib."""

from __future__ import annotations

from typing import Any

import matplotlib
from matplotlib import pyplot
from subjects import SUBJECTS


def plot(rows: list[dict[str, Any]], title: str, path: str) -> None:
    """Two panels for the largest batch: refs/s for each number of processes, and the median get in one."""
    matplotlib.use("Agg")
    batch = max(row["batch"] for row in rows)
    counts = sorted({row["processes"] for row in rows})
    figure, axes = pyplot.subplots(1, len(counts) + 1, figsize=(5 * (len(counts) + 1), 4.5), layout="constrained")
    figure.suptitle(title, fontsize=8)
    for axis, processes in zip(axes, counts, strict=False):
        _lines(axis, rows, batch, processes, "refs_per_s")
        axis.set(title=f"put + get + ack, batch {batch}, {processes} process(es)", ylabel="refs/s")
    _lines(axes[-1], rows, batch, counts[0], "get_median_us")
    axes[-1].set(title=f"median get, batch {batch}, {counts[0]} process(es)", ylabel="µs a call")
    axes[0].legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _lines(axis: Any, rows: list[dict[str, Any]], batch: int, processes: int, key: str) -> None:
    for kind, label in SUBJECTS.items():
        chosen = [r for r in rows if (r["kind"], r["batch"], r["processes"]) == (kind, batch, processes)]
        points = [(r["backlog"], r[key]) for r in chosen]
        if points:
            axis.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axis.set(xscale="log", yscale="log", xlabel="refs pending")
    axis.grid(True, which="both", alpha=0.2)
