"""`fsqueue status`: show a queue at one glance, in tables that `fsqueue top` shows too."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from fsqueue import operate
from fsqueue.cli.arguments import as_json, duration, takes_queue
from fsqueue.cli.output import age, data, one_json, shown, table
from fsqueue.cli.rates import Rates, rates
from fsqueue.operate import MemberStatus, OwnerStatus, QuantumStatus, Status, StreamStatus

LEAST_S = 0.2  # between two looks: what anybody can see; each lists the queue's directories
T = TypeVar("T")
Columns = dict[str, Callable[[T], str]]
"""The cells of a table's rows, by the header of their column."""


@click.command(epilog="Example:  fsqueue status /shared/queue --watch 10s")
@takes_queue
@click.option(
    "--watch",
    type=duration,
    help="Look again and again, so far apart, at least 200ms, with the rates since the last look.",
)
@click.option("--count", type=click.IntRange(min=1), help="With --watch: end after so many looks with rates.")
@as_json
def status(queue: str, watch: float | None, count: int | None, as_json: bool) -> None:
    """Show how many refs are in each state, how old the oldest are, who holds leases, and who takes part in the stream.

    Takes no lock and writes nothing; on some shared mounts it touches order.lock, to read the time. Whether an owner's
    process is alive is known for this host only. Rates come from counts: "put" is what all states together
    gained, so it misses what a purge removed meanwhile. --watch goes on until it is stopped; `fsqueue top` needs no
    more than a screen.
    """
    if watch is None and count is not None:
        raise click.UsageError("--count goes with --watch: it says after how many looks to end.")
    seen = operate.status(queue)
    if watch is None:
        _show(seen, None, as_json)
        return
    for number in range(count) if count is not None else itertools.count():
        time.sleep(max(watch, LEAST_S))
        before, seen = seen, operate.status(queue)
        if number and not as_json:
            data()
        _show(seen, rates(before, seen), as_json)


def _show(seen: Status, between: Rates | None, as_json: bool) -> None:
    if as_json:
        one_json(as_dict(seen, between))
    else:
        _print(seen, between)
    sys.stdout.flush()


def as_dict(seen: Status, between: Rates | None) -> dict[str, Any]:
    """Return the stable keys of `--json`."""
    fields = dataclasses.asdict(seen)
    fields["counts"] = seen.counts._asdict()
    fields["rates"] = between._asdict() if between else None
    return fields


def _print(seen: Status, between: Rates | None) -> None:
    timeout = "none" if seen.lease_timeout_s is None else age(seen.lease_timeout_s)
    run = f", run {shown(seen.run_id)}" if seen.run_id else ""
    data(f"{seen.queue}  lease timeout {timeout}, lock {seen.lock}{run}")
    if seen.paused is not None:
        data(paused_text(seen))
    for state, number, note in count_rows(seen):
        data(f"{state:<8}{number:>10}  {note}".rstrip())
    if between is not None:
        data(f"over {age(between.seconds)}: {between}")
    _print_table(OWNERS, seen.owners)
    if seen.stream is not None:
        _print_table(MEMBERS, seen.stream.members)
        if seen.stream.members:
            data()
            data(joined_text(seen.stream))
        if seen.stream.quantum is not None:
            data()
            data(f"quantum  {quantum_text(seen.stream.quantum)}")


def paused_text(seen: Status) -> str:
    """Say since when a paused queue is, by whom, and why; empty where it is not."""
    paused = seen.paused
    if paused is None:
        return ""
    since = "" if paused.at is None else f" for {age(max(0.0, seen.at - paused.at))}"
    who, why = (f" by {shown(paused.by)}" if paused.by else ""), (f": {shown(paused.reason)}" if paused.reason else "")
    return f"paused{since}{who}{why}"


def _print_table(columns: Columns[T], rows: list[T]) -> None:
    if rows:
        data()
        table(list(columns), ([cell(row) for cell in columns.values()] for row in rows))


def count_rows(seen: Status) -> Iterator[tuple[str, str, str]]:
    """Yield each state with its count and what is to be said of its oldest ref."""
    notes = {"pending": _oldest_pending(seen)}
    if seen.oldest_lease_age_s is not None:
        notes["leased"] = f"oldest {age(seen.oldest_lease_age_s)}"
    if seen.delayed:
        notes["leased"] = ", ".join(filter(None, [notes.get("leased"), f"{seen.delayed:,} wait to be tried again"]))
    for state, number in seen.counts._asdict().items():
        yield state, f"{number:,}", notes.get(state, "")


def _oldest_pending(seen: Status) -> str:
    if seen.oldest_pending_id is None:
        return ""
    sampled = " (the oldest of a sample: the order names none)" if seen.oldest_pending_is_estimate else ""
    return f"oldest {age(seen.oldest_pending_age_s)}: {shown(seen.oldest_pending_id)}{sampled}"


def joined_text(stream: StreamStatus) -> str:
    """Say how many of the expected members are at work, and for how long the others are awaited."""
    roles = [role for role in ("producer", "consumer") if any(member.role == role for member in stream.members)]
    counted = ", ".join(_counted(stream, role) for role in roles)
    silence, awaited = (age(stream.policy[key]) for key in ("silence_s", "await_s"))
    return f"{counted}; silent after {silence}, awaited for {awaited}"


def _counted(stream: StreamStatus, role: str) -> str:
    """Say how many of a role have come and are there, or are done."""
    closed = stream.closed(role)
    done = f" ({closed} closed)" if closed else ""
    return f"{stream.joined(role) + closed} of {stream.expected(role)} {role}s joined{done}"


def quantum_text(quantum: QuantumStatus) -> str:
    factors = f"{quantum.dp_size} ranks x {quantum.batch_size} x {quantum.accumulation_steps} accumulated"
    return f"{quantum.refs:,} refs at a time: {factors}"


OWNERS: Columns[OwnerStatus] = {
    "OWNER": lambda owner: owner.owner,
    "HOST": lambda owner: owner.host or "?",
    "PID": lambda owner: str(owner.pid),
    "PROCESS": lambda owner: owner.process,
    "LEASES": lambda owner: f"{owner.leases:,}",
    "OLDEST": lambda owner: age(owner.oldest_lease_age_s),
    "HEARTBEAT": lambda owner: "none" if owner.heartbeat_s is None else f"{age(owner.heartbeat_age_s)} ago",
}
MEMBERS: Columns[MemberStatus] = {
    "ROLE": lambda member: member.role,
    "NAME": lambda member: shown(member.name),
    "STATE": lambda member: member.state,
    "KIND": lambda member: "required" if member.required else "replaceable",
    "HOST": lambda member: member.host,
    "PID": lambda member: str(member.pid),
    "PROCESS": lambda member: member.process,
    "LAST SEEN": lambda member: f"{age(member.last_seen_s)} ago",
    "REASON": lambda member: "" if member.reason is None else shown(member.reason),
}
