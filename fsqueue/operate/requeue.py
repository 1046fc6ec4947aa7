"""Requeue dead letters, and refs that were done: move them to the tail of pending/."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

from fsqueue.disk.fileops import callers
from fsqueue.engine import arguments
from fsqueue.engine.annotations import Change
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import LEDGER, Layout
from fsqueue.engine.listing import File, look_inside, reading
from fsqueue.engine.onlooker import time_there
from fsqueue.engine.packing.unpack import unpack
from fsqueue.engine.progress import Progress
from fsqueue.engine.put import Putter
from fsqueue.errors import CorruptRefError, TooLongError
from fsqueue.format import names
from fsqueue.format.codec import Bookkeeping, Event
from fsqueue.format.untyped import Place, RefSight
from fsqueue.operate.letters import Letter, letters_of, read_letter
from fsqueue.operate.operator import Outcome, fetch, hand_in_all, operator, told, was_taken
from fsqueue.operate.show import Predicate, Wanted, detail_of, require_choice


def requeue(
    path: str | os.PathLike[str],
    ids: Iterable[str],
    *,
    dry_run: bool = False,
    ledger_agrees: bool = False,
    each: Callable[[Outcome], object] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Move refs from failed/, or else done/, to the tail of pending/, with their attempts counted from 0 again.

    Args:
        ids: their sample ids.
        ledger_agrees: the caller knows that the ledger over this queue, if there is one, has them as not
            acknowledged; otherwise what is done there stays, since a controller would settle it again.
        each: called with what became of each, at once.
        progress: called as the work goes on, with how many were seen to, and of how many.

    Returns:
        What became of each: one that is live already, or nowhere, is not moved.

    Raises:
        InvalidArgumentError: an argument cannot be meant.
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; requeue again to complete it.
    """
    ids = arguments.sample_ids("requeue", ids)
    each, progress = callers(each), callers(progress)
    letters: list[Letter] = []
    with reading(path) as layout, _Requeueing(layout, dry_run, each) as requeueing:
        wanted = {sample_id: names.stem_of(sample_id) for sample_id in ids}
        found = letters_of(layout, list(wanted.values()))
        done_stays = not ledger_agrees and layout.ops.exists(layout.root.fd, LEDGER)
        for sample_id, stem in wanted.items():
            letter = found.get(stem)
            if letter is None:
                requeueing.leave(sample_id, _why_not(layout, stem))
            elif done_stays and letter.directory is layout.done:
                requeueing.leave(sample_id, "done, also in its ledger: `fsqueue rewind` takes both back")
            else:
                letters.append(letter)
        requeueing.unpack(letters)
        for start in range(0, len(letters), layout.batch_size):
            batch = letters[start : start + layout.batch_size]
            requeueing.move(batch)
            if progress is not None and not dry_run:
                progress(start + len(batch), len(letters))
        return requeueing.outcomes


def _why_not(layout: Layout, stem: str) -> str:
    """Say what there is of a ref in failed/ that cannot be read."""
    name = names.ref_file(stem)
    try:
        layout.ops.read_file(layout.failed.fd, name)
    except TooLongError as error:
        return f"failed/{name} is {error.reason}: there is no ref to requeue; shorten it by hand, or remove it"
    except CorruptRefError as error:
        return f"failed/{name} is {error.reason}: there is no ref to requeue"
    except FileNotFoundError:
        pass
    return "neither in failed/ nor in done/"


def requeue_failed(
    path: str | os.PathLike[str],
    *,
    owner: str | None = None,
    reason: str | None = None,
    older_than_s: float | None = None,
    where: Predicate | None = None,
    dry_run: bool = False,
    each: Callable[[Outcome], object] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Requeue all dead letters, or some of them; all that is given has to hold.

    Args:
        owner, reason, older_than_s, where: as for `dead_letters`.
        each: called with what became of each, at once.
        progress: called as the work goes on, with how many were seen to, and of how many; while they are listed and
            chosen, of None.

    Returns:
        What became of each that was chosen.

    Raises:
        InvalidArgumentError: an argument cannot be meant.
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; requeue again to complete it.
    """
    require_choice("requeue_failed", owner, reason, older_than_s, where)
    each, progress = callers(each), callers(progress)
    with reading(path) as layout, _Requeueing(layout, dry_run, each) as requeueing:
        left = sorted(name for name in layout.failed.listing() if names.parse_ref(name))
        if progress is not None:
            progress(0, None)
        if any(chosen is not None for chosen in (owner, reason, older_than_s, where)):
            left = list(_chosen(layout, left, Wanted(layout, owner, reason, older_than_s, where), progress))
        left.reverse()  # it shrinks as the outcomes grow
        total, beside = len(left), list[Letter]()
        while left:
            requeueing.move(_next_letters(layout, left, beside))
            if progress is not None and not dry_run:
                progress(total - len(left), total)
        _move_beside(requeueing, beside)
        return requeueing.outcomes


def _chosen(layout: Layout, listed: list[str], wanted: Wanted, progress: Progress | None) -> Iterator[str]:
    """Yield the names in failed/ of the letters that are wanted."""
    now = time_there(layout)
    for name in listed:
        if progress is not None:
            progress(0, None)  # reading them may take long, too
        file = File("failed", name, Place(names.parse_ref(name) or ""))
        seen = look_inside(layout, file) or RefSight(None, None, Bookkeeping(), False, "cannot be read")
        detail = detail_of(layout, file, now, seen)
        if detail is not None and wanted.has(detail):
            yield name


def _next_letters(layout: Layout, left: list[str], beside: list[Letter]) -> list[Letter]:
    """Take a batch of names from the end, and read the letters; those with substitutes for names come into beside."""
    letters: list[Letter] = []
    while left and len(letters) < layout.batch_size:
        name = left.pop()
        letter = read_letter(layout.failed, name)
        if letter is None:
            continue
        (letters if name == names.ref_file(letter.stem) else beside).append(letter)
    return letters


def _move_beside(requeueing: _Requeueing, beside: list[Letter]) -> None:
    """Requeue the last letter of each ref that had none under its own name; the others stay, since one is enough."""
    moved = {outcome.sample_id for outcome in requeueing.outcomes if outcome.moved} if beside else set()
    chosen = {letter.sample_id: letter for letter in beside if letter.sample_id not in moved}
    requeueing.move(list(chosen.values()))
    for letter in beside:
        if chosen.get(letter.sample_id) is not letter:
            requeueing.leave(letter.sample_id, f"requeued already: {letter.where} stays")


class _Requeueing:
    """Requeue letters in batches, for the length of a with block.

    Attributes:
        outcomes: what became of each.
    """

    def __init__(self, layout: Layout, dry_run: bool, each: Callable[[Outcome], object] | None) -> None:
        self.outcomes: list[Outcome] = []
        self._layout = layout
        self._dry_run = dry_run
        self._each = each
        self._stack = ExitStack()
        self._opened: Handle | None = None

    def __enter__(self) -> _Requeueing:
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    @property
    def _handle(self) -> Handle:
        """Return a handle of one's own, opened with the first ref that is to be moved."""
        if self._opened is None:
            self._opened = self._stack.enter_context(operator(self._layout.path, self._layout.settings))
        return self._opened

    def leave(self, sample_id: str, why: str) -> None:
        """Tell why a ref is not moved."""
        told(self.outcomes, [Outcome(sample_id, False, why)], self._each)

    def unpack(self, letters: list[Letter]) -> None:
        """Give those that are packed files of their own."""
        packed = {letter.name for letter in letters if letter.file != letter.name and letter.why_not is None}
        if packed and not self._dry_run:
            unpack(self._handle, lambda stem, step: names.done_file(stem, step) in packed)

    def move(self, letters: list[Letter]) -> None:
        """Requeue those that can be, in one hold of the lock, and tell what became of each."""
        for letter in letters:
            if letter.why_not is not None:
                self.leave(letter.sample_id, letter.why_not)
        good = [letter for letter in letters if letter.why_not is None]
        moved: list[Outcome] = []
        if self._dry_run:
            moved += [Outcome(letter.sample_id, True, f"from {letter.where}") for letter in good]
        try:
            if good and not self._dry_run:
                _requeue_batch(self._handle, good, moved)
        except KeyboardInterrupt:
            moved += _in_hand(self._handle, good[len(moved) :])
            raise
        finally:
            told(self.outcomes, moved, self._each)  # what was taken is pending when the handle is closed


def _in_hand(handle: Handle, rest: list[Letter]) -> list[Outcome]:
    """Return what became of the next one, where it was taken as the interrupt came."""
    for letter in rest[:1]:
        if was_taken(handle, letter.directory, letter.name, letter.stem):
            return [Outcome(letter.sample_id, True, f"from {letter.where}")]
    return []


def _requeue_batch(handle: Handle, batch: list[Letter], outcomes: list[Outcome]) -> None:
    """Requeue a batch, and add what became of each to the outcomes as it is taken."""
    fetched: dict[str, Claim] = {}
    # RACE: under the lock no put is between its look for the id and its publishing, and a put that comes later
    # finds the ref leased. Without the lock, the id may be queued twice, as with two puts.
    with handle.order_file.soon as held:
        if held:
            handle.order.header_locked()  # how long the backlog is decides how to look through it
        stems = [letter.stem for letter in batch]
        live, holders = Putter(handle).known(stems), handle.moves.holders()
        for stem, letter in zip(stems, batch, strict=True):
            sample_id = letter.sample_id
            if stem in live:
                where = f"leased by {holders[stem][0].owner}" if stem in holders else "pending"
                where = "requeued" if stem in fetched else where
                outcomes.append(Outcome(sample_id, False, f"{where} already: {letter.where} stays"))
            elif claim := fetch(handle, letter.directory, letter.name, stem) or _fetch_packed(handle, letter, stem):
                fetched[stem] = claim
                live.add(stem)  # another dead letter of this id would replace it
                outcomes.append(Outcome(sample_id, True, f"from {letter.where}"))
            else:
                outcomes.append(Outcome(sample_id, False, f"{letter.where} is gone: somebody else moved it"))
    hand_in_all(handle, list(fetched.values()), _requeued(handle.clock.now(), handle.owner))


def _fetch_packed(handle: Handle, letter: Letter, stem: str) -> Claim | None:
    """Fetch a ref that is packed by now.

    RACE: a packing has claimed the file since it was looked at.
    """
    if letter.directory.path != handle.layout.done.path:
        return None
    done = unpack(handle, lambda packed, step: names.done_file(packed, step) == letter.name)
    return fetch(handle, handle.layout.done, done.files.get(letter.name, letter.name), stem)


def _requeued(now: float, owner: str) -> Change:
    def change(bookkeeping: Bookkeeping) -> None:
        bookkeeping.attempts = bookkeeping.expiries = 0
        bookkeeping.reason = None
        bookkeeping.add(Event("requeued", now, owner))

    return change
