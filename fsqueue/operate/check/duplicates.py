"""Find refs that are live twice: pending and leased, leased by two owners, or pending under two names; and live files
that have two names in the queue."""

from __future__ import annotations

import os
from collections.abc import Iterator

from fsqueue.format import names
from fsqueue.format.untyped import place_of
from fsqueue.operate.check.looks import Copy, Looks
from fsqueue.operate.check.violations import Severity, Violation


def pair_up(looks: Looks) -> None:
    """Add to the live files that were looked at closely the sound ones of the same refs, and those leased twice."""
    leased, ops = looks.sound.leased, looks.layout.ops
    several = bool(looks.sound.twice or looks.live)
    for name in looks.sound.twice:
        _add(looks, "leased", name)
    for stem in {*leased, *map(names.stem_of, looks.live)}:
        file = names.ref_file(stem)
        is_pending = ops.is_there(looks.layout.pending.fd, file)
        if is_pending:
            _add(looks, "pending", file)
        if stem in leased and (is_pending or several):
            _add(looks, "leased", leased[stem])


def _add(looks: Looks, state: str, name: str) -> None:
    place = place_of(state, name)
    if place is not None:
        looks.live[names.id_of(place.stem) or place.stem][Copy(state, name, place.owner)] = None


def duplicates(looks: Looks, copies: list[Copy]) -> Iterator[Violation]:
    """Yield the copies of one live ref that are too many: all but the one that is to be kept.

    RACE: a file that moves between two listings is seen twice. But two files that each keep their inode from one
    look to the next existed side by side in between.
    """
    first = [_identity(looks, copy) for copy in copies]
    second = [_identity(looks, copy) for copy in copies]
    there = {copy: seen for copy, seen, again in zip(copies, first, second, strict=True) if seen and seen == again}
    inodes = {inode for inode, _ in there.values()}
    linked = any(links > 1 for _, links in there.values())
    if len(there) < 2 or (len(inodes) == 1 and not linked):
        return
    kept, *others = sorted(there, key=lambda copy: (_rank(looks, copy), copy.name))
    # With no lock, an id that two processes put at one moment may be queued twice: design, not damage.
    severity: Severity | None = "note" if looks.layout.settings.lock == "none" else None
    for copy in others:
        kind = "two-leases" if copy.state == "leased" and not _is_dead(looks, copy) else "duplicate"
        problem = f"its ref is live twice: also {kept.state}/{kept.name}"
        yield looks.violation(kind, copy.state, copy.name, problem, severity)


def twins(looks: Looks) -> Iterator[Violation]:
    """Yield live files that have another name in the queue: a rename onto that name would do nothing."""
    for inode, places in looks.linked.items():
        # RACE: a file that moved between two listings was seen under two names, and has one of them now.
        seen = ((place, _status(looks, *place)) for place in places)
        there = [place for place, found in seen if found and found.st_ino == inode]
        for state, name in there:
            other = next((place for place in there if place != (state, name)), None)
            if other is not None and state in ("pending", "leased"):
                yield looks.violation("twin", state, name, f"the same file as {other[0]}/{other[1]}")


def _status(looks: Looks, state: str, name: str) -> os.stat_result | None:
    try:
        return looks.layout.ops.stat(name, dir_fd=looks.directories[state].fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _identity(looks: Looks, copy: Copy) -> tuple[int, int] | None:
    status = _status(looks, copy.state, copy.name)
    return (status.st_ino, status.st_nlink) if status else None


def _rank(looks: Looks, copy: Copy) -> int:
    """Return 0 for the copy to keep before others: a lease that may be worked on, then a dead owner's, then pending."""
    return 2 if copy.state == "pending" else int(_is_dead(looks, copy))


def _is_dead(looks: Looks, copy: Copy) -> bool:
    """Tell whether nobody works under this lease: it has no owner, or one that is known to be gone."""
    return copy.owner is None or looks.liveness(copy.owner) == "dead"
