"""Find the dead letters that could not have their own names in failed/."""

from __future__ import annotations

from collections.abc import Iterable

from fsqueue.engine.layout import Layout
from fsqueue.errors import CorruptRefError
from fsqueue.format import names
from fsqueue.format.untyped import sight


def letters_beside(layout: Layout, stems: set[str]) -> dict[str, str]:
    """Map refs to the names of their dead letters, where these are substitutes such as ``<id>.<6 hex>.json``.

    Costs one listing, and a read of every letter whose name may be one.
    """
    found: dict[str, str] = {}
    for name in layout.failed.listing() if stems else ():
        if _is_beside(name, stems) and (stem := _stem_inside(layout, name)) in stems:
            found[stem] = name
    return found


def _is_beside(name: str, stems: Iterable[str]) -> bool:
    stem = names.parse_ref(name)
    return stem is not None and any(names.may_be_beside(stem, each) for each in stems)


def _stem_inside(layout: Layout, name: str) -> str:
    try:
        sample_id = sight(layout.ops.read_file(layout.failed.fd, name)).sample_id
    except (FileNotFoundError, CorruptRefError):
        return ""
    return names.stem_of(sample_id) if sample_id else ""
