"""Discard refs that nobody is to work on any more: from pending/ to failed/, with the reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from fsqueue.disk.fileops import callers
from fsqueue.engine import arguments
from fsqueue.engine.annotations import Change
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import Layout
from fsqueue.engine.listing import File, Stamp, files_in, id_of, reading, stamp_of
from fsqueue.engine.onlooker import time_there
from fsqueue.engine.progress import Progress
from fsqueue.errors import InvalidArgumentError
from fsqueue.format.codec import Bookkeeping, Event
from fsqueue.log import some, tell
from fsqueue.operate.operator import Outcome, fetch, not_given, operator, told
from fsqueue.operate.show import Predicate, detail_of
from fsqueue.operate.status import elapsed_s


class _Stale(NamedTuple):
    """Name a pending ref that is to go, by its file as it was seen."""

    file: File
    stamp: Stamp
    sample_id: str


def discard(
    path: str | os.PathLike[str],
    reason: str,
    *,
    older_than_s: float | None = None,
    where: Predicate | None = None,
    dry_run: bool = False,
    each: Callable[[Outcome], object] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Move pending refs to failed/ that are too old, or made by an older model; all that is given has to hold.

    What is leased stays with its holder. `requeue` brings back what was discarded by mistake. It costs a stat of each
    pending ref, a read too where there is a predicate, and for each that goes what a failure costs.

    Args:
        reason: why; it stands in the file, as that of any dead letter.
        older_than_s: those whose last stamp is so long ago, seconds: when they were put, or leased last. 0: all.
        where: those for which it returns True, as ``lambda it: it.ref["draft_weight_version"] != "v7"``.
        each: called with each that was discarded, at once.
        progress: called as the work goes on, with how many were seen to, and of how many.

    Returns:
        What was discarded, and what the storage does not give, so that the predicate could not be asked; what
        somebody has leased meanwhile is left out.

    Raises:
        InvalidArgumentError: neither older_than_s nor where is given, or an argument cannot be meant.
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; discard again to complete it.
    """
    if older_than_s is None and where is None:
        raise InvalidArgumentError("discard(older_than_s=, where=)", "at least one of them, 0 for all", None)
    arguments.text("discard(reason=)", reason)
    arguments.elapsed_or_none("discard(older_than_s=)", older_than_s)
    arguments.call_or_none("discard(where=)", where)
    where, each, progress = callers(where), callers(each), callers(progress)
    with reading(path) as layout:
        unread: list[Outcome] = []
        stale = _stale_in(layout, older_than_s, where, unread)
    outcomes = told([], unread, each)
    if dry_run or not stale:
        return told(outcomes, [Outcome(found.sample_id, True, "from pending/") for found in stale], each)
    with operator(path, layout.settings) as handle:
        for seen, found in enumerate(stale, 1):
            if _discard(handle, found, reason):
                told(outcomes, [Outcome(found.sample_id, True, "from pending/")], each)
            if progress is not None:
                progress(seen, len(stale))
    tell(
        __name__,
        "info",
        layout.path,
        "discarded %d refs, %s: %s",
        sum(it.moved for it in outcomes),
        reason,
        some(it.sample_id for it in outcomes if it.moved),
    )
    return outcomes


def _stale_in(
    layout: Layout, older_than_s: float | None, where: Predicate | None, unread: list[Outcome]
) -> list[_Stale]:
    """Find what is stale; those of which that cannot be known go into unread."""
    now, found = time_there(layout), []
    for file in sorted(files_in(layout, "pending")):
        stamp = _stamp_of_ref(layout, file)
        if stamp is None or elapsed_s(now, stamp.mtime) < (older_than_s or 0.0):
            continue
        if where is None:
            found.append(_Stale(file, stamp, id_of(layout, file)))
        elif (detail := detail_of(layout, file, now)) is not None:
            if where(detail):
                found.append(_Stale(file, stamp, detail.sample_id))
        elif stamp_of(layout, file) is not None:
            unread.append(Outcome(id_of(layout, file), False, not_given(f"pending/{file.name}")))
    return found


def _stamp_of_ref(layout: Layout, file: File) -> Stamp | None:
    """Return a file's stamp; None where it is gone, or is a directory or the like, which `check` tells of."""
    status = layout.ops.status(layout.pending.fd, file.name)
    if status is None or not stat.S_ISREG(status.st_mode):
        return None
    return Stamp(status.st_ino, status.st_mtime, status.st_size)


def _discard(handle: Handle, found: _Stale, reason: str) -> bool:
    """Move a ref to failed/ that has not moved since it was seen; False where somebody has it.

    RACE: it may be leased, settled and put anew between the look at its stamp and the fetching: then that life is
    discarded, under the same id, which `requeue` brings back.
    CRASH: after the fetching this is a lease of a process that is gone, which comes back to pending/.
    """
    pending = handle.layout.pending
    if stamp_of(handle.layout, found.file) != found.stamp:
        return False
    claim = fetch(handle, pending, found.file.name, found.file.place.stem)
    if claim is None:
        return False
    there = handle.moves.annotate(claim, _discarded(handle.clock.now(), handle.owner, reason)) is not None
    buried = there and handle.moves.bury(claim)
    handle.strays.discard(claim)
    return buried


def _discarded(now: float, owner: str, reason: str) -> Change:
    def change(bookkeeping: Bookkeeping) -> None:
        bookkeeping.add(Event("discarded", now, owner, reason))
        bookkeeping.reason = reason

    return change
