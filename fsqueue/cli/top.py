"""`fsqueue top`: watch a queue live."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator

import click

from fsqueue import survey
from fsqueue.cli.arguments import Duration, takes_queue
from fsqueue.cli.output import age, data
from fsqueue.cli.rates import Rates, rates
from fsqueue.survey import Status

Sight = tuple[Status, "Rates | None"]


@click.command(epilog="Example:  fsqueue top /shared/queue --interval 5s")
@takes_queue
@click.option("--interval", type=Duration(), default="1s", show_default=True, help="Time between two looks.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many looks.")
def top(queue: str, interval: float, count: int | None) -> None:
    """Watch counts, rates, owners and the oldest lease; q quits.

    Where the output is no terminal, prints one line a look. Takes no lock and writes nothing.
    """
    looks = _looks(queue, count)
    if sys.stdout.isatty():
        from fsqueue.cli.screen import watch

        watch(looks, interval)
        return
    for number, (seen, between) in enumerate(looks, 1):
        data(_line(seen, between))
        if number != count:
            time.sleep(interval)


def _looks(queue: str, count: int | None) -> Iterator[Sight]:
    """One look after the other, each with the rates since the one before."""
    before: Status | None = None
    for _ in itertools.repeat(None) if count is None else range(count):
        seen = survey.status(queue)
        yield seen, rates(before, seen) if before else None
        before = seen


def _line(seen: Status, between: Rates | None) -> str:
    when = time.strftime("%H:%M:%S", time.localtime(seen.at))
    counts = "  ".join(f"{state} {number}" for state, number in seen.counts._asdict().items())
    owners = sum(1 for owner in seen.owners if owner.leases)
    rest = f"owners {owners}  oldest lease {age(seen.oldest_lease_age_s)}"
    return f"{when}  {counts}  {rest}" + (f"  {between}" if between else "")
