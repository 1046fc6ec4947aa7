"""Try flock between the two sides: that it excludes, and that what is read under it is what was written last."""

from __future__ import annotations

from collections.abc import Iterator

from fsqueue.disk import fileops
from fsqueue.operate.doctor.races import LockFindings, lock_race
from fsqueue.operate.doctor.sides.sides import Sides
from fsqueue.operate.doctor.sides.verdict import Verdict

_ROUNDS_EACH = 8
_LIMIT_S = 10.0
_EXCLUDES, _FRESH = "flock excludes", "the lock keeps the order fresh"


def lock(sides: Sides) -> Iterator[Verdict]:
    """Race for one lock twice, with a descriptor that is kept and with one opened under the lock.

    Where there is no flock, the queues of the checks that follow have none.
    """
    kept = _race(sides, anew=False)
    if not kept.supported:
        sides.without_flock()
        text = f"there is no flock ({kept.error}): order and deduplication rest on it; lock='lease' may take its place"
        yield Verdict(_EXCLUDES, "weaker", text, {"error": kept.error}, ("order", "deduplication"))
        return
    anew = _race(sides, anew=True)
    yield _exclusion(kept, anew)
    yield _freshness(sides, kept, anew)


def _race(sides: Sides, *, anew: bool) -> LockFindings:
    rounds = _ROUNDS_EACH * sides.options.rounds
    return lock_race(fileops.current(), sides.directory, sides.both, rounds, _LIMIT_S, anew=anew)


def _exclusion(kept: LockFindings, anew: LockFindings) -> Verdict:
    rounds, waits, overlaps = (getattr(kept, key) + getattr(anew, key) for key in ("rounds", "waits", "overlaps"))
    figures = {"rounds": rounds, "waits": waits, "overlaps": overlaps}
    told = f"{rounds} rounds by A and B, {waits} waits, {overlaps} overlaps"
    if overlaps:
        text = f"{told}: A and B are inside together, so two nodes may put an id twice, and out of order"
        return Verdict(_EXCLUDES, "weaker", text, figures, ("order", "deduplication"))
    if not waits:
        text = f"{told}: they never met at the lock, so nothing is shown; try again"
        return Verdict(_EXCLUDES, "weaker", text, figures, ("order", "deduplication"))
    return Verdict(_EXCLUDES, "holds", told, figures)


def _freshness(sides: Sides, kept: LockFindings, anew: LockFindings) -> Verdict:
    """Judge by the way in which the engine reads the order on this kind of filesystem."""
    figures = {"kept_descriptor_lost": kept.lost_updates, "opened_anew_lost": anew.lost_updates}
    told = (
        f"of {kept.rounds} updates {kept.lost_updates} were lost through a descriptor that is kept, of {anew.rounds} "
        f"{anew.lost_updates} through one opened under the lock"
    )
    if kept.overlaps or anew.overlaps:
        return Verdict(_FRESH, "measured", f"{told}: without exclusion that says nothing", figures)
    if not kept.lost_updates and not anew.lost_updates:
        return Verdict(_FRESH, "holds", told, figures)
    if sides.filesystem.lock_freshens:
        lost, way = kept.lost_updates, "kept"
    else:
        lost, way = anew.lost_updates, "opened under the lock"
    if lost:
        text = f"{told}; fsqueue reads through one that is {way}, so refs may come out of order"
        return Verdict(_FRESH, "weaker", text, figures, ("order", "deduplication"))
    return Verdict(_FRESH, "lives with it", f"{told}; fsqueue reads through one that is {way}", figures)
