"""Move refs for an operator: release, purge, pack, name_stranded; and what requeue.py and mend.py share.

A ref moves as a handle moves its own: it is first renamed to a leased name of the operator's, which fences everybody
else off, changed there, and renamed to where it goes. A crash in between leaves an ordinary lease of a process that
is gone, which the next get on this host takes back.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from fsqueue.disk.directory import Directory, locating
from fsqueue.disk.fileops import callers, current, explained
from fsqueue.engine import arguments
from fsqueue.engine.annotations import Change, record
from fsqueue.engine.claim import Claimer
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import open_layout
from fsqueue.engine.listing import directory_of, owners_named, reading
from fsqueue.engine.onlooker import time_there
from fsqueue.engine.owners import new_owner, read_record
from fsqueue.engine.packing import pack as packing
from fsqueue.engine.packing.pack import Packed
from fsqueue.engine.packing.revision import look
from fsqueue.engine.progress import Progress, unheard
from fsqueue.engine.settings import Settings
from fsqueue.errors import InvalidArgumentError, QueueConfigError
from fsqueue.format import names, packed
from fsqueue.format.untyped import place_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Say what became of one ref.

    Attributes:
        moved: whether it was moved, or would be in a dry run.
        detail: where from, or why not.
    """

    sample_id: str
    moved: bool
    detail: str


@dataclass(frozen=True)
class Purged:
    """Say what a purge removed, or would remove in a dry run.

    Attributes:
        files: the names in the state's directory.
        refs: how many refs were in them; a segment of packed ones holds many.
    """

    files: list[str]
    refs: int


@contextmanager
def operator(path: str | os.PathLike[str], same_as: Settings | None = None) -> Iterator[Handle]:
    """Open a handle of one's own, announced in owners/, for moves by hand.

    Args:
        same_as: the settings of the queue that was looked at before.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueReplacedError: there is another one than was looked at.
        QueueIOError: the filesystem refused.
    """
    path = os.fspath(path)
    layout = open_layout(current(), path, same_as=same_as)
    handle = Handle(layout, owner=new_owner(None, path), durable=True, heartbeat_s=None, clock=None)
    with explained("changing", path), closing(handle):
        handle.presence.announce()
        yield handle
        for directory in (layout.pending, layout.leased, layout.done, layout.failed):
            directory.sync()


def fetch(handle: Handle, source: Directory, name: str, stem: str) -> Claim | None:
    """Make a file anywhere in the queue a lease of this handle's; return None where it was gone.

    Should an error end what follows, close() gives the ref back to pending/.
    """
    claim = handle.moves.new_claim(stem)
    handle.strays.add([claim])
    if handle.moves.fetch(source, name, claim):
        return claim
    handle.strays.discard(claim)
    return None


def hand_in(handle: Handle, claim: Claim, change: Change, back: list[str]) -> bool:
    """Move a ref that this handle leases to pending/, or to failed/ where it turns out to hold no ref.

    Returns False where the lease was lost. Adds the stem to back once it is pending: the caller then names it in the
    order.
    """
    bookkeeping = handle.moves.annotate(claim, change)
    moved = False
    if bookkeeping is not None and bookkeeping.raw is not None:
        moved = handle.moves.bury(claim)
    elif bookkeeping is not None and handle.moves.give_back(claim):
        back.append(claim.stem)
        moved = True
    handle.strays.discard(claim)
    return moved


def hand_in_all(handle: Handle, claims: list[Claim], change: Change) -> None:
    """Hand several refs in, and name in the order those that are pending again."""
    back: list[str] = []
    try:
        for claim in claims:
            hand_in(handle, claim, change, back)
    finally:
        handle.order.append_soon(back)


def release(
    path: str | os.PathLike[str],
    owner: str,
    *,
    force: bool = False,
    dry_run: bool = False,
    each: Callable[[Outcome], object] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Move what an owner, or every owner of a node, leases to the tail of pending/; no attempt is counted.

    Args:
        owner: its name as `status` has it, or that of a node; "retry": the refs that wait to be tried again.
        force: also from a process that runs on this host.
        each: called with what became of each lease, at once.
        progress: called as the work goes on, with how many leases were seen to, and of how many.

    Returns:
        What became of each lease: one that was settled meanwhile is not moved.

    Raises:
        InvalidArgumentError: the owner is no string, or force no flag.
        QueueConfigError: there is no such owner, or its process runs on this host and force is not set.
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; release again to complete it.
    """
    arguments.text("release(owner)", owner)
    force = arguments.flag("release(force=)", force)
    path, each, progress = os.fspath(path), callers(each), callers(progress)
    with reading(path) as layout:
        leases = [lease for lease in map(names.parse_leased, layout.leased.listing()) if lease]
        recorded = filter(None, map(names.parse_owner, layout.owners.listing()))
        owners = owners_named(layout, owner, [*recorded, *(lease.owner for lease in leases)])
        leases = [lease for lease in leases if lease.owner in owners]
        records = [read_record(layout.owners, o) for o in sorted(owners)]
    if not owners:
        raise QueueConfigError(path, f"knows no owner {owner!r}: `fsqueue status` lists them")
    alive = [found for found in records if found and found.liveness() == "alive"]
    if alive and not force:
        raise QueueConfigError(
            path,
            f"has owner {alive[0].owner}, whose process {alive[0].pid} runs on this host: "
            "stop it, or use --force to take its leases from it",
        )
    if dry_run or not leases:
        would = [Outcome(names.id_of(held.stem) or held.stem, True, f"from {held.owner}") for held in sorted(leases)]
        return told([], would, each)
    with operator(path, layout.settings) as handle:
        return _release(handle, sorted(leases), each, progress)


def _release(
    handle: Handle,
    leases: list[names.Lease],
    each: Callable[[Outcome], object] | None,
    progress: Progress | None,
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    back: list[str] = []
    try:
        for lease in leases:
            outcome: list[Outcome] = []
            try:
                outcome.append(_release_one(handle, lease, back))
            except KeyboardInterrupt:
                if lease.stem in back or was_taken(handle, handle.layout.leased, lease.file, lease.stem):
                    outcome.append(_released(lease, True))
                raise
            finally:
                told(outcomes, outcome, each)
            if progress is not None:
                progress(len(outcomes), len(leases))
    finally:
        handle.order.append_soon(back)
    return outcomes


def _release_one(handle: Handle, lease: names.Lease, back: list[str]) -> Outcome:
    claim = fetch(handle, handle.layout.leased, lease.file, lease.stem)
    released = record("released", handle.clock.now(), lease.holder)
    return _released(lease, claim is not None and hand_in(handle, claim, released, back))


def _released(lease: names.Lease, moved: bool) -> Outcome:
    detail = f"from {lease.owner}" if moved else f"{lease.owner} leases it no more"
    return Outcome(names.id_of(lease.stem) or lease.stem, moved, detail)


def not_given(where: str) -> str:
    """Say of a ref's file that the storage does not give it."""
    return f"{where} cannot be read (EIO): look what the disk or the server says, and try again"


def told(outcomes: list[T], more: list[T], each: Callable[[T], object] | None) -> list[T]:
    """Add outcomes to those that there are, tell whoever wants to hear of each, and return all.

    What was moved is told also where Ctrl-C comes meanwhile: of the one in hand it is told once more.
    """
    outcomes += more
    if each is not None:
        left = more[::-1]
        try:
            _tell(left, each)
        except KeyboardInterrupt:
            _tell(left, each)
            raise
    return outcomes


def _tell(left: list[T], each: Callable[[T], object]) -> None:
    while left:
        each(left[-1])
        left.pop()


def was_taken(handle: Handle, source: Directory, name: str, stem: str) -> bool:
    """Return whether a `fetch` or what follows it, that was interrupted, has moved a file: closing moves it on."""
    return stem in handle.strays.stems() and not handle.ops.exists(source.fd, name)


def purge(
    path: str | os.PathLike[str],
    state: str,
    older_than_s: float,
    *,
    dry_run: bool = False,
    each: Callable[[str], object] | None = None,
    progress: Progress | None = None,
) -> Purged:
    """Remove the files in done/ or failed/ whose last stamp is older.

    A file was stamped last when its ref was leased or renewed, or when history was added to it; a segment of packed
    refs is as old as the youngest of them.

    Args:
        state: "done" or "failed".
        older_than_s: seconds since the last stamp; 0: all.
        each: called with each file's name, at once.
        progress: called as the work goes on, with how many files were seen to, and of how many.

    Raises:
        InvalidArgumentError: it is another state, whose refs are not settled, or no age.
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; purge again to complete it.
    """
    if state not in ("done", "failed"):
        raise InvalidArgumentError("purge(state)", "'done' or 'failed'", state)
    arguments.elapsed("purge(older_than_s)", older_than_s)
    each, progress = callers(each), callers(progress)
    if dry_run:
        with reading(path) as layout:
            limit = time_there(layout) - older_than_s
            segments = packing.old_segments(layout, look(layout), limit) if state == "done" else []
            return _purged(told([], segments + _old(directory_of(layout, state), state, limit), each))
    with operator(path) as handle:
        removed = told([], packing.purge(handle, older_than_s) if state == "done" else [], each)
        before = len(removed)
        directory = directory_of(handle.layout, state)
        limit = handle.clock.now() - older_than_s
        old = _old(directory, state, limit)
        for seen, name in enumerate(old, before + 1):
            # RACE: a ref may have gone, and been settled anew under its old name, since the ages were looked at.
            with locating(directory):
                is_mine = _is_older(directory, name, limit) and handle.ops.remove(directory.fd, name)
            if is_mine:
                told(removed, [name], each)
            if progress is not None:
                progress(seen, before + len(old))
        return _purged(removed)


def _purged(files: list[str]) -> Purged:
    return Purged(files, packed.refs_in(files))


def _old(directory: Directory, state: str, limit: float) -> list[str]:
    known = sorted(name for name in directory.listing() if place_of(state, name) is not None)
    return [name for name in known if _is_older(directory, name, limit)]


def _is_older(directory: Directory, name: str, limit: float) -> bool:
    try:
        status = directory.ops.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime <= limit


def pack(
    path: str | os.PathLike[str], older_than_s: float, *, dry_run: bool = False, progress: Progress | None = None
) -> Packed:
    """Move done files whose last stamp is older into segments of up to 10,000 refs each; what is packed is still done.

    Args:
        older_than_s: seconds since the last stamp, as for `purge`; 0: all.
        progress: called as the work goes on, with how many refs are on their way into segments, and of how many.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; all refs are still done, and packing again completes it.
    """
    arguments.age("pack(older_than_s)", older_than_s)
    if dry_run:
        with reading(path) as layout:
            return packing.would_pack(layout, older_than_s)
    with operator(path) as handle:
        return packing.pack(handle, older_than_s, callers(progress) or unheard)


def name_stranded(path: str) -> int:
    """Name in the order every pending ref that no line names; return how many there were."""
    with operator(path) as handle:
        return Claimer(handle).name_stranded()
