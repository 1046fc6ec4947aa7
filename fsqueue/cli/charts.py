"""Draw bars over time as SVG, to stand in a page: no script, no network, and each bar says what it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 760, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 26
_TICKS = 5


class Series(NamedTuple):
    """Hold one kind of what is counted in each part of the time.

    Attributes:
        style: the class of its bars.
    """

    name: str
    style: str
    values: Sequence[int]


def timeline(title: str, series: Sequence[Series], begins_at: float, width_s: float) -> str:
    """Draw stacked bars, one for each part of the time."""
    totals = [sum(values) for values in zip(*(each.values for each in series), strict=True)]
    top = _round_up(max(totals, default=1))
    step = (_WIDTH - _LEFT - _RIGHT) / max(len(totals), 1)
    drawn = [f'<svg class="chart" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    drawn += _grid(top)
    for number in range(len(totals)):
        when = moment(begins_at + number * width_s, width_s)
        said = ", ".join(f"{each.values[number]:,} {each.name}" for each in series)
        drawn.append(f"<g><title>{escape(f'{when}: {said}')}</title>")
        drawn += _stack(series, number, top, _LEFT + number * step, step)
        drawn.append("</g>")
    drawn += _times(len(totals), step, begins_at, width_s)
    return "\n".join([*drawn, "</svg>"])


def _stack(series: Sequence[Series], number: int, top: int, x: float, step: float) -> Iterator[str]:
    bottom = float(_HEIGHT - _BOTTOM)
    for each in series:
        height = each.values[number] / top * (_HEIGHT - _TOP - _BOTTOM)
        if height > 0:
            height = max(height, 0.8)  # what is there is seen
            bottom -= height
            place = f'x="{x:.1f}" y="{bottom:.1f}" width="{max(step - 1, 0.8):.1f}" height="{height:.1f}"'
            yield f'<rect class="{each.style}" {place}/>'


def _grid(top: int) -> Iterator[str]:
    for part in (0.0, 0.5, 1.0):
        y = _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}"/>'
        if part * top == int(part * top):
            yield f'<text class="y" x="{_LEFT - 6}" y="{y + 4:.1f}">{int(part * top):,}</text>'


def _times(number: int, step: float, begins_at: float, width_s: float) -> Iterator[str]:
    """Write some of the parts' beginnings below them."""
    every = max(1, -(-number // _TICKS))
    for part in range(0, number, every):
        x = _LEFT + part * step
        anchor = "end" if x > _WIDTH - 90 else "start"
        text = moment(begins_at + part * width_s, width_s * number)
        yield f'<text style="text-anchor:{anchor}" x="{x:.1f}" y="{_HEIGHT - 8}">{text}</text>'


def _round_up(number: int) -> int:
    """Return the next number of one digit, or of two that end with 5, and zeros."""
    if number <= 10:
        return max(number, 1)
    size = int("1" + "0" * (len(str(number)) - 1))
    return next(size * tenths // 10 for tenths in range(10, 101, 5) if size * tenths // 10 >= number)


def share(part: float) -> str:
    """Draw one bar of a table, as long as this part of the longest, which is 1."""
    bar = f'<rect class="done" width="{100 * part:.1f}" height="8"/>' if part > 0 else ""
    return f'<svg class="share" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">{bar}</svg>'


def moment(at: float, width_s: float = 0.0) -> str:
    """Write a moment in this host's time zone, as exactly as parts of this length need it."""
    local = time.localtime(at)
    if width_s >= 86400:
        return time.strftime("%m-%d %H:%M", local)
    return time.strftime("%H:%M" if width_s >= 3600 else "%H:%M:%S", local)
