"""Look a queue over for what should not be: takes no lock and writes nothing.

A running queue changes under the look. So whatever seems wrong is looked at again, and counts only when a file
shows the same problem twice while its inode, size and mtime stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from fsqueue.engine.layout import STATES, Layout
from fsqueue.engine.progress import Progress, unheard
from fsqueue.operate.check.duplicates import duplicates, pair_up, twins
from fsqueue.operate.check.looks import Look, Looks
from fsqueue.operate.check.violations import Violation

_LOOKS = 5
_PAUSE_S = 0.1


def examine(layout: Layout, progress: Progress = unheard) -> list[Violation]:
    """Return everything that is wrong with an open queue, notes included, sorted by path."""
    with closing(Looks(layout)) as looks:
        looks.refresh()
        suspects = [look for look in _look_at_all(looks, progress) if look.found]
        pair_up(looks)
        several = [list(copies) for copies in looks.live.values() if len(copies) > 1]
        found = [*looks.unfit_directories(), *_confirmed(looks, suspects)]
        for copies in several:
            found += duplicates(looks, copies)
        dropped = {violation.path for violation in found if violation.kind == "duplicate"}
        found += (violation for violation in twins(looks) if violation.path not in dropped)
        return sorted(found, key=lambda violation: (violation.path, violation.kind))


def _look_at_all(looks: Looks, progress: Progress) -> Iterator[Look]:
    """Look at every name of every directory, as it is listed when its turn comes."""
    left = {where: len(looks.names_in(where)) for where in looks.directories} if progress is not unheard else {}
    done = 0
    for where in looks.directories:
        left.pop(where, None)
        listed = looks.names_in(where)
        total = done + len(listed) + sum(left.values())
        close = looks.sound.others(where, looks.directories[where], listed) if where in STATES else listed
        for name in close:
            if name is not None:
                yield looks.look(where, name)
            done += 1
            progress(done, total)


def _confirmed(looks: Looks, suspects: list[Look]) -> Iterator[Violation]:
    """Yield those problems that an unchanged file shows again.

    RACE: at the first look a file may have been moving on, or half written. A file that is another one at every
    look is in use, and no damage is claimed.
    """
    for _ in range(_LOOKS):
        if not suspects:
            return
        looks.layout.ops.sleep(_PAUSE_S)
        looks.refresh()
        changing = []
        for before in suspects:
            after = looks.look(before.where, before.name)
            if before.signature == after.signature:
                kinds = {violation.kind for violation in before.found}
                yield from (violation for violation in after.found if violation.kind in kinds)
            elif after.found:
                changing.append(after)
        suspects = changing
