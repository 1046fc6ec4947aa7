"""`fsqueue status`: a queue at one glance."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import click

from fsqueue.cli.arguments import Duration, as_json, takes_queue
from fsqueue.cli.output import age, data, one_json, shown, table
from fsqueue.cli.rates import Rates, rates
from fsqueue.operate import status as look
from fsqueue.operate.status import OwnerStatus, Status
from fsqueue.operate.stream_status import MemberStatus, QuantumStatus, StreamStatus

_COLOURS = {"alive": "green", "dead": "red"}


@click.command(epilog="Example:  fsqueue status /shared/queue --watch 10s")
@takes_queue
@click.option("--watch", type=Duration(), help="Look again after so long, and give the rates between the two looks.")
@as_json
def status(queue: str, watch: float | None, as_json: bool) -> None:
    """Show how many refs are in each state, how old the oldest are, who holds leases, and who takes part in the stream.

    Takes no lock and writes nothing. Whether an owner's process is alive is known for this host only. Rates come
    from counts: "put" is what all states together gained, so it misses what a purge removed meanwhile.
    """
    seen, between = look.status(queue), None
    if watch is not None:
        before, seen = seen, _later(queue, watch)
        between = rates(before, seen)
    if as_json:
        one_json(as_dict(seen, between))
    else:
        _print(seen, between)


def _later(queue: str, seconds: float) -> Status:
    time.sleep(seconds)
    return look.status(queue)


def as_dict(seen: Status, between: Rates | None) -> dict[str, Any]:
    """The stable keys of `--json`."""
    fields = dataclasses.asdict(seen)
    fields["counts"] = seen.counts._asdict()
    fields["rates"] = between._asdict() if between else None
    return fields


def _print(seen: Status, between: Rates | None) -> None:
    timeout = "none" if seen.lease_timeout_s is None else age(seen.lease_timeout_s)
    run = f", run {shown(seen.run_id)}" if seen.run_id else ""
    data(f"{seen.queue}  lease timeout {timeout}, lock {seen.lock}{run}")
    details = {"pending": oldest_pending(seen), "leased": oldest_lease(seen)}
    for state, number in seen.counts._asdict().items():
        data(f"{state:<8}{number:>10,}  {details.get(state, '')}".rstrip())
    if between is not None:
        data(f"over {age(between.seconds)}: {between}")
    if seen.owners:
        data()
        table(
            ("OWNER", "HOST", "PID", "PROCESS", "LEASES", "OLDEST", "HEARTBEAT"),
            (_row(owner) for owner in seen.owners),
        )
    if seen.stream is not None:
        _print_stream(seen.stream)


def _print_stream(stream: StreamStatus) -> None:
    if stream.members:
        data()
        table(_MEMBER_COLUMNS, map(_member_row, stream.members))
    if stream.quantum is not None:
        data()
        data(f"quantum  {quantum_text(stream.quantum)}")


_MEMBER_COLUMNS = ("ROLE", "NAME", "STATE", "HOST", "PID", "PROCESS", "LAST SEEN", "REASON")


def _member_row(member: MemberStatus) -> tuple[str, ...]:
    return (
        member.role,
        shown(member.name),
        member.state,
        member.host,
        str(member.pid),
        member.process,
        f"{age(member.last_seen_s)} ago",
        "" if member.reason is None else shown(member.reason),
    )


def quantum_text(quantum: QuantumStatus) -> str:
    factors = f"{quantum.dp_size} ranks x {quantum.batch_size} x {quantum.accumulation_steps} accumulated"
    return f"{quantum.refs:,} refs at a time: {factors}"


def oldest_pending(seen: Status) -> str:
    if seen.oldest_pending_id is None:
        return ""
    sampled = " (the oldest of a sample: the order names none)" if seen.oldest_pending_is_estimate else ""
    return f"oldest {age(seen.oldest_pending_age_s)}: {shown(seen.oldest_pending_id)}{sampled}"


def oldest_lease(seen: Status) -> str:
    return f"oldest {age(seen.oldest_lease_age_s)}" if seen.oldest_lease_age_s is not None else ""


def _row(owner: OwnerStatus) -> tuple[str, ...]:
    beat = "none" if owner.heartbeat_s is None else f"{age(owner.heartbeat_age_s)} ago"
    return (
        owner.owner,
        owner.host or "?",
        str(owner.pid),
        owner.process,
        f"{owner.leases:,}",
        age(owner.oldest_lease_age_s),
        beat,
    )
