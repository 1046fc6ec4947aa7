"""Try what one queue promises to both sides: order, one entry an id, and that a put is seen soon."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from fsqueue.operate.doctor.peer import side_by_side, together
from fsqueue.operate.doctor.sides.sides import Sides
from fsqueue.operate.doctor.sides.verdict import Verdict

_SAME_IDS = 40
_PINGS = 20
_SOON_MS = 250.0


def order(sides: Sides) -> Iterator[Verdict]:
    """A and B put in turn, then get in turn."""
    sides.open_queue("fifo")
    turns = list(sides.both) * 5
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
    figures = {"refs": len(ids), "got": len(got), "out_of_place": out_of_place}
    if not out_of_place:
        yield Verdict("refs come in order", "holds", text, figures)
    else:
        yield Verdict("refs come in order", "weaker", text, figures, ("order",))


def once(sides: Sides) -> Iterator[Verdict]:
    """A and B put the same ids at the same time; each is to be queued once."""
    sides.open_queue("same")
    ids = [f"same-{number}" for number in range(_SAME_IDS)]
    together(sides.both, "queue_put_same", queue="same", ids=ids)
    got = sides.drain(sides.a, "same", 2 * len(ids), timeout_s=1.0)
    missing, doubled = len(set(ids) - set(got)), len(got) - len(set(got))
    promise, figures = "an id is queued once", {"doubled": doubled, "missing": missing}
    text = f"{len(ids)} ids put by A and B at once: {doubled} queued twice, {missing} missing"
    if missing:
        yield Verdict(promise, "broken", text, figures)
    elif doubled:
        yield Verdict(promise, "weaker", text, figures, ("deduplication",))
    else:
        yield Verdict(promise, "holds", text, figures)


def depth(sides: Sides) -> Iterator[Verdict]:
    """See whether all that A has put is in the very next count of B's."""
    sides.open_queue("depth")
    wrong = 0
    for number in range(sides.options.rounds):
        sides.queue(sides.a, "put", "depth", ids=[str(number)])
        wrong += sides.queue(sides.b, "counts", "depth")[0] != number + 1
    text = f"{sides.options.rounds} puts by A: {wrong} not in B's next count"
    figures = {"late": wrong, "rounds": sides.options.rounds}
    if not wrong:
        yield Verdict("a put is counted at once", "holds", text, figures)
    else:
        yield Verdict("a put is counted at once", "weaker", text, figures, ("wake-up",))


def latency(sides: Sides) -> Iterator[Verdict]:
    """Take half of a round trip through two queues, which needs one clock only."""
    for name in ("there", "back"):
        sides.open_queue(name)
    arguments = {"there": "there", "back": "back", "rounds": _PINGS}
    round_trips, _ = side_by_side([(sides.a, "queue_ping", arguments), (sides.b, "queue_pong", arguments)])
    ways_ms = [seconds * 500 for seconds in round_trips]
    median_ms, slowest_ms = round(statistics.median(ways_ms), 1), round(max(ways_ms), 1)
    figures = {"median_ms": median_ms, "max_ms": slowest_ms}
    text = f"from put to the other side's waiting get: median {median_ms:g} ms, at most {slowest_ms:g} ms of {_PINGS}"
    if median_ms <= _SOON_MS:
        yield Verdict("a waiting get wakes up", "holds", text, figures)
    else:
        yield Verdict("a waiting get wakes up", "weaker", text, figures, ("wake-up",))
