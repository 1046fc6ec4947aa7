"""Put back what was acknowledged after a checkpoint.

``ack(refs, step=s)`` keeps the optimizer step in the done file's name. A run that crashed resumes from the
checkpoint of step s with the parameters of step s, so every ref acked later has to come again, and no other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from fsqueue.disk.fileops import callers, current, despite_errors, explained
from fsqueue.engine.annotations import record
from fsqueue.engine.attempts import Limits
from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import Layout, open_layout
from fsqueue.engine.listing import files_in, packed_in
from fsqueue.engine.owners import new_owner, read_record
from fsqueue.engine.packing.revision import Pauses
from fsqueue.engine.packing.unpack import unpack
from fsqueue.engine.progress import Progress, unheard
from fsqueue.engine.put import Putter
from fsqueue.errors import LeasesHeldError
from fsqueue.format import names

_LOOKS = 2

_Acked = tuple[int, str, str]
"""An acknowledgement's step, the ref's stem, and the file's name in done/."""


def rewind(
    handle: Handle,
    reclaimer: Reclaimer,
    after_step: int,
    force: bool,
    progress: Progress = unheard,
    each: Callable[[str], None] | None = None,
) -> list[str]:
    """Put every ref acked after a step back into pending/, in the order of steps; return their ids.

    Attempts are not counted; the history says why. What is live again already is left alone. Where others hold leases,
    those that have expired, or whose owners are proven to be dead, are reclaimed first.

    CRASH: a ref is in done/, leased to the process that died, or pending; the next rewind does the rest, and
    reclaims what was leased.

    Args:
        each: told of each id at once.

    Raises:
        LeasesHeldError: another owner holds leases, whose acks would carry steps of the run that crashed.
    """
    progress, each = callers(progress), callers(each)
    if not force and handle.moves.owners_holding() - {handle.owner}:
        reclaimer.reclaim()
        refuse_while_held(handle.layout, handle.moves.owners_holding() - {handle.owner})
    handle.presence.announce()
    returned: list[str] = []
    settled: set[_Acked] = set()
    missed: set[_Acked] = set()
    pauses = Pauses(handle.ops)
    for look in itertools.count(1):
        # RACE: a packing may claim a file while it is listed, or afterwards: look twice, then for what was missed.
        later = [e for e in _acked_later(handle, after_step) if e not in settled and (look <= _LOOKS or e in missed)]
        total = len(settled) + len(later)
        for batch in _batches(later, handle.layout.batch_size):
            before = len(returned)
            settled |= _put_back(handle, batch, after_step, returned)
            if each is not None:
                for stem in returned[before:]:
                    each(names.id_of(stem) or stem)
            progress(len(settled), total)
        missed = set(later) - settled
        if look >= _LOOKS and not missed:
            break
        if missed:
            pauses.wait()
    return [names.id_of(stem) or stem for stem in returned]


def refuse_while_held(layout: Layout, owners: Collection[str]) -> None:
    """Raise a LeasesHeldError where owners hold leases; it says who of them lives, as far as can be seen from here."""
    if owners:
        records = {owner: read_record(layout.owners, owner) for owner in sorted(owners)}
        alive = [owner for owner, found in records.items() if found is not None and found.liveness() == "alive"]
        raise LeasesHeldError(layout.path, list(records), alive)


def _acked_later(handle: Handle, after_step: int) -> list[_Acked]:
    """List what was acked after a step, the earliest first; all lives of one ref stand where its last one does."""
    done = unpack(handle, lambda stem, step: step is not None and step > after_step)
    parsed = ((names.parse_done(name), file) for name, file in done.files.items())
    return _by_last_life((of[1], of[0], file) for of, file in parsed if of and of[1] is not None and of[1] > after_step)


def _by_last_life(later: Iterable[_Acked]) -> list[_Acked]:
    found: dict[str, list[_Acked]] = {}
    for entry in later:
        found.setdefault(entry[1], []).append(entry)
    return [entry for lives in sorted(map(sorted, found.values()), key=lambda lives: lives[-1]) for entry in lives]


class Outlook(NamedTuple):
    """Tell what a rewind would find.

    Attributes:
        returned: the ids that it would put back, in its order.
        live: the stems of the refs that are pending or leased now.
    """

    returned: list[str]
    live: set[str]


def outlook(path: str, after_step: int, force: bool) -> Outlook:
    """Say what reclaiming and rewinding a queue would do; move nothing.

    Raises:
        LeasesHeldError: as the rewind would.
    """
    layout = open_layout(current(), path)
    handle = Handle(layout, owner=new_owner(None, path), durable=False, heartbeat_s=None, clock=None)
    with explained("reading", path), closing(handle):
        if not force:
            refuse_while_held(layout, Reclaimer(handle, Limits(None, None)).would_leave())
        done = [*files_in(layout, "done"), *packed_in(layout)]
        live = {file.place.stem for state in ("pending", "leased") for file in files_in(layout, state)}
        steps = ((file.place.step, file) for file in done if file.place.stem not in live)
        later = _by_last_life(
            (step, f.place.stem, f.name) for step, f in steps if step is not None and step > after_step
        )
        return Outlook([names.id_of(stem) or stem for stem in dict.fromkeys(stem for _, stem, _ in later)], live)


def _batches(later: list[_Acked], size: int) -> Iterator[list[_Acked]]:
    """Cut into parts of about this size; the lives of one ref share one, where the last replaces those before."""
    start = 0
    while start < len(later):
        end = min(start + size, len(later))
        while end < len(later) and later[end][1] == later[end - 1][1]:
            end += 1
        yield later[start:end]
        start = end


def _put_back(handle: Handle, batch: list[_Acked], after_step: int, returned: list[str]) -> set[_Acked]:
    """Lease what of a batch is not live, and move it to pending/; return all but what was gone from done/.

    RACE: a put under the lock has its look for the id and its publishing behind it or before it, and one that comes
    later finds the ref leased. Without the lock, a look before the fetching alone would miss a ref whose next life
    begins in between: so it is looked for once more afterwards.
    """
    fetched: dict[_Acked, Claim] = {}
    back: list[str] = []
    try:
        live = _fetch(handle, batch, fetched)
        _return(handle, fetched, after_step, back)
    except BaseException:
        handle.strays.add(claim for claim in fetched.values() if claim.stem not in back)
        raise
    finally:
        handle.order.append_soon(back)
        returned += back
    if handle.durable:
        for directory in (handle.layout.pending, handle.layout.leased, handle.layout.done):
            directory.sync()
    return live.union(fetched)


def _fetch(handle: Handle, batch: list[_Acked], fetched: dict[_Acked, Claim]) -> set[_Acked]:
    """Move the files of a batch from done/ to leased/@me, and note them in fetched; return those that are live.

    The lives of one ref get one claim: the last one to be moved replaces those before.
    """
    claims: dict[str, Claim] = {}
    with handle.order_file.soon as held:
        if held:
            handle.order.header_locked()  # how long the backlog is decides how to look through it
        known = Putter(handle).known([stem for _, stem, _ in batch])

        def fetch(entry: _Acked) -> None:
            _, stem, name = entry
            if stem in known:
                return
            if stem not in claims:
                claims[stem] = handle.moves.new_claim(stem)
            fetched[entry] = claims[stem]
            if not handle.moves.fetch(handle.layout.done, name, claims[stem]):
                del fetched[entry]

        despite_errors(fetch, batch)
    return {entry for entry in batch if entry[1] in known}


def _return(handle: Handle, fetched: dict[_Acked, Claim], after_step: int, back: list[str]) -> None:
    """Move what was fetched to pending/, and note it in back; what is live by now goes to done/ again."""
    layout, moves = handle.layout, handle.moves
    holders, mine = moves.holders(), {claim.name for claim in fetched.values()}
    layout.refresh_pending()

    def give_back(entry: _Acked) -> None:
        step, stem, _ = entry
        claim = fetched[entry]
        elsewhere = [lease for lease in holders.get(stem, []) if lease.file not in mine]
        if elsewhere or _is_pending(handle, stem):
            moves.move_to_done(layout.leased, claim.name, names.done_file(stem, step), claim)
            return
        reason = f"acked at step {step}, rewound to step {after_step}"
        if moves.annotate(claim, record("rewound", handle.clock.now(), handle.owner, reason)) and moves.give_back(
            claim
        ):
            handle.held.forget(stem)
            back.append(stem)

    despite_errors(give_back, list(fetched))


def _is_pending(handle: Handle, stem: str) -> bool:
    pending, name = handle.layout.pending, names.ref_file(stem)
    return handle.ops.is_there(pending.fd, name) and handle.moves.holds(pending, name)
