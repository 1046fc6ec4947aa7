"""Checkpoint-aligned acks: putting back what was acknowledged after a checkpoint.

``ack(refs, step=s)`` keeps the optimizer step in the done file's name. A run that crashed resumes from the
checkpoint of step s with the parameters of step s, so every ref acked later has to come again, and no other.
"""

from __future__ import annotations

from fsqueue import names
from fsqueue.codec import Bookkeeping
from fsqueue.errors import LeasesHeldError
from fsqueue.fileops import despite_errors
from fsqueue.handle import Handle
from fsqueue.moves import record

_BATCH = 256


def rewind(handle: Handle, after_step: int, force: bool) -> list[str]:
    """Put every ref acked after a step back into pending/, in the order of steps; returns their stems.

    Attempts are not counted; the history says why. What is live again already is left alone.

    CRASH: a ref is in done/, leased to the process that died, or pending; the next rewind does the rest, and
    what was leased comes back when that lease is reclaimed.

    Raises:
        LeasesHeldError: another owner holds leases, whose acks would carry steps of the run that crashed.
    """
    holders = handle.moves.holders()
    others = {owner for held in holders.values() for owner in held} - {handle.owner}
    if others and not force:
        raise LeasesHeldError(handle.layout.path, sorted(others))
    handle.announce()
    later = _acked_later(handle, after_step)
    returned: list[str] = []
    for start in range(0, len(later), _BATCH):
        _put_back(handle, later[start : start + _BATCH], after_step, holders, returned)
    return returned


def _acked_later(handle: Handle, after_step: int) -> list[tuple[int, str, str]]:
    """(step, stem, file name) of what was acked after a step, the earliest first."""
    found = []
    for name in handle.layout.done.listing():
        parsed = names.parse_done(name)
        if parsed is not None and parsed[1] is not None and parsed[1] > after_step:
            found.append((parsed[1], parsed[0], name))
    return sorted(found)


def _put_back(
    handle: Handle,
    batch: list[tuple[int, str, str]],
    after_step: int,
    holders: dict[str, list[str]],
    returned: list[str],
) -> None:
    layout, moves = handle.layout, handle.moves
    back: list[str] = []

    def put_back(entry: tuple[int, str, str]) -> None:
        step, stem, name = entry
        if stem in holders or handle.ops.is_there(layout.pending.fd, names.ref_file(stem)):
            return
        reason = f"acked at step {step}, rewound to step {after_step}"

        def change(bookkeeping: Bookkeeping) -> None:
            record("rewound", handle.clock.now(), handle.owner, reason)(bookkeeping)

        try:
            if moves.fetch(layout.done, name, stem) and moves.annotate(stem, change) and moves.give_back(stem):
                handle.held.forget(stem)
                back.append(stem)
        except BaseException:
            handle.stray([stem])
            raise

    try:
        despite_errors(put_back, batch)
    finally:
        handle.requeue_order(back)
        returned += back
    if handle.durable:
        for directory in (layout.pending, layout.leased, layout.done):
            directory.sync()
