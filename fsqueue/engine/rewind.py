"""Put back what was acknowledged after a checkpoint.

``ack(refs, step=s)`` keeps the optimizer step in the done file's name. A run that crashed resumes from the
checkpoint of step s with the parameters of step s, so every ref acked later has to come again, and no other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection
from contextlib import closing
from typing import NamedTuple

from fsqueue.disk.fileops import callers, current, explained
from fsqueue.engine.attempts import Limits
from fsqueue.engine.bringing_back import BringingBack, batches, by_last_life
from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import Layout, open_layout
from fsqueue.engine.listing import files_in, packed_in
from fsqueue.engine.owners import new_owner, read_record
from fsqueue.engine.packing.parts import Parts
from fsqueue.engine.packing.revision import Pauses
from fsqueue.engine.progress import Progress, unheard
from fsqueue.errors import LeasesHeldError
from fsqueue.format import names

_LOOKS = 2


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
    came: set[str] = set()  # of returned: one that is leased and acked again meanwhile has been trained since
    stayed: set[tuple[int, str]] = set()  # by step and stem: a file may have another name at the next look
    missed: set[tuple[int, str]] = set()
    pauses = Pauses(handle.ops)
    seen = 0
    for look in itertools.count(1):
        # RACE: a packing may claim a file while it is listed, or afterwards: look twice, then for what was missed.
        wanted, missed = missed, set()
        parts = Parts(handle.layout, after_step)
        total = seen + (parts.refs or 0)
        for part in parts:
            with BringingBack(handle, after_step, part) as back:
                found = [it for it in back.acked_later() if it[1] not in came and it[:2] not in stayed]
                later = [acked for acked in found if look <= _LOOKS or acked[:2] in wanted]
                total = max(total, seen + len(later))
                for batch in batches(later, handle.layout.batch_size):
                    before = len(returned)
                    settled = {acked[:2] for acked in back.put_back(batch, returned)}
                    came.update(returned[before:])
                    stayed.update(acked for acked in settled if acked[1] not in came)
                    missed.update(acked[:2] for acked in batch if acked[:2] not in settled)
                    seen += len(settled)
                    if each is not None:
                        for stem in returned[before:]:
                            each(names.id_of(stem) or stem)
                    progress(seen, total)
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
        later = by_last_life(
            (step, f.place.stem, f.name) for step, f in steps if step is not None and step > after_step
        )
        return Outlook([names.id_of(stem) or stem for stem in dict.fromkeys(stem for _, stem, _ in later)], live)
