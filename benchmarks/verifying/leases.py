"""What becomes of leases between the two sides: expiry, fencing, heartbeats and a killed process."""

from __future__ import annotations

import time
from collections.abc import Iterator

from verifying.sides import Sides, Verdict

_REFS = 10
_PATIENCE_S = 60.0
_TICK_S = 0.02
_BEATS_PER_LEASE = 4
_HEARTBEAT_WATCH = 1.5


def lease_checks(sides: Sides) -> Iterator[Verdict]:
    """All of them, one after the other."""
    yield from _expiry(sides)
    yield _heartbeat(sides)
    yield _killed(sides)


def _ids(prefix: str) -> list[str]:
    return [f"{prefix}-{number}" for number in range(_REFS)]


def _expiry(sides: Sides) -> Iterator[Verdict]:
    """B leases and does nothing; A gets the refs once their leases have expired, and not before."""
    timeout_s = sides.options.lease_timeout_s
    sides.open_queue("expiry", lease_timeout_s=timeout_s)
    ids = _ids("expiry")
    sides.queue(sides.a, "put", "expiry", ids=ids)
    before = time.monotonic()
    leased = sides.queue(sides.b, "get", "expiry", count=_REFS)
    after = time.monotonic()
    first = sides.queue(sides.a, "get", "expiry", count=1, timeout_s=timeout_s + _PATIENCE_S)
    early_s = before + timeout_s - time.monotonic()
    rest = sides.drain(sides.a, "expiry", _REFS - len(first), timeout_s=_PATIENCE_S)
    late_s = time.monotonic() - after - timeout_s
    back = sorted(first + rest)
    whole = sorted(leased) == back == sorted(ids)
    text = (
        f"{len(back)} of {len(leased)} refs that B leased came to A, the last {late_s:.2f} s after their "
        f"{timeout_s:g} s were over"
    )
    if early_s > _TICK_S:
        text += f", the first {early_s:.2f} s EARLY"
    figures = {"leased": len(leased), "back": len(back), "early_s": max(0.0, early_s), "late_s": late_s}
    yield Verdict("leases expire", whole and early_s <= _TICK_S, text, figures)
    yield _late_ack(sides, ids)


def _late_ack(sides: Sides, ids: list[str]) -> Verdict:
    """B acknowledges what A holds by now: B hears that its leases are lost, and A's are untouched."""
    told = sides.queue(sides.b, "ack", "expiry", ids=ids)
    lost_by_a = sides.queue(sides.a, "ack", "expiry", ids=ids)
    pending, leased, done, failed = sides.queue(sides.a, "counts", "expiry")
    holds = sorted(told) == sorted(ids) and not lost_by_a and (pending, leased, done, failed) == (0, 0, len(ids), 0)
    text = f"B was told that {len(told)} of {len(ids)} were lost; of A's acknowledgements {len(lost_by_a)} were refused"
    return Verdict("a late ack is fenced off", holds, text, {"told": len(told), "refused": len(lost_by_a)})


def _heartbeat(sides: Sides) -> Verdict:
    """B keeps a heartbeat: its leases outlive their timeout."""
    timeout_s = sides.options.lease_timeout_s
    sides.open_queue("heartbeat", lease_timeout_s=timeout_s, heartbeat_s=timeout_s / _BEATS_PER_LEASE)
    ids = _ids("beat")
    sides.queue(sides.a, "put", "heartbeat", ids=ids)
    leased = sides.queue(sides.b, "get", "heartbeat", count=_REFS)
    taken = sides.queue(sides.a, "get", "heartbeat", count=_REFS, timeout_s=_HEARTBEAT_WATCH * timeout_s)
    lost = sides.queue(sides.b, "ack", "heartbeat", ids=leased)
    holds = sorted(leased) == sorted(ids) and not taken and not lost
    text = (
        f"{len(leased)} refs leased by B for {_HEARTBEAT_WATCH * timeout_s:g} s, {timeout_s:g} s without a beat being "
        f"the end: A got {len(taken)} of them, B lost {len(lost)}"
    )
    return Verdict("a heartbeat keeps leases", holds, text, {"taken": len(taken), "lost": len(lost)})


def _killed(sides: Sides) -> Verdict:
    """A process on B's side is killed while it holds leases; A gets its refs."""
    timeout_s = sides.options.lease_timeout_s
    sides.open_queue("killed", lease_timeout_s=timeout_s)
    ids = _ids("killed")
    sides.queue(sides.a, "put", "killed", ids=ids)
    victim = sides.start_victim()
    sides.queue(victim, "open", "killed", lock=sides.lock)
    leased = sides.queue(victim, "get", "killed", count=_REFS)
    victim.send("queue_die")
    victim.close()
    died = time.monotonic()
    back = sides.drain(sides.a, "killed", len(leased), timeout_s=timeout_s + _PATIENCE_S)
    took_s = time.monotonic() - died
    lost = sides.queue(sides.a, "ack", "killed", ids=back)
    holds = sorted(back) == sorted(leased) == sorted(ids) and not lost
    text = (
        f"{len(leased)} refs leased by a process that was killed: {len(back)} came to A within {took_s:.2f} s "
        f"(lease timeout {timeout_s:g} s)"
    )
    return Verdict("delivered again", holds, text, {"leased": len(leased), "back": len(back), "took_s": took_s})
