"""Checkpoint-aligned acks: putting back what was acknowledged after a checkpoint.

``ack(refs, step=s)`` keeps the optimizer step in the done file's name. A run that crashed resumes from the
checkpoint of step s with the parameters of step s, so every ref acked later has to come again, and no other.
"""

from __future__ import annotations

from fsqueue import names
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
        _put_back(handle, later[start : start + _BATCH], after_step, returned)
    return returned


def _acked_later(handle: Handle, after_step: int) -> list[tuple[int, str, str]]:
    """(step, stem, file name) of what was acked after a step, the earliest first."""
    found = []
    for name in handle.layout.done.listing():
        parsed = names.parse_done(name)
        if parsed is not None and parsed[1] is not None and parsed[1] > after_step:
            found.append((parsed[1], parsed[0], name))
    return sorted(found)


def _put_back(handle: Handle, batch: list[tuple[int, str, str]], after_step: int, returned: list[str]) -> None:
    """Fetch a batch from done/, see which of it is live elsewhere by now, and put the others back.

    RACE: looking first and fetching then would miss a ref whose next life is claimed in between.
    """
    layout, moves = handle.layout, handle.moves
    back: list[str] = []
    fetched: list[tuple[int, str, str]] = []

    def fetch(entry: tuple[int, str, str]) -> None:
        if not handle.ops.is_there(layout.pending.fd, names.ref_file(entry[1])) and moves.fetch(
            layout.done, entry[2], entry[1]
        ):
            fetched.append(entry)

    def put_back(entry: tuple[int, str, str]) -> None:
        step, stem, name = entry
        elsewhere = [owner for owner in holders.get(stem, []) if owner != handle.owner]
        if elsewhere or handle.ops.is_there(layout.pending.fd, names.ref_file(stem)):
            moves.move(layout.leased, names.leased_file(stem, handle.owner), layout.done, name)
            return
        reason = f"acked at step {step}, rewound to step {after_step}"
        if moves.annotate(stem, record("rewound", handle.clock.now(), handle.owner, reason)) and moves.give_back(stem):
            handle.held.forget(stem)
            back.append(stem)

    try:
        despite_errors(fetch, batch)
        holders = moves.holders()
        despite_errors(put_back, fetched)
    except BaseException:
        handle.stray(stem for _, stem, _ in fetched if stem not in back)
        raise
    finally:
        handle.requeue_order(back)
        returned += back
    if handle.durable:
        for directory in (layout.pending, layout.leased, layout.done):
            directory.sync()
