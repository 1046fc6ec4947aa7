"""Let both sides work on one queue as hard as they can, and count what was lost or held by two."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.format import names
from fsqueue.operate.doctor.clocks import Clocks
from fsqueue.operate.doctor.peer import together
from fsqueue.operate.doctor.sides.sides import Sides
from fsqueue.operate.doctor.sides.verdict import Verdict

_BATCH = 16
_QUEUE = "torture"
_SETTLE_S = 25.0
_LOOK_S = 0.5


def torture(sides: Sides) -> Iterator[Verdict]:
    """A and B put, lease, fail, release and acknowledge at once until nothing is left."""
    sides.open_queue(_QUEUE)
    clocks = Clocks.of(sides.both)
    arguments = {
        "queue": _QUEUE, "count": sides.options.refs, "batch": _BATCH, "limit_s": sides.options.torture_s,
        "stay_s": clocks.worth_telling_s,
    }  # fmt: skip
    shares = together(sides.both, "queue_churn", **arguments)
    yield _lost(sides, shares)
    yield _twice(clocks, shares)
    yield _acknowledged(shares)


def _lost(sides: Sides, shares: Sequence[dict[str, Any]]) -> Verdict:
    put = {sample_id for share in shares for sample_id in share["put"]}
    done = _done_ids(os.path.join(sides.directory, _QUEUE), put)
    pending, leased, _, failed = sides.queue(sides.a, "counts", _QUEUE)
    lost, left = sorted(put - done), pending + leased + failed
    text = f"of {len(put)} refs put {len(done & put)} are done"
    figures = {"put": len(put), "done": len(done), "lost": lost, "pending": pending, "leased": leased, "failed": failed}
    if lost or done != put or left:
        text += f"; left: {pending} pending, {leased} leased, {failed} failed; {len(done - put)} that nobody put"
        return Verdict("nothing is lost or stuck", "broken", text, figures)
    return Verdict("nothing is lost or stuck", "holds", text, figures)


def _done_ids(queue: str, expected: set[str]) -> set[str]:
    """Return the ids in done/, as this process sees them once it sees all that are expected, or after a while."""
    ops = fileops.current()
    deadline = ops.monotonic() + _SETTLE_S
    while True:
        with closing(Directory(ops, os.path.join(queue, "done"))) as place:
            parsed = [names.parse_done(name) for name in place.listing()]
        found = {names.id_of(stem[0]) or stem[0] for stem in parsed if stem is not None}
        if found >= expected or ops.monotonic() >= deadline:
            return found
        ops.sleep(_LOOK_S)


def _twice(clocks: Clocks, shares: Sequence[dict[str, Any]]) -> Verdict:
    """Compare the times at which each side held a ref, by their clocks: the files have no say in it."""
    holds = [defaultdict[str, list[tuple[float, float]]](list) for _ in shares]
    for own, share in zip(holds, shares, strict=True):
        for sample_id, begin, end in share["held"]:
            own[sample_id].append((begin, end))
    held_by_two = sorted(
        sample_id for sample_id in set().union(*holds) if clocks.overlaps([own.get(sample_id, []) for own in holds])
    )
    leases_lost = sorted(sample_id for share in shares for sample_id in share["lost_leases"])
    text = (
        f"{sum(len(share['held']) for share in shares)} leases: {len(held_by_two)} refs held by two, "
        f"{len(leases_lost)} leases lost to others"
    )
    figures = {"held_by_two": held_by_two, "leases_lost": leases_lost}
    return Verdict("a ref is leased to one", "broken" if held_by_two or leases_lost else "holds", text, figures)


def _acknowledged(shares: Sequence[dict[str, Any]]) -> Verdict:
    put = {sample_id for share in shares for sample_id in share["put"]}
    acked = Counter(sample_id for share in shares for sample_id in share["acked"])
    again = sorted(sample_id for sample_id, times in acked.items() if times > 1)
    missing = sorted(put - set(acked))
    text = f"{len(acked)} refs: {len(again)} acknowledged twice, {len(missing)} by nobody"
    figures = {"again": again, "missing": missing}
    return Verdict("an ack is accepted once", "broken" if again or missing else "holds", text, figures)
