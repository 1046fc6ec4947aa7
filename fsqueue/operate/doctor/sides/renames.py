"""Try what a rename and an exclusive creation decide between the two sides, and what their success is worth."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fsqueue.disk import fileops
from fsqueue.operate.doctor.races import RaceFindings, create_race, rename_race
from fsqueue.operate.doctor.sides.sides import Sides
from fsqueue.operate.doctor.sides.verdict import Judgement, Verdict

_SETTLE_S = 25.0
_KNOWN_BY: tuple[list[str], ...] = (
    ["stat"],
    ["open"],
    ["listing"],
    [],
    ["listing", "stat", "open"],
)  # what a client keeps differs
_RETURNS = len(_KNOWN_BY)


def race(sides: Sides) -> Iterator[Verdict]:
    """A and B want the same files, each by a rename to a name of its own."""
    found = rename_race(fileops.current(), sides.directory, sides.both, sides.options.files, _SETTLE_S)
    told = _told(found)
    judgement: Judgement = "holds"
    if not found.decided:
        judgement = "broken"
        told += ": one ref may go to two, or to nobody"
    elif found.heard or found.unreported:
        judgement = "lives with it"
        told += "; fsqueue looks where the file is before it believes an error"
    yield Verdict("a rename decides a race", judgement, told, _figures(found))


def create(sides: Sides) -> Iterator[Verdict]:
    """A and B create the same names with O_EXCL, on which lock="lease" rests and nothing else."""
    found = create_race(fileops.current(), sides.directory, sides.both, sides.options.files)
    promise, told = "O_EXCL decides a race", _told(found)
    if found.decided:
        yield Verdict(promise, "lives with it" if found.heard else "holds", told, _figures(found))
    elif sides.options.lock == "lease":
        text = f"{told}: lock='lease' excludes nobody here"
        yield Verdict(promise, "weaker", text, _figures(found), ("order", "deduplication"))
    else:
        yield Verdict(promise, "lives with it", f"{told}; only lock='lease' needs it: do not use that", _figures(found))


def _told(found: RaceFindings) -> str:
    told = (
        f"{found.files} raced for: {found.one_winner} with one winner (A {found.wins[0]}, B {found.wins[1]}), "
        f"{found.several_winners} with two, {found.gone} with none"
    )
    if found.unreported:
        told += f", {found.unreported} won but reported as failed"
    if found.heard:
        told += ", losers heard " + ", ".join(f"{name} {count} times" for name, count in sorted(found.heard.items()))
    return told


def _figures(found: RaceFindings) -> dict[str, object]:
    keys = ("files", "one_winner", "several_winners", "gone", "unreported", "wins", "heard")
    return {key: getattr(found, key) for key in keys}


def returns(sides: Sides) -> Iterator[Verdict]:
    """A knows P/x, B renames it to L/x, A renames it back: does that 0 mean that the file has moved?

    A client that still holds P/x for a name of the file takes both names for the same, and does nothing. Names that
    nobody has used cannot be taken so: this is how fsqueue gets the file through.
    """
    for name in ("from-here", "to-there"):
        sides.make_directory(name)
    plain = [_return(sides, f"plain-{number}", ways, refresh=False) for number, ways in enumerate(_KNOWN_BY)]
    opened = [_return(sides, f"opened-{number}", ways, refresh=True) for number, ways in enumerate(_KNOWN_BY)]
    stuck = sum(outcome == "stuck" for outcome in plain + opened)
    idle = [sum(outcome != "moved" for outcome in outcomes) for outcomes in (plain, opened)]
    figures = {"rounds": _RETURNS, "did_nothing": idle[0], "did_nothing_after_opening": idle[1], "stuck": stuck}
    promise = "a rename back does what it says"
    if stuck:
        text = f"{stuck} of {2 * _RETURNS} files stayed, whatever they were to be called: leases never end"
        yield Verdict(promise, "broken", text, figures)
    elif any(idle):
        text = (
            f"{idle[0]} of {_RETURNS} succeeded and did nothing, {idle[1]} of {_RETURNS} where both directories were "
            "opened before; fsqueue sees that the file still opens under its old name, and takes a name never used"
        )
        yield Verdict(promise, "lives with it", text, figures)
    else:
        yield Verdict(promise, "holds", f"all of {2 * _RETURNS} files moved", figures)


def _return(sides: Sides, name: str, ways: list[str], *, refresh: bool) -> str:
    """Send one file to and fro; return "moved", "idle" where only a new name moved it, or "stuck"."""
    a, b = sides.both
    here = {peer.name: [os.path.join(peer.directory, way) for way in ("from-here", "to-there")] for peer in (a, b)}
    a.call("make", directory=here["A"][0], name=name)
    b.call("sees", directory=here["B"][0], name=name, present=True, way="open", patience_s=_SETTLE_S)
    a.call("know", directory=here["A"][0], name=name, ways=ways)
    b.call("move", directory=here["B"][0], name=name, target=here["B"][1], new_name=name, refresh=False)
    back = {"directory": here["A"][1], "name": name, "target": here["A"][0], "refresh": refresh}
    if a.call("move", new_name=name, **back):
        return "moved"
    return "idle" if a.call("move", new_name=f"{name}.anew", **back) else "stuck"
