"""Which samples a queue or a ledger knows already, so that a run that is started again leaves them alone."""

from __future__ import annotations

import os

from fsqueue.engine.layout import STATES
from fsqueue.engine.listing import File, files_in, id_of, packed_in, reading


def ids_in(path: str | os.PathLike[str]) -> set[str]:
    """Return the ids of all refs in a queue, whatever state they are in; costs a few listings.

    RACE: a ref may move while the directories are listed one after the other. One that moves forward is seen by a later
    listing, one that moves back by an earlier one, in the other direction; so they are listed to and fro, until a pass
    brings nothing new.
    """
    found: set[str] = set()
    with reading(path) as layout:
        there = list(STATES)
        while True:
            before = len(found)
            for state in [*there, *reversed(there)]:
                files: list[File] = files_in(layout, state)
                found.update(id_of(layout, file) for file in files)
                if state == "done":
                    found.update(id_of(layout, file) for file in packed_in(layout))
            if len(found) == before:
                return found
