"""Show `fsqueue top` on the full screen."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fsqueue.cli.rates import Rates
from fsqueue.cli.status import MEMBERS, OWNERS, Columns, count_rows, paused_text, quantum_text
from fsqueue.operate import Status

T = TypeVar("T")

_BARS, _ASCII_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_HISTORY = 60
_OTHER_LINES = 12
_LEFT_OUT = ("HOST", "PID", "KIND")
_GIVE_WAY = ("REASON", "HEARTBEAT", "LAST SEEN", "ROLE", "PROCESS", "OLDEST")
"""Columns that are left out where a screen is too narrow, the first one first; REASON also where there is none."""
_SHORTENED = ("NAME", "OWNER")
_GAP = 2
_BESIDE_BARS = 24
_WIDTHS = {"REASON": 28}
_STYLED = ("PROCESS", "STATE")
_STYLES = {
    "alive": "green", "dead": "red", "unknown": "yellow", "joined": "green", "closed": "dim", "failed": "red",
    "silent": "red", "withdrawn": "yellow",
}  # fmt: skip


def watch(looks: Iterator[tuple[Status, Rates | None]], pause: Callable[[], float]) -> None:
    """Show look after look until they end or q is pressed; pause says for how many seconds each is shown."""
    console = Console()
    done_per_s: deque[float] = deque(maxlen=_HISTORY)
    with _keys() as wait, Live(console=console, screen=True, auto_refresh=False) as live:
        for seen, between in looks:
            if between is not None:
                done_per_s.append(max(0.0, between.done_per_s))
            live.update(_view(seen, between, list(done_per_s), console), refresh=True)
            if wait(pause()):
                return


class _Wait:
    """Sleep, unless q is pressed on the terminal."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, seconds: float) -> bool:
        """Wait so long; return True, at once, when q is pressed."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if self._fd is None:
                time.sleep(left)
            elif select.select([self._fd], [], [], left)[0]:
                pressed = os.read(self._fd, 64)
                if b"q" in pressed.lower():
                    return True
                if not pressed:
                    self._fd = None
        return False


@contextmanager
def _keys() -> Iterator[_Wait]:
    """Let keys come from the terminal one by one, not echoed, within the block."""
    if not sys.stdin.isatty():
        yield _Wait(None)
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield _Wait(fd)
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _view(seen: Status, between: Rates | None, done_per_s: list[float], console: Console) -> RenderableType:
    when = time.strftime("%H:%M:%S", time.localtime(seen.at))
    bars = _ASCII_BARS if console.options.ascii_only else _BARS
    recent = done_per_s[-max(8, console.width - _BESIDE_BARS) :]
    parts: list[RenderableType] = [
        Text(_headline(seen.queue, f"  {when}  q quits", console.width), style="bold", no_wrap=True),
        *([Text(paused_text(seen), style="yellow", no_wrap=True)] if seen.paused else []),
        _counts(seen, between, console.width),
        Text(f"done/s {sparkline(recent, bars)} {max(recent, default=0.0):.1f} at most", no_wrap=True),
        Text(),
    ]
    room = max(2, console.size.height - _OTHER_LINES)
    members = seen.stream.members if seen.stream else []
    if members:
        shown = members[: room // 2]
        parts += [_table(MEMBERS, shown, console.width), Text()]
        room -= len(shown) + 2
    if seen.stream and seen.stream.quantum:
        quantum = f"quantum  {quantum_text(seen.stream.quantum)}"
        parts += [Text(quantum, no_wrap=True, overflow="ellipsis"), Text()]
        room -= 2
    busiest = sorted(seen.owners, key=lambda each: (-each.leases, each.owner))
    parts.append(_table(OWNERS, busiest[: max(1, room)], console.width))
    return Group(*parts)


def sparkline(values: list[float], bars: str = _BARS) -> str:
    """Draw one character a value, the largest as the highest."""
    top = max(values, default=0.0)
    if top <= 0:
        return bars[0] * len(values)
    return "".join(bars[round(value / top * (len(bars) - 1))] for value in values)


def _counts(seen: Status, between: Rates | None, width: int) -> Table:
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    changes = between.texts() if between else {}
    rows = [(state, number, changes.get(state, ""), note) for state, number, note in count_rows(seen)]
    rows.append(("put", "", changes.get("put", ""), ""))
    widths = [max(cell_len(row[column]) for row in rows) for column in range(4)]
    widths[3] = min(widths[3], max(width - sum(widths[:3]) - 3 * _GAP, 1))  # notes give way, numbers do not
    grid.add_column(no_wrap=True, width=widths[0])
    grid.add_column(no_wrap=True, width=widths[1], justify="right")
    grid.add_column(no_wrap=True, width=widths[2], justify="right")
    grid.add_column(no_wrap=True, width=widths[3])
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def _headline(queue: str, rest: str, width: int) -> str:
    """Return a line of this width; of a long path, its end is what tells it from others."""
    room = max(width - len(rest), 8)
    return (queue if len(queue) <= room else f"…{queue[1 - room :]}") + rest


def _table(columns: Columns[T], rows: Sequence[T], width: int) -> Table:
    """Lay out a table of `fsqueue status` without the columns that a screen has no room for."""
    cells = {name: [cell(row) for row in rows] for name, cell in columns.items() if name not in _LEFT_OUT}
    widths = {name: min(max(map(cell_len, [name, *texts])), _WIDTHS.get(name, width)) for name, texts in cells.items()}
    for name in _GIVE_WAY:
        if name in cells and (
            sum(widths[each] + _GAP for each in cells) - _GAP > width or (name == "REASON" and not any(cells[name]))
        ):
            del cells[name]
    shortened = next((name for name in _SHORTENED if name in cells), "")
    others = sum(widths[name] + _GAP for name in cells if name != shortened)
    if shortened:
        widths[shortened] = min(widths[shortened], max(width - others, _GAP))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in cells:
        table.add_column(name, no_wrap=True, width=widths[name])
    for row in zip(*cells.values(), strict=True):
        table.add_row(
            *(Text(text, style=_STYLES[text] if name in _STYLED else "") for name, text in zip(cells, row, strict=True))
        )
    return table
