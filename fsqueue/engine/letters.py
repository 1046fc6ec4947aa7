"""Find the dead letters that could not have their own names in failed/."""

from __future__ import annotations

from functools import partial

from fsqueue.engine.layout import Layout
from fsqueue.errors import CorruptRefError
from fsqueue.format import names
from fsqueue.format.untyped import sight


def letters_beside(layout: Layout, stems: set[str]) -> dict[str, str]:
    """Map refs to the names of their dead letters, where these are substitutes such as ``<id>.<6 hex>.json``.

    Costs one listing, and a read of every letter whose name may be one.
    """
    found: dict[str, str] = {}
    if not stems:
        return found
    long = [stem for stem in stems if names.may_be_cut_beside(stem)]
    for name in layout.failed.listing():
        letter = names.parse_ref(name)
        if letter is None:
            continue
        if letter[: -names.MARK_BYTES] in stems or any(map(partial(names.may_be_beside, letter), long)):
            stem = _stem_inside(layout, name)
            if stem in stems:
                found[stem] = name
    return found


def _stem_inside(layout: Layout, name: str) -> str:
    try:
        sample_id = sight(layout.ops.read_file(layout.failed.fd, name)).sample_id
    except (FileNotFoundError, CorruptRefError):
        return ""
    return names.stem_of(sample_id) if sample_id else ""
