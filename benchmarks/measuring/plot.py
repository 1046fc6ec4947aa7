"""Charts of a run, each a PNG: throughput over backlog and over consumers, and how long a get takes. matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from measuring.report import Series

_SIZE = (7.0, 4.2)
_DPI = 90
_WIDTH_LETTERS = 130


def plot_all(series: Series, title: str, directory: str) -> list[Path]:
    """Write the charts for the largest batch; one that would show a single point is left out."""
    matplotlib.use("Agg")
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    batch = max(row["batch"] for row in series.rows)
    rows = [row for row in series.rows if row["batch"] == batch]
    few, many = (choose(row["processes"] for row in rows) for choose in (min, max))
    backlog = min(row["backlog"] for row in rows)
    cycle = f"put + get + ack, batch {batch}"
    written = []
    if len({row["backlog"] for row in rows}) > 1:
        chosen = [row for row in rows if row["processes"] == few]
        written.append(_curves(series, chosen, "backlog", f"{cycle}, {few} process(es)", title, target))
    if few != many:
        chosen = [row for row in rows if row["backlog"] == backlog]
        written.append(_curves(series, chosen, "processes", f"{cycle}, {backlog:,} pending", title, target))
    chosen = [row for row in rows if (row["processes"], row["backlog"]) == (few, backlog)]
    written.append(_latencies(series, chosen, f"get, batch {batch}, {few} process(es)", title, target))
    return written


def _curves(series: Series, rows: Sequence[dict[str, Any]], key: str, what: str, title: str, directory: Path) -> Path:
    figure, axis = pyplot.subplots(figsize=_SIZE, layout="constrained")
    best = {row["kind"]: row["refs_per_s"] for row in sorted(rows, key=lambda row: row["refs_per_s"])}
    for kind in sorted(best, key=lambda kind: -best[kind]):
        points = sorted((row[key], row["refs_per_s"]) for row in rows if row["kind"] == kind)
        axis.plot(*zip(*points, strict=True), label=series.labels[kind], **_style(kind, series))
    axis.set(xscale="log", yscale="log", ylabel="refs/s", title=what)
    axis.set_xlabel({"backlog": "refs pending", "processes": "processes, each producer and consumer"}[key])
    if key == "processes":
        ticks = sorted({row[key] for row in rows})
        axis.set_xticks(ticks, labels=[f"{tick}" for tick in ticks])
        axis.minorticks_off()
    return _finish(figure, axis, title, directory / f"throughput-{key}.png")


def _latencies(series: Series, rows: Sequence[dict[str, Any]], what: str, title: str, directory: Path) -> Path:
    """The share of calls that took at most so long."""
    figure, axis = pyplot.subplots(figsize=_SIZE, layout="constrained")
    for row in rows:
        calls = [
            duration * 1e6 for duration in series.gets[row["kind"], row["backlog"], row["batch"], row["processes"]]
        ]
        shares = [(index + 1) / len(calls) for index in range(len(calls))]
        style = {**_style(row["kind"], series), "marker": ""}
        axis.plot(calls, shares, label=series.labels[row["kind"]], drawstyle="steps-post", **style)
    axis.set(xscale="log", xlabel="µs a call", ylabel="share of calls", ylim=(0.0, 1.01), title=what)
    return _finish(figure, axis, title, directory / "get-latency.png")


def _style(kind: str, series: Series) -> dict[str, Any]:
    """The same in every chart: the queue itself stands out, and the floor is no competitor."""
    if kind == "file":
        return {"marker": "o", "linewidth": 3.0, "color": "black", "zorder": 3}
    color = pyplot.get_cmap("tab20")(list(series.labels).index(kind))
    return {"marker": ".", "linestyle": ":" if kind == "floor" else "-", "linewidth": 1.5, "color": color}


def _finish(figure: Any, axis: Any, title: str, path: Path) -> Path:
    axis.grid(True, which="major", alpha=0.25)
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.supxlabel("\n".join(textwrap.wrap(title, _WIDTH_LETTERS)), fontsize=6, color="gray")
    figure.savefig(path, dpi=_DPI)
    pyplot.close(figure)
    return path
