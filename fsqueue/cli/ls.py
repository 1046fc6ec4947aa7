"""`fsqueue ls`: list refs."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from itertools import islice

import click

from fsqueue.cli.arguments import as_json, takes_queue, words
from fsqueue.cli.output import age, data, many_json, shown, table
from fsqueue.engine.layout import STATES
from fsqueue.operate.show import Entry, iterate


@click.command(epilog="Example:  fsqueue ls /shared/queue --state failed --long")
@takes_queue
@click.option("--state", type=click.Choice((*STATES, "all")), help="Default: pending; with --owner, leased.")
@click.option("--owner", type=words, help="Leases of this owner, or of all that run on this node.")
@click.option("--limit", type=click.IntRange(min=0), help="Stop after so many.")
@click.option("--long", "details", is_flag=True, help="With age, attempts, and owner, step or reason.")
@as_json
def ls(queue: str, state: str | None, owner: str | None, limit: int | None, details: bool, as_json: bool) -> None:
    """List sample ids, one a line: pending ones in the order in which they come, others by age.

    The order is read without its lock, as a hint. Refs that it does not name come after it, by age, or by name
    where there are more than 4,096 of them; so do the other states', of which more than 65,536 come as their
    directory lists them. Takes no lock and writes nothing; with --long, on some shared mounts, it touches order.lock
    to read the time.
    """
    if owner is not None and state not in (None, "leased"):
        raise click.UsageError(f"--owner lists leases, and goes with --state leased only, not {state}.")
    states = list(STATES) if state == "all" else [state or ("leased" if owner else "pending")]
    with closing(iterate(queue, *states, owner=owner, details=details)) as entries:
        found = islice(entries, limit)
        if as_json:
            many_json(dataclasses.asdict(entry) for entry in found)
        elif details:
            table(("STATE", "AGE", "ATTEMPTS", "ID", "DETAIL"), (_row(entry) for entry in found))
        else:
            for entry in found:
                data(shown(entry.id))


def _row(entry: Entry) -> tuple[str, ...]:
    step = f"step {entry.step}" if entry.step is not None else ""
    attempts = "-" if entry.attempts is None else str(entry.attempts)
    waits = f"comes again in {age(entry.due_in_s)}" if entry.due_in_s is not None else ""
    detail = waits or entry.owner or step or (shown(entry.reason) if entry.reason else "")
    return entry.state, age(entry.age_s), attempts, shown(entry.id), detail
