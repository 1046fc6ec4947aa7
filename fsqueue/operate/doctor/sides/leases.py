"""Try what becomes of leases between the two sides: expiry, fencing, heartbeats and a killed process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fsqueue.operate.doctor.sides.sides import Sides
from fsqueue.operate.doctor.sides.verdict import Judgement, Verdict, Weakness

_REFS = 10
_PATIENCE_S = 60.0
_TICK_S = 0.02
_BEATS_PER_LEASE = 4
_HEARTBEAT_WATCH = 1.5
_PROMPT_S = 5.0


def _ids(prefix: str) -> list[str]:
    return [f"{prefix}-{number}" for number in range(_REFS)]


def expiry(sides: Sides) -> Iterator[Verdict]:
    """B leases and does nothing; A gets the refs once their leases have expired, and B's late ack is refused.

    A put them and takes them back: on some filesystems its client still knows them by their first name.
    """
    timeout_s = sides.lease_timeout_s
    sides.open_queue("expiry", lease_timeout_s=timeout_s)
    ids = _ids("expiry")
    sides.queue(sides.a, "put", "expiry", ids=ids)
    before = time.monotonic()
    leased = sides.drain(sides.b, "expiry", _REFS, timeout_s=1.0)
    after = time.monotonic()
    first = sides.queue(sides.a, "get", "expiry", count=1, timeout_s=timeout_s + _PATIENCE_S)
    early_s = before + timeout_s - time.monotonic() - sides.filesystem.step_s if first else 0.0
    rest = sides.drain(sides.a, "expiry", _REFS - len(first), timeout_s=_PATIENCE_S) if first else []
    late_s = time.monotonic() - after - timeout_s
    back = sorted(first + rest)
    text = (
        f"{len(back)} of {len(leased)} refs that B leased came back to A, the last {late_s:.1f} s after their "
        f"{timeout_s:g} s were over"
    )
    if early_s > _TICK_S:
        text += f", the first {early_s:.2f} s EARLY"
    figures = {"leased": len(leased), "back": len(back), "early_s": max(0.0, early_s), "late_s": round(late_s, 3)}
    whole = sorted(leased) == back == sorted(ids) and early_s <= _TICK_S
    yield _prompt("leases expire", whole, late_s, text, figures)
    yield _late_ack(sides, ids)


def _prompt(promise: str, whole: bool, late_s: float, text: str, figures: dict[str, Any]) -> Verdict:
    judgement: Judgement = "holds" if whole else "broken"
    weakens: tuple[Weakness, ...] = ()
    if whole and late_s > _PROMPT_S:
        judgement, weakens = "weaker", ("wake-up",)
    return Verdict(promise, judgement, text, figures, weakens)


def _late_ack(sides: Sides, ids: list[str]) -> Verdict:
    """B acknowledges what A holds by now: B hears that its leases are lost, and A's are untouched."""
    told = sides.queue(sides.b, "ack", "expiry", ids=ids)
    lost_by_a = sides.queue(sides.a, "ack", "expiry", ids=ids)
    counts = sides.queue(sides.a, "counts", "expiry")
    holds = sorted(told) == sorted(ids) and not lost_by_a and counts == [0, 0, len(ids), 0]
    text = f"B was told that {len(told)} of {len(ids)} were lost; of A's acks {len(lost_by_a)} were refused"
    figures = {"told": len(told), "refused": len(lost_by_a), "counts": counts}
    return Verdict("a late ack is fenced off", "holds" if holds else "broken", text, figures)


def heartbeat(sides: Sides) -> Iterator[Verdict]:
    """B keeps a heartbeat: its leases outlive their timeout."""
    timeout_s = sides.lease_timeout_s
    sides.open_queue("heartbeat", lease_timeout_s=timeout_s, heartbeat_s=timeout_s / _BEATS_PER_LEASE)
    ids = _ids("beat")
    sides.queue(sides.a, "put", "heartbeat", ids=ids)
    leased = sides.drain(sides.b, "heartbeat", _REFS, timeout_s=1.0)
    taken = sides.queue(sides.a, "get", "heartbeat", count=_REFS, timeout_s=_HEARTBEAT_WATCH * timeout_s)
    lost = sides.queue(sides.b, "ack", "heartbeat", ids=leased)
    holds = sorted(leased) == sorted(ids) and not taken and not lost
    text = (
        f"{len(leased)} refs leased by B for {_HEARTBEAT_WATCH * timeout_s:g} s, {timeout_s:g} s without a beat being "
        f"the end: A got {len(taken)} of them, B lost {len(lost)}"
    )
    figures = {"leased": len(leased), "taken": len(taken), "lost": len(lost)}
    yield Verdict("a heartbeat keeps leases", "holds" if holds else "broken", text, figures)


def killed(sides: Sides) -> Iterator[Verdict]:
    """A process on B's side is killed while it holds leases; A gets its refs."""
    timeout_s = sides.lease_timeout_s
    sides.open_queue("killed", lease_timeout_s=timeout_s)
    ids = _ids("killed")
    sides.queue(sides.a, "put", "killed", ids=ids)
    victim = sides.victim()
    sides.queue(victim, "open", "killed", lock=sides.lock)
    leased = sides.drain(victim, "killed", _REFS, timeout_s=1.0)
    victim.send("queue_die")
    victim.close()
    died = time.monotonic()
    back = sides.drain(sides.a, "killed", len(leased), timeout_s=timeout_s + _PATIENCE_S)
    took_s = time.monotonic() - died
    lost = sides.queue(sides.a, "ack", "killed", ids=back)
    whole = sorted(back) == sorted(leased) == sorted(ids) and not lost
    text = (
        f"{len(leased)} refs leased by a process that was killed: {len(back)} came to A within {took_s:.1f} s "
        f"(lease timeout {timeout_s:g} s)"
    )
    figures = {"leased": len(leased), "back": len(back), "took_s": round(took_s, 3)}
    yield _prompt("a dead one's refs come again", whole, took_s - timeout_s, text, figures)
