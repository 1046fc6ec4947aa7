"""Tell where refs are by their ids, also those that are done: what a process that starts again has put before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from fsqueue.engine.layout import Layout
from fsqueue.engine.letters import letters_beside
from fsqueue.engine.listing import files_in, packed_in
from fsqueue.format import names

RefState = Literal["pending", "leased", "done", "failed"]

_LOOKS = 3
_FEW = 16


def states_of(layout: Layout, ids: Iterable[str]) -> dict[str, RefState]:
    """Map those of these ids that are in the queue to their states, in the order given.

    Where an id has files of several lives, the live one counts, then the one that is done. Costs one listing of each
    directory, however many ids there are, and a read of the segments; up to 16 ids that are pending cost a stat each.

    RACE: a ref that moves back while its places are looked at is looked for again.
    """
    stems = {sample_id: names.stem_of(sample_id) for sample_id in ids}
    found: dict[str, RefState] = {}
    for _ in range(_LOOKS):
        for state, look in _LOOK_INTO.items():
            if missing := set(stems.values()) - found.keys():
                found.update(dict.fromkeys(look(layout, missing), state))
    return {sample_id: found[stem] for sample_id, stem in stems.items() if stem in found}


def _pending(layout: Layout, stems: set[str]) -> set[str]:
    if len(stems) > _FEW:
        return stems.intersection(filter(None, map(names.parse_pending, layout.pending.listing())))
    layout.refresh_pending()
    return {stem for stem in stems if layout.ops.exists(layout.pending.fd, names.ref_file(stem))}


def _leased(layout: Layout, stems: set[str]) -> set[str]:
    return stems & {file.place.stem for file in files_in(layout, "leased")}


def _done(layout: Layout, stems: set[str]) -> set[str]:
    found = stems & {file.place.stem for file in files_in(layout, "done")}
    if found == stems:
        return found
    only = next(iter(stems)) if len(stems) == 1 else None
    return found | (stems & {file.place.stem for file in packed_in(layout, only)})


def _failed(layout: Layout, stems: set[str]) -> set[str]:
    found = stems & {file.place.stem for file in files_in(layout, "failed")}
    return found | letters_beside(layout, stems - found).keys()


_LOOK_INTO: dict[RefState, Callable[[Layout, set[str]], Collection[str]]] = {
    "pending": _pending,
    "leased": _leased,
    "done": _done,
    "failed": _failed,
}
