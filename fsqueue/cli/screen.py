"""The full-screen view of `fsqueue top`."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fsqueue.cli.output import age
from fsqueue.cli.rates import Rates
from fsqueue.cli.status import oldest_lease, oldest_pending, quantum_text
from fsqueue.operate.status import OwnerStatus, Status
from fsqueue.operate.stream_status import MemberStatus

_BARS, _ASCII_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"
_HISTORY = 60
_OTHER_LINES = 12
_REASON_WIDTH = 28
_STYLES = {"alive": "green", "dead": "red", "unknown": "yellow"}
_MEMBER_STYLES = {"open": "green", "closed": "dim", "failed": "red", "silent": "red"}


def watch(looks: Iterator[tuple[Status, Rates | None]], interval_s: float) -> None:
    """Show look after look until they end or q is pressed."""
    console = Console()
    done_per_s: deque[float] = deque(maxlen=_HISTORY)
    with _keys() as wait, Live(console=console, screen=True, auto_refresh=False) as live:
        for seen, between in looks:
            if between is not None:
                done_per_s.append(max(0.0, between.done_per_s))
            live.update(_view(seen, between, list(done_per_s), console), refresh=True)
            if wait(interval_s):
                return


class _Wait:
    """Sleeps, unless q is pressed on the terminal."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def __call__(self, seconds: float) -> bool:
        """Wait so long; returns at once, with True, when q is pressed."""
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
    """The terminal, such that keys come one by one and are not echoed."""
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
    parts: list[RenderableType] = [
        Text(f"{seen.queue}  {when}  q quits", style="bold", no_wrap=True),
        _counts(seen, between),
        Text(f"done/s {sparkline(done_per_s, bars)} {max(done_per_s, default=0.0):.1f} at most", no_wrap=True),
        Text(),
    ]
    room = max(2, console.size.height - _OTHER_LINES)
    members = seen.stream.members if seen.stream else []
    if members:
        shown = members[: room // 2]
        parts += [_members(shown), Text()]
        room -= len(shown) + 2
    if seen.stream and seen.stream.quantum:
        parts += [Text(f"quantum  {quantum_text(seen.stream.quantum)}", no_wrap=True), Text()]
        room -= 2
    parts.append(_owners(seen.owners, max(1, room)))
    return Group(*parts)


def sparkline(values: list[float], bars: str = _BARS) -> str:
    """One character a value, the largest being the highest."""
    top = max(values, default=0.0)
    if top <= 0:
        return bars[0] * len(values)
    return "".join(bars[round(value / top * (len(bars) - 1))] for value in values)


def _counts(seen: Status, between: Rates | None) -> Table:
    grid = Table.grid(padding=(0, 2))
    for _ in range(4):
        grid.add_column(no_wrap=True)
    grid.columns[1].justify = grid.columns[2].justify = "right"
    changes = {
        "pending": f"{between.pending_per_s:+.1f}/s" if between else "",
        "done": f"{between.done_per_s:.1f}/s" if between else "",
        "failed": f"{between.failed_per_s:.1f}/s" if between else "",
    }
    notes = {"pending": oldest_pending(seen), "leased": oldest_lease(seen)}
    for state, number in seen.counts._asdict().items():
        grid.add_row(Text(state), Text(f"{number:,}"), Text(changes.get(state, "")), Text(notes.get(state, "")))
    grid.add_row(Text("put"), Text(), Text(f"{between.put_per_s:.1f}/s" if between else ""), Text())
    return grid


def _members(members: list[MemberStatus]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("ROLE", "NAME", "STATE", "PROCESS", "LAST SEEN", "REASON"):
        table.add_column(name, no_wrap=True)
    for member in members:
        reason = Text(member.reason or "")
        reason.truncate(_REASON_WIDTH, overflow="ellipsis")
        table.add_row(
            Text(member.role),
            Text(member.name),
            Text(member.state, style=_MEMBER_STYLES[member.state]),
            Text(member.process, style=_STYLES[member.process]),
            Text(f"{age(member.last_seen_s)} ago"),
            reason,
        )
    return table


def _owners(owners: list[OwnerStatus], room: int) -> Table:
    """The owners with the most leases, as many as fit."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("OWNER", "PROCESS", "LEASES", "OLDEST", "HEARTBEAT"):
        table.add_column(name, no_wrap=True)
    for owner in sorted(owners, key=lambda each: (-each.leases, each.owner))[:room]:
        beat = "none" if owner.heartbeat_s is None else age(owner.heartbeat_age_s)
        table.add_row(
            Text(owner.owner),
            Text(owner.process, style=_STYLES[owner.process]),
            Text(f"{owner.leases:,}"),
            Text(age(owner.oldest_lease_age_s)),
            Text(beat),
        )
    return table
