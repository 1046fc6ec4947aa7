"""What the filesystem itself does between the two sides."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise

from fsqueue.disk import fileops
from fsqueue.operate.doctor.races import RaceFindings, create_race, lock_race, rename_race
from verifying.sides import Sides, Verdict

_LOCK_ROUNDS_PER_ROUND = 10
_LOCK_LIMIT_S = 15.0
_CLOCK_TOLERANCE = 0.05


def file_checks(sides: Sides) -> Iterator[Verdict]:
    """All of them, one after the other; sets the queues' lock mode to none where there is no flock."""
    yield _lock(sides)
    yield _renames(sides)
    yield _creates(sides)
    yield from _names(sides)
    yield from _mtimes(sides)
    yield _clock(sides)


def _lock(sides: Sides) -> Verdict:
    rounds = _LOCK_ROUNDS_PER_ROUND * sides.options.rounds
    found = lock_race(fileops.current(), sides.directory, [sides.a, sides.b], rounds, _LOCK_LIMIT_S)
    promised = sides.options.lock == "flock"
    if not found.supported:
        if promised:
            sides.lock = "none"
        text = f"there is none ({found.error}); the queues that follow run with lock={sides.lock!r}"
        return Verdict("flock excludes", False if promised else None, text, {"error": found.error})
    text = (
        f"{found.rounds} rounds by A and B: {found.overlaps} overlaps, {found.lost_updates} lost updates, "
        f"{found.waits} waits"
    )
    if found.excludes and not found.waits:
        text += ", so the sides never met and nothing is shown: try again"
    figures = {key: getattr(found, key) for key in ("rounds", "overlaps", "lost_updates", "waits")}
    shown = found.excludes and found.waits > 0
    return Verdict("flock excludes", shown if promised else None, text, figures)


def _renames(sides: Sides) -> Verdict:
    found = rename_race(fileops.current(), sides.directory, [sides.a, sides.b], sides.options.files)
    return _race_verdict("a rename decides", found, promised=True)


def _creates(sides: Sides) -> Verdict:
    found = create_race(fileops.current(), sides.directory, [sides.a, sides.b], sides.options.files)
    return _race_verdict("O_EXCL decides", found, promised=sides.options.lock == "lease")


def _race_verdict(promise: str, found: RaceFindings, promised: bool) -> Verdict:
    text = (
        f"{found.files} files raced: {found.one_winner} with one winner (A {found.wins[0]}, B {found.wins[1]}), "
        f"{found.several_winners} with two, {found.gone} with none, {found.unreported} won but reported as failed"
    )
    keys = ("files", "one_winner", "several_winners", "gone", "unreported", "wins")
    figures = {key: getattr(found, key) for key in keys}
    return Verdict(promise, found.decided if promised else None, text, figures)


def _names(sides: Sides) -> Iterator[Verdict]:
    """B looks, A changes, B looks again."""
    a, b, rounds = sides.a, sides.b, sides.options.rounds
    listing = {"appeared_late": 0, "vanished_late": 0, "rounds": rounds}
    cached = {"stat_missed_new": 0, "stat_saw_old": 0, "rounds": rounds}
    opened = {"missed_after_opening_directory": 0, "renamed_what_was_gone": 0, "rounds": rounds}
    sides.make_directory("names")
    here, there = (os.path.join(peer.directory, "names") for peer in (a, b))
    for number in range(rounds):
        name = f"ref{number}"
        b.call("status", directory=there, name=name, fresh=False)
        a.call("make", directory=here, name=name)
        cached["stat_missed_new"] += b.call("status", directory=there, name=name, fresh=False) is None
        listing["appeared_late"] += name not in b.call("listing", directory=there)
        opened["missed_after_opening_directory"] += b.call("status", directory=there, name=name, fresh=False) is None
        a.call("rename", directory=here, name=name, new_name=f"{name}.a")
        opened["renamed_what_was_gone"] += b.call("rename", directory=there, name=name, new_name=f"{name}.b")
        cached["stat_saw_old"] += b.call("status", directory=there, name=name, fresh=False) is not None
        listing["vanished_late"] += name in b.call("listing", directory=there)
    yield _counted("listings are fresh", True, listing)
    yield _counted("opening refreshes names", True, opened)
    yield _counted("stat of names is fresh", False, cached)


def _mtimes(sides: Sides) -> Iterator[Verdict]:
    a, b, rounds = sides.a, sides.b, sides.options.rounds
    by_stat = {"stale": 0, "rounds": rounds}
    by_open = {"stale": 0, "rounds": rounds}
    a.call("make", directory=a.directory, name="stamped")
    for _ in range(rounds):
        b.call("status", directory=b.directory, name="stamped", fresh=False)
        stamp_ns = a.call("touch", directory=a.directory, name="stamped")["stamp_ns"]
        by_stat["stale"] += b.call("status", directory=b.directory, name="stamped", fresh=False) != stamp_ns
        by_open["stale"] += b.call("status", directory=b.directory, name="stamped", fresh=True) != stamp_ns
    yield _counted("mtime by open+fstat", True, by_open)
    yield _counted("mtime by stat", False, by_stat)


def _counted(promise: str, promised: bool, figures: dict[str, int]) -> Verdict:
    """A verdict on counts that should all be 0, but for the number of rounds."""
    counts = {key: count for key, count in figures.items() if key != "rounds"}
    text = f"{figures['rounds']} rounds: " + ", ".join(f"{key.replace('_', ' ')} {n}" for key, n in counts.items())
    return Verdict(promise, not any(counts.values()) if promised else None, text, dict(figures))


def _clock(sides: Sides) -> Verdict:
    """A and B stamp one file in turn: by one clock, each stamp is no earlier than the one before."""
    stamps_ns: list[int] = []
    skews_s: dict[str, float] = {}
    for _ in range(sides.options.rounds):
        for peer in (sides.a, sides.b):
            touched = peer.call("touch", directory=peer.directory, name="stamped")
            stamps_ns.append(touched["stamp_ns"])
            skews_s[peer.name] = round(touched["skew_s"], 6)
    back_s = max(0.0, *((earlier - later) / 1e9 for earlier, later in pairwise(stamps_ns)))
    holds = back_s <= _CLOCK_TOLERANCE * sides.options.lease_timeout_s
    text = (
        f"{len(stamps_ns)} stamps by A and B in turn, at most {back_s * 1e3:.3f} ms back; the filesystem's clock is "
        f"{skews_s['A']:+.3f} s from A's, {skews_s['B']:+.3f} s from B's"
    )
    return Verdict("one clock stamps", holds, text, {"stamps": len(stamps_ns), "back_s": back_s, "skews_s": skews_s})
