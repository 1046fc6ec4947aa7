"""What real queues do between the two sides: nothing lost, nothing held by two, FIFO, and how fast a put is seen."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.format import names
from fsqueue.operate.doctor.peer import side_by_side, together
from verifying.sides import Sides, Verdict, milliseconds

_BATCH = 16
_CHURN_LIMIT_S = 150.0
_SAME_IDS = 40
_PINGS = 40
_TORTURE = "torture"


def queue_checks(sides: Sides) -> Iterator[Verdict]:
    """All of them, one after the other."""
    yield _fifo(sides)
    yield _put_at_once(sides)
    yield from _torture(sides)
    yield _depth(sides)
    yield _visibility(sides)


def _fifo(sides: Sides) -> Verdict:
    """A and B put in turn, then get in turn."""
    sides.open_queue("fifo")
    turns = [sides.a, sides.b] * 5
    ids = [f"{number:04d}" for number in range(10 * len(turns))]
    for turn, peer in enumerate(turns):
        sides.queue(peer, "put", "fifo", ids=ids[10 * turn : 10 * turn + 10])
    got: list[str] = []
    for peer in [sides.b, sides.a] * 10:
        batch = sides.queue(peer, "get", "fifo", count=7)
        sides.queue(peer, "ack", "fifo", ids=batch)
        got += batch
    out_of_place = sum(1 for wanted, found in zip(ids, got, strict=False) if wanted != found) + len(ids) - len(got)
    text = f"{len(ids)} refs put and got by A and B in turn: {out_of_place} out of place"
    return Verdict("FIFO", out_of_place == 0 if _ordered(sides) else None, text, {"out_of_place": out_of_place})


def _put_at_once(sides: Sides) -> Verdict:
    """A and B put the same ids at the same time; each is to be queued once."""
    sides.open_queue("same")
    ids = [f"same-{number}" for number in range(_SAME_IDS)]
    together([sides.a, sides.b], "queue_put_same", queue="same", ids=ids)
    got = sides.drain(sides.a, "same", 2 * len(ids), timeout_s=0.0)
    missing, doubled = len(set(ids) - set(got)), len(got) - len(set(got))
    text = f"{len(ids)} ids put by A and B at once: {doubled} queued twice, {missing} missing"
    holds = missing == 0 and (doubled == 0 or not _ordered(sides))
    return Verdict("an id is queued once", holds, text, {"doubled": doubled, "missing": missing})


def _ordered(sides: Sides) -> bool:
    """Whether order and deduplication are promised: they rest on the lock, and on nothing else."""
    return sides.lock != "none"


def _torture(sides: Sides) -> Iterator[Verdict]:
    """A and B put, lease, fail, release and acknowledge at once until nothing is left."""
    sides.make_directory("held")
    sides.open_queue(_TORTURE)
    arguments = {"queue": _TORTURE, "count": sides.options.refs, "batch": _BATCH, "limit_s": _CHURN_LIMIT_S}
    shares = together([sides.a, sides.b], "queue_churn", **arguments)
    put = {sample_id for share in shares for sample_id in share["put"]}
    acked = Counter(sample_id for share in shares for sample_id in share["acked"])
    doubled = [sample_id for share in shares for sample_id in share["held_by_two"]]
    leases_lost = [sample_id for share in shares for sample_id in share["lost_leases"]]
    done = _done_ids(os.path.join(sides.directory, _TORTURE))
    counts = sides.queue(sides.a, "counts", _TORTURE)
    returned = sum(share["returned"] for share in shares)
    lost = put - done
    text = (
        f"{len(put)} refs put, {len(done & put)} done, {len(lost)} lost, {len(done - put)} unexpected; "
        f"left: {counts[0]} pending, {counts[1]} leased, {counts[3]} failed; A acked {len(shares[0]['acked'])}, "
        f"B {len(shares[1]['acked'])}; given back {returned} times"
    )
    clean = not lost and done == put and counts[0] == counts[1] == counts[3] == 0
    yield Verdict("nothing lost", clean, text, {"put": len(put), "done": len(done), "lost": sorted(lost)})
    yield Verdict(
        "never leased twice",
        not doubled and not leases_lost,
        f"{acked.total() + returned} leases: {len(doubled)} refs held by two, {len(leases_lost)} leases lost meanwhile",
        {"held_by_two": sorted(doubled), "leases_lost": sorted(leases_lost)},
    )
    again = sorted(sample_id for sample_id, times in acked.items() if times > 1)
    missing = sorted(put - set(acked))
    text = f"{len(acked)} refs: {len(again)} acknowledged twice, {len(missing)} by nobody"
    yield Verdict("acknowledged once", not again and not missing, text, {"again": again, "missing": missing})


def _done_ids(queue: str) -> set[str]:
    """The ids in done/, as this process sees them."""
    place = Directory(fileops.current(), os.path.join(queue, "done"))
    try:
        parsed = [names.parse_done(name) for name in place.listing()]
    finally:
        place.close()
    return {names.id_of(found[0]) or found[0] for found in parsed if found is not None}


def _depth(sides: Sides) -> Verdict:
    """What A has put is in the very next count of B's."""
    sides.open_queue("depth")
    wrong = 0
    for number in range(sides.options.rounds):
        sides.queue(sides.a, "put", "depth", ids=[str(number)])
        wrong += sides.queue(sides.b, "counts", "depth")[0] != number + 1
    text = f"{sides.options.rounds} puts by A: {wrong} not in B's next count"
    return Verdict("a put is seen at once", wrong == 0, text, {"late": wrong, "rounds": sides.options.rounds})


def _visibility(sides: Sides) -> Verdict:
    """Half of a round trip through two queues, which takes one clock only."""
    for name in ("there", "back"):
        sides.open_queue(name)
    arguments = {"there": "there", "back": "back", "rounds": _PINGS}
    round_trips, _ = side_by_side([(sides.a, "queue_ping", arguments), (sides.b, "queue_pong", arguments)])
    figures = milliseconds(seconds / 2 for seconds in round_trips)
    text = (
        f"from put to the waiting get of the other side: median {figures['median_ms']} ms, max {figures['max_ms']} ms, "
        f"of {_PINGS}"
    )
    return Verdict("put to get", None, text, figures)
