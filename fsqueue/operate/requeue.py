"""Requeue dead letters, and refs that were done: move them to the tail of pending/."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from itertools import chain

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import callers
from fsqueue.engine import arguments
from fsqueue.engine.annotations import Change
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import LEDGER, Layout
from fsqueue.engine.letters import letters_beside
from fsqueue.engine.listing import File, files_in, packed_in, reading, stamp_of
from fsqueue.engine.onlooker import time_there
from fsqueue.engine.packing.unpack import unpack
from fsqueue.engine.progress import Progress
from fsqueue.engine.put import Putter
from fsqueue.errors import CorruptRefError, TooLongError
from fsqueue.format import names
from fsqueue.format.codec import Bookkeeping, Event
from fsqueue.format.untyped import Place, RefSight, sight
from fsqueue.operate.operator import Outcome, fetch, hand_in_all, not_given, operator, told, was_taken
from fsqueue.operate.show import Predicate, Wanted, detail_of, require_choice

_LOOKS = 3


class _Letter:
    """Hold a ref in failed/ or done/ that is to be requeued.

    Attributes:
        name: the file that it has, or will have once it is unpacked.
        where: the file that it is in.
        why_not: says why it cannot be requeued; None where it can.
    """

    def __init__(self, directory: Directory, name: str, file: File | None = None) -> None:
        self.directory = directory
        self.name = name
        self.file = file.name if file else name
        try:
            data = file.line.data if file and file.line else directory.ops.read_file(directory.fd, self.file)
            self.ref = sight(data)
            self.why_not = f"{self.where} {self.ref.problem}: there is no ref to requeue" if self.ref.problem else None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # The storage does not give it: that is no reason to leave the others where they are.
            self.ref = RefSight(None, None, Bookkeeping(), False, "cannot be read")
            self.why_not = not_given(self.where)

    @property
    def where(self) -> str:
        return f"{self.directory.path.rpartition('/')[2]}/{self.file}"


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
    outcomes: list[Outcome] = []
    letters: dict[str, _Letter] = {}
    with reading(path) as layout:
        wanted = {sample_id: names.stem_of(sample_id) for sample_id in ids}
        found = _letters(layout, list(wanted.values()))
        done_stays = not ledger_agrees and layout.ops.exists(layout.root.fd, LEDGER)
        for sample_id, stem in wanted.items():
            letter = found.get(stem)
            if letter is None:
                outcomes.append(Outcome(sample_id, False, _why_not(layout, stem)))
            elif done_stays and letter.directory is layout.done:
                outcomes.append(Outcome(sample_id, False, "done, also in its ledger: `fsqueue rewind` takes both back"))
            else:
                letters[sample_id] = letter
        return _requeue(layout, letters, dry_run, each, progress, outcomes)


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
        progress: called as the work goes on, with how many were seen to, and of how many; while they are read, of
            None.

    Returns:
        What became of each that was chosen.

    Raises:
        InvalidArgumentError: an argument cannot be meant.
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused; requeue again to complete it.
    """
    require_choice("requeue_failed", owner, reason, older_than_s, where)
    each, progress = callers(each), callers(progress)
    letters: dict[str, _Letter] = {}
    with reading(path) as layout:
        for name in sorted(layout.failed.listing()):
            if progress is not None:
                progress(0, None)  # reading them may take long, too
            stem = names.parse_ref(name)
            letter = _read_letter(layout.failed, name) if stem else None
            if stem and letter:
                letters[names.id_of(stem) or letter.ref.sample_id or stem] = letter
        if any(chosen is not None for chosen in (owner, reason, older_than_s, where)):
            wanted, now = Wanted(layout, owner, reason, older_than_s, where), time_there(layout)
            letters = {i: letter for i, letter in letters.items() if _is_wanted(layout, letter, wanted, now)}
        return _requeue(layout, letters, dry_run, each, progress, [])


def _is_wanted(layout: Layout, letter: _Letter, wanted: Wanted, now: float) -> bool:
    file = File("failed", letter.file, Place(names.parse_ref(letter.file) or ""))
    detail = detail_of(layout, file, now, letter.ref)
    return detail is not None and wanted.has(detail)


def _letters(layout: Layout, stems: list[str]) -> dict[str, _Letter]:
    """Find the dead letter of each ref, or else what was done last.

    RACE: a done file that is packed while its places are looked at is looked for again.
    """
    found = {stem: letter for stem in stems if (letter := _read_letter(layout.failed, names.ref_file(stem)))}
    beside = letters_beside(layout, set(stems) - found.keys())
    found |= {stem: letter for stem, name in beside.items() if (letter := _read_letter(layout.failed, name))}
    missing = set(stems) - found.keys()
    for _ in range(_LOOKS if missing else 0):
        done = _done_by_stem(layout, missing)
        found |= {stem: letter for stem, files in done.items() if (letter := _done_last(layout, files))}
        missing = done.keys() - found.keys()
        if not missing:
            break
    return found


def _done_by_stem(layout: Layout, stems: set[str]) -> dict[str, list[File]]:
    """Find where these refs are done; segments are read where there are any."""
    found: dict[str, list[File]] = {}
    for file in chain(files_in(layout, "done"), packed_in(layout)):
        if file.place.stem in stems:
            found.setdefault(file.place.stem, []).append(file)
    return found


def _done_last(layout: Layout, files: list[File]) -> _Letter | None:
    """Return what was done last."""
    stamps = {file: found.mtime for file in files if (found := stamp_of(layout, file))}
    last = sorted(stamps, key=lambda file: stamps[file], reverse=True)
    return next(filter(None, (_read_letter(layout.done, file.ref_name, file) for file in last)), None)


def _read_letter(directory: Directory, name: str, file: File | None = None) -> _Letter | None:
    try:
        return _Letter(directory, name, file)
    except (FileNotFoundError, CorruptRefError):
        return None


def _requeue(
    layout: Layout,
    letters: dict[str, _Letter],
    dry_run: bool,
    each: Callable[[Outcome], object] | None,
    progress: Progress | None,
    others: list[Outcome],
) -> list[Outcome]:
    """Requeue letters; others are outcomes that are to be told before."""
    unfit = [Outcome(sample_id, False, letter.why_not) for sample_id, letter in letters.items() if letter.why_not]
    outcomes = told([], [*others, *unfit], each)
    good = [(sample_id, letter) for sample_id, letter in letters.items() if letter.why_not is None]
    if dry_run or not good:
        return told(outcomes, [Outcome(sample_id, True, f"from {letter.where}") for sample_id, letter in good], each)
    packed = {letter.name for _, letter in good if letter.file != letter.name}
    with operator(layout.path, layout.settings) as handle:
        if packed:
            unpack(handle, lambda stem, step: names.done_file(stem, step) in packed)
        size = handle.layout.batch_size
        for start in range(0, len(good), size):
            batch = good[start : start + size]
            moved: list[Outcome] = []
            try:
                _requeue_batch(handle, batch, moved)
            except KeyboardInterrupt:
                moved += _in_hand(handle, batch[len(moved) :])
                raise
            finally:
                told(outcomes, moved, each)  # what was taken is pending when the handle is closed, whatever was raised
            if progress is not None:
                progress(min(start + size, len(good)), len(good))
    return outcomes


def _in_hand(handle: Handle, rest: list[tuple[str, _Letter]]) -> list[Outcome]:
    """Return what became of the next one, where it was taken as the interrupt came."""
    for sample_id, letter in rest[:1]:
        stem = names.stem_of(letter.ref.sample_id or "")
        if was_taken(handle, letter.directory, letter.name, stem):
            return [Outcome(sample_id, True, f"from {letter.where}")]
    return []


def _requeue_batch(handle: Handle, batch: list[tuple[str, _Letter]], outcomes: list[Outcome]) -> None:
    """Requeue a batch, and add what became of each to the outcomes as it is taken."""
    fetched: dict[str, Claim] = {}
    # RACE: under the lock no put is between its look for the id and its publishing, and a put that comes later
    # finds the ref leased. Without the lock, the id may be queued twice, as with two puts.
    with handle.order_file.soon as held:
        if held:
            handle.order.header_locked()  # how long the backlog is decides how to look through it
        stems = [names.stem_of(letter.ref.sample_id or "") for _, letter in batch]
        live, holders = Putter(handle).known(stems), handle.moves.holders()
        for stem, (sample_id, letter) in zip(stems, batch, strict=True):
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


def _fetch_packed(handle: Handle, letter: _Letter, stem: str) -> Claim | None:
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
