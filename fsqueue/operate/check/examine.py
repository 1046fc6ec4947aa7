"""Looking a queue over for what should not be: takes no lock and writes nothing.

A running queue changes under the look. So whatever seems wrong is looked at again, and counts only when a file
shows the same problem twice while its inode, size and mtime stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from fsqueue.engine.layout import Layout
from fsqueue.operate.check.duplicates import duplicates, twins
from fsqueue.operate.check.looks import Look, Looks
from fsqueue.operate.check.violations import Violation

_LOOKS = 5
_PAUSE_S = 0.1


class Examination:
    """One look over an open queue."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._looks = Looks(layout)

    def run(self) -> list[Violation]:
        """Everything that is wrong, notes included, sorted by path."""
        with closing(self._looks):
            return self._run()

    def _run(self) -> list[Violation]:
        looks = self._looks
        looks.refresh()
        seen = (looks.look(place, name) for place in looks.places for name in looks.names_in(place))
        suspects = [look for look in seen if look.found]
        several = [list(copies) for copies in looks.live.values() if len(copies) > 1]
        found = [*looks.directories(), *self._confirmed(suspects)]
        for copies in several:
            found += duplicates(self._layout, looks, copies)
        dropped = {violation.path for violation in found if violation.kind == "duplicate"}
        found += (violation for violation in twins(looks) if violation.path not in dropped)
        return sorted(found, key=lambda violation: (violation.path, violation.kind))

    def _confirmed(self, suspects: list[Look]) -> Iterator[Violation]:
        """Those problems that an unchanged file shows again.

        RACE: at the first look a file may have been moving on, or half written. One that is another at every
        look is in use, and no damage is claimed.
        """
        for _ in range(_LOOKS):
            if not suspects:
                return
            self._layout.ops.sleep(_PAUSE_S)
            self._looks.refresh()
            changing = []
            for before in suspects:
                after = self._looks.look(before.place, before.name)
                if before.signature == after.signature:
                    kinds = {violation.kind for violation in before.found}
                    yield from (violation for violation in after.found if violation.kind in kinds)
                elif after.found:
                    changing.append(after)
            suspects = changing
