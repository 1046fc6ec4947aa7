"""`fsqueue top`: watch a queue live."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator

import click

from fsqueue import operate
from fsqueue.cli.arguments import as_json, duration, takes_queue
from fsqueue.cli.output import age, data
from fsqueue.cli.rates import Rates, rates
from fsqueue.cli.status import LEAST_S, as_dict, paused_text
from fsqueue.operate import Status

_RELAX = 20


@click.command(epilog="Example:  fsqueue top /shared/queue --interval 5s")
@takes_queue
@click.option(
    "--interval",
    type=duration,
    default="1s",
    show_default=True,
    help="Time between two looks, at least 200ms, and 20 times what a look takes.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks.")
@as_json
def top(queue: str, interval: float, count: int | None, as_json: bool) -> None:
    """Watch counts, rates, owners, the oldest lease, and the stream's members; q quits.

    Where the output is no terminal, prints one line a look; with --json, a line of JSON as `fsqueue status` has it.
    Takes no lock and writes nothing; on some shared mounts it touches order.lock, to read the time.
    """
    pause = _Pause(max(interval, LEAST_S))
    looks = _looks(queue, count, pause)
    if sys.stdout.isatty() and not as_json:
        from fsqueue.cli.screen import watch

        watch(looks, pause)
        return
    for number, (seen, between) in enumerate(looks, 1):
        data(json.dumps(as_dict(seen, between), ensure_ascii=False) if as_json else _line(seen, between))
        if number != count:
            time.sleep(pause())


class _Pause:
    """Say how long to wait until the next look, in seconds: so long that looks take a twentieth of a core at most.

    Attributes:
        look_s: how much of a core's time the last look took.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self.look_s = 0.0

    def __call__(self) -> float:
        return max(self._interval_s, _RELAX * self.look_s)


def _looks(queue: str, count: int | None, pause: _Pause) -> Iterator[tuple[Status, Rates | None]]:
    """Look again and again; each look comes with the rates since the one before."""
    before: Status | None = None
    for _ in itertools.repeat(None) if count is None else range(count):
        began_s = time.process_time()
        seen = operate.status(queue)
        pause.look_s = time.process_time() - began_s
        yield seen, rates(before, seen) if before else None
        before = seen


def _line(seen: Status, between: Rates | None) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(seen.at))
    counts = "  ".join(f"{state} {number}" for state, number in seen.counts._asdict().items())
    owners = sum(1 for owner in seen.owners if owner.leases)
    rest = f"owners {owners}  oldest lease {age(seen.oldest_lease_age_s)}{_members(seen)}"
    paused = f"  {paused_text(seen)}" if seen.paused else ""
    return f"{when}  {counts}  {rest}{paused}" + (f"  {between}" if between else "")


def _members(seen: Status) -> str:
    """Count the producers and consumers in each state; empty where the queue is not used as a stream."""
    states = Counter((member.role, member.state) for member in (seen.stream.members if seen.stream else ()))
    return "".join(f"  {role}s {state} {number}" for (role, state), number in states.items())
