"""Show the refs of a queue one by one: a line for each, or everything about one. Takes no lock and writes nothing."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from fsqueue.disk.fileops import callers
from fsqueue.engine import arguments
from fsqueue.engine.layout import STATES, Layout
from fsqueue.engine.listing import (
    File,
    files_in,
    id_of,
    in_order,
    look_inside,
    owners_named,
    packed_in,
    reading,
    stamp_of,
)
from fsqueue.engine.onlooker import time_there
from fsqueue.errors import InvalidArgumentError
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


def iterate(
    path: str | os.PathLike[str], *states: str, owner: str | None = None, details: bool = False
) -> Generator[Entry, None, None]:
    """Yield the refs in these states: pending ones as they come next, the others by their last stamp.

    The queue is open until the last one was taken, or the iterator is closed. Refs move on meanwhile.

    Args:
        states: "pending", "leased", "done", "failed", one after the other.
        owner: of the leased ones those of this owner, or of all that run on the node of this name.
        details: fill in age, size, attempts and reason too, which costs a stat and a read of each.

    Raises:
        InvalidArgumentError: there is no such state.
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    for state in states:
        _require_state(state)
    return _iterate(path, states, owner, details)


def _iterate(
    path: str | os.PathLike[str], states: tuple[str, ...], owner: str | None, details: bool
) -> Generator[Entry, None, None]:
    with reading(path) as layout:
        now = time_there(layout) if details else 0.0
        files = (file for state in states for file in in_order(layout, state, owner))
        yield from filter(None, (_entry(layout, file, now, details) for file in files))


def entries(
    path: str | os.PathLike[str],
    states: list[str],
    *,
    owner: str | None = None,
    limit: int | None = None,
    details: bool = False,
) -> list[Entry]:
    """Return as a list what `iterate` yields, so many at most."""
    if limit is not None:
        limit = arguments.count("entries(limit=)", limit)
    with closing(_iterate(path, tuple(states), owner, details)) as found:
        return list(islice(found, limit))


def peek(path: str | os.PathLike[str], state: str = "pending", count: int = 1) -> list[Detail]:
    """Return the first refs in a state with all that is known of each, and lease nothing: it may be fewer.

    Args:
        state: "pending", whose next ones are returned, "leased", "done" or "failed", whose oldest ones are.

    Raises:
        InvalidArgumentError: there is no such state, or no such count.
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    _require_state(state)
    count = arguments.count("peek(count=)", count)
    with reading(path) as layout:
        now = time_there(layout)
        found = (detail_of(layout, file, now) for file in in_order(layout, state))
        return list(islice(filter(None, found), count))


def dead_letters(
    path: str | os.PathLike[str],
    *,
    owner: str | None = None,
    reason: str | None = None,
    older_than_s: float | None = None,
    where: Predicate | None = None,
) -> Generator[Detail, None, None]:
    """Yield the refs in failed/ with their reasons and histories, by their names; all that is given has to hold.

    Args:
        owner: those whose last event happened under this owner, or on the node of this name.
        reason: those whose reason this matches, as a shell matches file names and whatever the case.
        older_than_s: those that failed at least so long ago, seconds.
        where: those for which it returns True.

    Raises:
        InvalidArgumentError: an argument cannot be meant.
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    require_choice("dead_letters", owner, reason, older_than_s, where)
    return _dead_letters(path, owner, reason, older_than_s, where)


def _dead_letters(
    path: str | os.PathLike[str],
    owner: str | None,
    reason: str | None,
    older_than_s: float | None,
    where: Predicate | None,
) -> Generator[Detail, None, None]:
    with reading(path) as layout:
        now = time_there(layout)
        wanted = Wanted(layout, owner, reason, older_than_s, where)
        for file in sorted(files_in(layout, "failed")):
            detail = detail_of(layout, file, now)
            if detail is not None and wanted.has(detail):
                yield detail


def require_choice(
    call: str, owner: str | None, reason: str | None, older_than_s: float | None, where: Predicate | None
) -> None:
    """Refuse what chooses no dead letters: a number as the reason, a time to come."""
    arguments.text_or_none(f"{call}(owner=)", owner)
    arguments.text_or_none(f"{call}(reason=)", reason)
    arguments.elapsed_or_none(f"{call}(older_than_s=)", older_than_s)
    arguments.call_or_none(f"{call}(where=)", where)


class Wanted:
    """Choose refs by what is known of them; None chooses all.

    Args:
        owner, reason, older_than_s, where: as for `dead_letters`.
    """

    def __init__(
        self,
        layout: Layout,
        owner: str | None = None,
        reason: str | None = None,
        older_than_s: float | None = None,
        where: Predicate | None = None,
    ) -> None:
        self._layout = layout
        self._owner = owner
        self._reason = reason and reason.casefold()
        self._older_than_s = older_than_s
        self._where = callers(where)
        self._owners: dict[str, bool] = {}  # by owner, whether it is one that is wanted

    def has(self, detail: Detail) -> bool:
        return (
            (self._older_than_s is None or detail.age_s >= self._older_than_s)
            and (self._reason is None or fnmatch.fnmatchcase((detail.reason or "").casefold(), self._reason))
            and (self._owner is None or self._failed_under(detail, self._owner))
            and (self._where is None or bool(self._where(detail)))
        )

    def _failed_under(self, detail: Detail, wanted: str) -> bool:
        last = detail.history[-1].owner if detail.history else None
        owner = names.owner_in(last) if last else None
        if owner is not None and owner not in self._owners:
            self._owners[owner] = bool(owners_named(self._layout, wanted, [owner]))
        return owner is not None and self._owners[owner]


def _require_state(state: str) -> None:
    if state not in STATES:
        raise InvalidArgumentError("state", f"one of {', '.join(STATES)}", state)


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


Predicate = Callable[[Detail], object]
"""Choose a ref by all that is known of it; its `ref` is None where the file holds none."""


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


def detail_of(layout: Layout, file: File, now: float, seen: RefSight | None = None) -> Detail | None:
    """Return everything about one file of a ref, which is read unless it was; None where it is gone or unreadable."""
    stamp, seen = stamp_of(layout, file), seen or look_inside(layout, file)
    return None if stamp is None or seen is None else _detail(layout, file, seen, elapsed_s(now, stamp.mtime), now)


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
