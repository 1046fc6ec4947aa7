"""The operator's moves: requeue, release, purge, pack, adopt.

They are made as a handle makes its own: a ref is first renamed to a leased name of the operator's, which fences
everybody else off, changed there, and renamed to where it goes. A crash in between leaves an ordinary lease of a
process that is gone, which the next get on this host takes back.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain

from fsqueue import names, packing
from fsqueue.codec import Bookkeeping, Event
from fsqueue.errors import CorruptRefError, QueueConfigError
from fsqueue.fileops import Directory, current, explained
from fsqueue.handle import Handle
from fsqueue.handout import Handout
from fsqueue.layout import Layout, open_layout
from fsqueue.listing import File, files_in, id_of, owner_matches, packed_in, reading, stamp_of
from fsqueue.moves import Change, record
from fsqueue.owners import new_owner, read_record
from fsqueue.packing import Packed
from fsqueue.revision import look
from fsqueue.sight import place_of, sight
from fsqueue.unpacking import unpack

_BATCH = 256
_LOOKS = 3


@dataclass(frozen=True)
class Outcome:
    """What became of one ref.

    Attributes:
        moved: whether it was moved, or would be in a dry run.
        detail: where from, or why not.
    """

    sample_id: str
    moved: bool
    detail: str


@contextmanager
def operator(path: str) -> Iterator[Handle]:
    """A handle of one's own, announced in owners/, for moves by hand.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: the filesystem refused.
    """
    layout = open_layout(current(), path)
    handle = Handle(layout, owner=new_owner(None, path), durable=True, heartbeat_s=None, clock=None)
    with explained("changing", path), closing(handle):
        handle.announce()
        yield handle
        for directory in (layout.pending, layout.leased, layout.done, layout.failed):
            directory.sync()


@contextmanager
def locked_soon(handle: Handle) -> Iterator[None]:
    """Hold the order lock, or go on without it where it cannot be had soon."""
    held = handle.order_file.acquire_soon()
    try:
        yield
    finally:
        if held:
            handle.order_file.release()


def fetch(handle: Handle, source: Directory, name: str, stem: str) -> bool:
    """Make a file anywhere in the queue a lease of this handle's; False where it was gone.

    Should an error end what follows, close() gives the ref back to pending/.
    """
    handle.stray([stem])
    if handle.moves.fetch(source, name, stem):
        return True
    handle.strays.pop(stem, None)
    return False


def hand_in(handle: Handle, stem: str, change: Change, back: list[str]) -> bool:
    """Move a ref that this handle leases to pending/, or to failed/ where it turns out to hold no ref.

    False where the lease was lost. The caller names the stems collected in back in the order.
    """
    bookkeeping = handle.moves.annotate(stem, change)
    moved = False
    if bookkeeping is not None and bookkeeping.raw is not None:
        moved = handle.moves.bury(stem)
    elif bookkeeping is not None and handle.moves.give_back(stem):
        back.append(stem)
        moved = True
    handle.strays.pop(stem, None)
    return moved


class _Letter:
    """A ref in failed/ or done/ that is to be requeued.

    Attributes:
        name: the file that it has, or will have once it is unpacked.
        where: the file that it is in.
    """

    def __init__(self, directory: Directory, name: str, file: File | None = None) -> None:
        self.directory = directory
        self.name = name
        self.file = file.name if file else name
        data = file.line.data if file and file.line else directory.ops.read_file(directory.fd, self.file)
        self.ref = sight(data)

    @property
    def where(self) -> str:
        return f"{self.directory.path.rpartition('/')[2]}/{self.file}"


def requeue(path: str, ids: Iterable[str], *, dry_run: bool = False) -> list[Outcome]:
    """Move refs from failed/, or else done/, to the tail of pending/, with their attempts counted from 0 again."""
    outcomes: list[Outcome] = []
    letters: dict[str, _Letter] = {}
    with reading(path) as layout:
        wanted = {sample_id: names.stem_of(sample_id) for sample_id in ids}
        found = _letters(layout, set(wanted.values()))
        for sample_id, stem in wanted.items():
            letter = found.get(stem)
            if letter is None:
                outcomes.append(Outcome(sample_id, False, "neither in failed/ nor in done/"))
            else:
                letters[sample_id] = letter
        return outcomes + _requeue(path, letters, dry_run)


def requeue_failed(path: str, *, owner: str | None = None, dry_run: bool = False) -> list[Outcome]:
    """Requeue all dead letters, or those whose last event happened under one owner."""
    letters: dict[str, _Letter] = {}
    with reading(path) as layout:
        for name in sorted(layout.failed.listing()):
            stem = names.parse_ref(name)
            letter = _read_letter(layout.failed, name) if stem else None
            if stem and letter and (owner is None or _failed_under(letter.ref.bookkeeping, owner)):
                letters[names.id_of(stem) or letter.ref.sample_id or stem] = letter
        return _requeue(path, letters, dry_run)


def _letters(layout: Layout, stems: set[str]) -> dict[str, _Letter]:
    """The dead letter of each ref, or else what was done last.

    RACE: a done file that is packed while its places are looked at is looked for again.
    """
    found = {stem: letter for stem in stems if (letter := _read_letter(layout.failed, names.ref_file(stem)))}
    missing = stems - found.keys()
    for _ in range(_LOOKS if missing else 0):
        done = _done_by_stem(layout, missing)
        found |= {stem: letter for stem, files in done.items() if (letter := _done_last(layout, files))}
        missing = done.keys() - found.keys()
        if not missing:
            break
    return found


def _done_by_stem(layout: Layout, stems: set[str]) -> dict[str, list[File]]:
    """Where these refs are done; segments are read where there are any."""
    found: dict[str, list[File]] = {}
    for file in chain(files_in(layout, "done"), packed_in(layout)):
        if file.place.stem in stems:
            found.setdefault(file.place.stem, []).append(file)
    return found


def _done_last(layout: Layout, files: list[File]) -> _Letter | None:
    """What was done last."""
    stamps = {file: found.mtime for file in files if (found := stamp_of(layout, file))}
    last = sorted(stamps, key=lambda file: stamps[file], reverse=True)
    return next(filter(None, (_read_letter(layout.done, file.ref_name, file) for file in last)), None)


def _read_letter(directory: Directory, name: str, file: File | None = None) -> _Letter | None:
    try:
        return _Letter(directory, name, file)
    except (FileNotFoundError, CorruptRefError):
        return None


def _failed_under(bookkeeping: Bookkeeping, owner: str) -> bool:
    last = bookkeeping.history[-1].owner if bookkeeping.history else None
    return last is not None and owner_matches(owner, last)


def _requeue(path: str, letters: dict[str, _Letter], dry_run: bool) -> list[Outcome]:
    outcomes = [
        Outcome(sample_id, False, f"{letter.where} {letter.ref.problem}: there is no ref to requeue")
        for sample_id, letter in letters.items()
        if letter.ref.sample_id is None
    ]
    good = [(sample_id, letter) for sample_id, letter in letters.items() if letter.ref.sample_id is not None]
    if dry_run or not good:
        return outcomes + [Outcome(sample_id, True, f"from {letter.where}") for sample_id, letter in good]
    packed = {letter.name for _, letter in good if letter.file != letter.name}
    with operator(path) as handle:
        if packed:
            unpack(handle, lambda stem, step: names.done_file(stem, step) in packed)
        for start in range(0, len(good), _BATCH):
            outcomes += _requeue_batch(handle, good[start : start + _BATCH])
    return outcomes


def _requeue_batch(handle: Handle, batch: list[tuple[str, _Letter]]) -> list[Outcome]:
    fetched: dict[str, str] = {}
    outcomes = []
    # RACE: under the lock no put is between its look for the id and its publishing, and a put that comes later
    # finds the ref leased. Without the lock, the id may be queued twice, as with two puts.
    with locked_soon(handle):
        holders = handle.moves.holders()
        for sample_id, letter in batch:
            stem = names.stem_of(letter.ref.sample_id or "")
            if stem in holders or handle.ops.exists(handle.layout.pending.fd, names.ref_file(stem)):
                where = f"leased by {holders[stem][0]}" if stem in holders else "pending"
                outcomes.append(Outcome(sample_id, False, f"{where} already: {letter.where} stays"))
            elif fetch(handle, letter.directory, letter.name, stem) or _fetch_packed(handle, letter, stem):
                fetched[stem] = sample_id
                outcomes.append(Outcome(sample_id, True, f"from {letter.where}"))
            else:
                outcomes.append(Outcome(sample_id, False, f"{letter.where} is gone: somebody else moved it"))
    _hand_in_all(handle, list(fetched), _requeued(handle.clock.now(), handle.owner))
    return outcomes


def _fetch_packed(handle: Handle, letter: _Letter, stem: str) -> bool:
    """RACE: a packing has claimed the file since it was looked at."""
    if letter.directory.path != handle.layout.done.path:
        return False
    unpack(handle, lambda packed, step: names.done_file(packed, step) == letter.name)
    return fetch(handle, letter.directory, letter.name, stem)


def _requeued(now: float, owner: str) -> Change:
    def change(bookkeeping: Bookkeeping) -> None:
        bookkeeping.attempts = 0
        bookkeeping.reason = None
        bookkeeping.add(Event("requeued", now, owner))

    return change


def _hand_in_all(handle: Handle, stems: list[str], change: Change) -> None:
    back: list[str] = []
    try:
        for stem in stems:
            hand_in(handle, stem, change, back)
    finally:
        handle.requeue_order(back)


def release(path: str, owner: str, *, force: bool = False, dry_run: bool = False) -> list[Outcome]:
    """Move what an owner, or every owner of a node, leases to the tail of pending/; no attempt is counted.

    Raises:
        QueueConfigError: there is no such owner, or its process runs on this host and force is not set.
    """
    with reading(path) as layout:
        parsed = (names.parse_leased(name) for name in layout.leased.listing())
        leases = [lease for lease in parsed if lease and owner_matches(owner, lease[1])]
        recorded = (names.parse_owner(name) for name in layout.owners.listing())
        owners = {lease[1] for lease in leases} | {o for o in recorded if o and owner_matches(owner, o)}
        records = [read_record(layout.ops, layout.owners, o) for o in sorted(owners)]
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
        return [Outcome(names.id_of(stem) or stem, True, f"from {holder}") for stem, holder in sorted(leases)]
    with operator(path) as handle:
        return _release(handle, sorted(leases))


def _release(handle: Handle, leases: list[tuple[str, str]]) -> list[Outcome]:
    outcomes = []
    back: list[str] = []
    try:
        for stem, owner in leases:
            sample_id = names.id_of(stem) or stem
            moved = fetch(handle, handle.layout.leased, names.leased_file(stem, owner), stem) and hand_in(
                handle, stem, record("released", handle.clock.now(), owner), back
            )
            outcomes.append(Outcome(sample_id, moved, f"from {owner}" if moved else f"{owner} leases it no more"))
    finally:
        handle.requeue_order(back)
    return outcomes


def acked_after(path: str, step: int) -> list[str]:
    """The ids that were acked after an optimizer step, as a rewind brings them back."""
    with reading(path) as layout:
        done = chain(files_in(layout, "done"), packed_in(layout))
        found = ((file.place.step, id_of(layout, file)) for file in done if file.place.step is not None)
        return [sample_id for acked_at, sample_id in sorted(found) if acked_at > step]


def purge(path: str, state: str, older_than_s: float, *, dry_run: bool = False) -> list[str]:
    """Remove the files in done/ or failed/ whose last stamp is older; returns their names.

    A file was stamped last when its ref was leased or renewed, or when history was added to it; a segment of packed
    refs is as old as the youngest of them.
    """
    if dry_run:
        with reading(path) as layout:
            limit = layout.ops.time() - older_than_s
            segments = packing.old_segments(layout, look(layout), limit) if state == "done" else []
            return segments + _old(getattr(layout, state), state, limit)
    with operator(path) as handle:
        segments = packing.purge(handle, older_than_s) if state == "done" else []
        directory: Directory = getattr(handle.layout, state)
        old = _old(directory, state, handle.clock.now() - older_than_s)
        return segments + [name for name in old if handle.ops.remove(directory.fd, name)]


def _old(directory: Directory, state: str, limit: float) -> list[str]:
    known = sorted(name for name in directory.listing() if place_of(state, name) is not None)
    return [name for name in known if _is_older(directory, name, limit)]


def _is_older(directory: Directory, name: str, limit: float) -> bool:
    try:
        status = directory.ops.stat(name, dir_fd=directory.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_mtime <= limit


def pack(path: str, older_than_s: float, *, dry_run: bool = False) -> Packed:
    """Move done files whose last stamp is older into segments of up to 10,000 refs each.

    Raises:
        QueueIOError: the filesystem refused; all refs are still done, and packing again completes it.
    """
    if dry_run:
        with reading(path) as layout:
            return packing.would_pack(layout, older_than_s)
    with operator(path) as handle:
        return packing.pack(handle, older_than_s)


def adopt(path: str) -> int:
    """Name every pending ref in the order that no line names; returns how many there were."""
    with operator(path) as handle:
        return Handout(handle).adopt()
