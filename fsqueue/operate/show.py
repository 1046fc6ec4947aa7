"""Show the refs of a queue one by one: a line for each, or everything about one. Takes no lock and writes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from fsqueue.engine.layout import STATES, Layout
from fsqueue.engine.listing import File, files_in, id_of, in_order, look_inside, packed_in, reading, stamp_of
from fsqueue.engine.onlooker import time_there
from fsqueue.format import names
from fsqueue.format.codec import Event
from fsqueue.format.untyped import Place, RefSight
from fsqueue.operate.status import OwnerStatus, elapsed_s, owner_status

_LOOKS = 3


@dataclass(frozen=True)
class Entry:
    """Hold one line of a listing.

    Attributes:
        age_s, size_bytes, attempts, reason: None where details were not asked for.
        due_in_s: in how many seconds a ref that waits to be tried again comes back; None: it does not wait.
    """

    state: str
    id: str
    path: str
    owner: str | None
    step: int | None
    age_s: float | None = None
    size_bytes: int | None = None
    attempts: int | None = None
    reason: str | None = None
    due_in_s: float | None = None


def entries(
    path: str | os.PathLike[str],
    states: list[str],
    *,
    owner: str | None = None,
    limit: int | None = None,
    details: bool = False,
) -> list[Entry]:
    """List the refs of these states as `in_order` does; details cost a stat and a read of each."""
    with reading(path) as layout:
        now = time_there(layout) if details else 0.0
        files = (file for state in states for file in in_order(layout, state, owner))
        found = (_entry(layout, file, now, details) for file in files)
        return list(islice((entry for entry in found if entry is not None), limit))


def _entry(layout: Layout, file: File, now: float, details: bool) -> Entry | None:
    """Return one line; None where the file has moved on since it was listed."""
    plain = Entry(
        state=file.state,
        id=id_of(layout, file),
        path=os.path.join(layout.path, file.state, file.name),
        owner=file.place.owner,
        step=file.place.step,
    )
    if not details:
        return plain
    stamp, seen = stamp_of(layout, file), look_inside(layout, file)
    if stamp is None:
        return None
    return replace(
        plain,
        age_s=elapsed_s(now, stamp.mtime),
        size_bytes=stamp.size_bytes,
        attempts=seen.bookkeeping.attempts if seen else None,
        reason=seen.bookkeeping.reason if seen else None,
        due_in_s=None if file.place.due is None else elapsed_s(file.place.due, now),
    )


@dataclass(frozen=True)
class Detail:
    """Hold what one file of a ref says.

    Attributes:
        age_s: seconds since its last stamp: when it was put, leased, renewed, or got history.
        reason: why a dead letter is one.
        ref: the ref's fields; None where the file holds no JSON object.
        problem: why it holds no ref; None where it does.
    """

    state: str
    path: str
    sample_id: str
    owner: OwnerStatus | None
    step: int | None
    age_s: float
    attempts: int
    expiries: int
    reason: str | None
    history: list[Event]
    ref: dict[str, Any] | None
    problem: str | None


def show(path: str | os.PathLike[str], sample_id: str) -> list[Detail]:
    """Return everything about one id: the file of the live ref, and those of its earlier lives.

    RACE: a ref that moves while its places are looked at is looked for again.
    """
    stem = names.stem_of(sample_id)
    with reading(path) as layout:
        for _ in range(_LOOKS):
            found = _details(layout, stem)
            if found:
                break
        return found


def _details(layout: Layout, stem: str) -> list[Detail]:
    now = time_there(layout)
    found: dict[object, Detail] = {}
    for state in STATES:
        for file in _files_of(layout, state, stem):
            stamp, seen = stamp_of(layout, file), look_inside(layout, file)
            if stamp is not None and seen is not None:
                found.pop(stamp.identity, None)  # the same file, moved on since
                found[stamp.identity] = _detail(layout, file, seen, elapsed_s(now, stamp.mtime), now)
    return list(found.values())


def _files_of(layout: Layout, state: str, stem: str) -> list[File]:
    if state == "failed":
        return [File(state, names.ref_file(stem), Place(stem))]
    files = [file for file in files_in(layout, state) if file.place.stem == stem]
    return [*packed_in(layout, stem), *files] if state == "done" else files


def _detail(layout: Layout, file: File, seen: RefSight, age_s: float, now: float) -> Detail:
    owner = file.place.owner
    return Detail(
        state=file.state,
        path=os.path.join(layout.path, file.state, file.name),
        sample_id=seen.sample_id or file.place.stem,
        owner=owner_status(layout, owner, 1, age_s, now) if owner else None,
        step=file.place.step,
        age_s=age_s,
        attempts=seen.bookkeeping.attempts,
        expiries=seen.bookkeeping.expiries,
        reason=seen.bookkeeping.reason,
        history=seen.bookkeeping.history,
        ref=seen.fields,
        problem=seen.problem,
    )
