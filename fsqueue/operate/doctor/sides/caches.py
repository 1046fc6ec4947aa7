"""Measure for how long a side believes what the other has changed: names, stamps, and whose clock makes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

from fsqueue.operate.doctor.sides.sides import Sides
from fsqueue.operate.doctor.sides.verdict import Judgement, Verdict, Weakness

_WAYS = ("stat", "open", "listing")
_LOOKS = 3
_AT_ONCE_S = 0.25
_BEARABLE_S = 1.5
_CLOCK_TOLERANCE = 0.1


def names(sides: Sides) -> Iterator[Verdict]:
    """B knows what is there; A makes or moves a file; B looks again, in three ways, until it sees that."""
    for way in _WAYS:
        sides.make_directory(f"seen-by-{way}")
    late: dict[str, dict[str, float | None]] = {"appears": {}, "vanishes": {}}
    for way in _WAYS:
        for number in range(_LOOKS):
            for what, seconds in _look(sides, way, f"ref{number}").items():
                known = late[what].get(way, 0.0)
                late[what][way] = None if known is None or seconds is None else max(known, seconds)
            longest_s = late["vanishes"][way]
            if longest_s is None or longest_s > _BEARABLE_S:
                break
    limit_s = sides.options.stale_limit_s
    yield _judged("a new name is seen", late["appears"], limit_s, ("wake-up",))
    yield _judged("a name that is gone is gone", late["vanishes"], limit_s, ())


def _look(sides: Sides, way: str, name: str) -> dict[str, float | None]:
    a, b = sides.both
    here, there = (os.path.join(peer.directory, f"seen-by-{way}") for peer in (a, b))
    limit_s = sides.options.stale_limit_s
    b.call("sees", directory=there, name=name, present=False, way=way, patience_s=0.0)
    a.call("make", directory=here, name=name)
    appears_s = b.call("sees", directory=there, name=name, present=True, way=way, patience_s=limit_s)
    a.call("move", directory=here, name=name, target=here, new_name=f"{name}.moved", refresh=False)
    vanishes_s = b.call("sees", directory=there, name=name, present=False, way=way, patience_s=limit_s)
    return {"appears": appears_s, "vanishes": vanishes_s}


def _judged(promise: str, late: dict[str, float | None], limit_s: float, weakens: tuple[Weakness, ...]) -> Verdict:
    """Judge by the quickest way to look: the queue looks again in another one where an answer may be old."""
    text = ", ".join(f"by {way} {_seconds(seconds, limit_s)}" for way, seconds in late.items())
    longest_s = max(limit_s if seconds is None else seconds for seconds in late.values())
    figures = {f"{way}_s": seconds for way, seconds in late.items()}
    if longest_s <= _AT_ONCE_S:
        return Verdict(promise, "holds", f"at once by {', '.join(late)}", figures)
    if longest_s <= _BEARABLE_S or not weakens:
        return Verdict(promise, "lives with it", f"late: {text}; fsqueue doubts an old answer, and asks again", figures)
    text = f"late: {text}; a waiting get, counts and expired leases may lag as much"
    return Verdict(promise, "weaker", text, figures, weakens)


def _seconds(seconds: float | None, limit_s: float) -> str:
    return f"not within {limit_s:g} s" if seconds is None else f"after {seconds:.2f} s"


def stamps(sides: Sides) -> Iterator[Verdict]:
    """B knows an old stamp; A stamps the file anew, as a heartbeat does; B reads it until it is new."""
    a, b = sides.both
    a.call("make", directory=a.directory, name="stamped")
    limit_s = sides.options.stale_limit_s
    late: dict[str, float | None] = {}
    for way in ("open", "stat"):
        for number in range(_LOOKS):
            a.call("stamp", directory=a.directory, name="stamped", age_s=1000.0 - 100 * number)
            b.call("stamp_seen", directory=b.directory, name="stamped", way=way, age_s=5000.0, patience_s=limit_s)
            a.call("stamp", directory=a.directory, name="stamped", age_s=0.0)
            seconds = b.call("stamp_seen", directory=b.directory, name="stamped", way=way, age_s=300.0,
                             patience_s=limit_s)  # fmt: skip
            known = late.get(way, 0.0)
            late[way] = None if known is None or seconds is None else max(known, seconds)
            if seconds is None or seconds > _BEARABLE_S:
                break
    yield _stamp_verdict(sides, late, limit_s)


def _stamp_verdict(sides: Sides, late: dict[str, float | None], limit_s: float) -> Verdict:
    promise = "a heartbeat is seen"
    text = ", ".join(f"by {way} {_seconds(seconds, limit_s)}" for way, seconds in late.items())
    figures = {f"{way}_s": seconds for way, seconds in late.items()}
    by_open_s = late["open"]
    if by_open_s is not None and by_open_s <= _AT_ONCE_S:
        return Verdict(promise, "holds", f"at once as the queue looks; {text}", figures)
    if by_open_s is None:
        return Verdict(promise, "broken", f"{text}: a lease expires under a living owner", figures)
    text = f"late: {text}; leases of {max(2 * by_open_s, 2.0):.0f} s or more live with it"
    return Verdict(promise, "lives with it", text, figures)


def clock(sides: Sides) -> Iterator[Verdict]:
    """A and B stamp one file in turn: by one clock, each stamp is no earlier than the one before."""
    stamps_ns: list[int] = []
    skews_s: dict[str, float] = {}
    sides.a.call("make", directory=sides.directory, name="ticking")
    sides.b.call("sees", directory=sides.b.directory, name="ticking", present=True, way="open", patience_s=25.0)
    for _ in range(sides.options.rounds):
        for peer in sides.both:
            touched = peer.call("touch", directory=peer.directory, name="ticking")
            stamps_ns.append(touched["stamp_ns"])
            skews_s[peer.name] = round(touched["skew_s"], 6)
    step_s = 2.0 if not any(stamp_ns % 10**9 for stamp_ns in stamps_ns) else 0.0
    back_s = max(0.0, *((earlier - later) / 1e9 for earlier, later in pairwise(stamps_ns)))
    figures = {"stamps": len(stamps_ns), "back_s": back_s, "skews_s": skews_s}
    text = (
        f"{len(stamps_ns)} stamps by A and B in turn, at most {back_s * 1e3:.1f} ms back; the filesystem's clock is "
        f"{skews_s['A']:+.3f} s from A's, {skews_s['B']:+.3f} s from B's"
    )
    judgement: Judgement = "holds"
    if back_s > _CLOCK_TOLERANCE * sides.lease_timeout_s + step_s:
        judgement = "broken"
        text += ": files are stamped by clocks that are apart, so leases end early; keep them in step (NTP)"
    yield Verdict("one clock stamps", judgement, text, figures)
