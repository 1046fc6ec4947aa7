"""Bring a ref back to pending/, or bury it where it has failed, or was given up, too often."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from fsqueue.engine.annotations import Change
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.format.codec import Bookkeeping
from fsqueue.log import tell

MAX_DELIVERIES = 20
_REASON_LIMIT = 200


class Counted(Protocol):
    """Count how the deliveries of a ref have ended."""

    attempts: int
    expiries: int


class Limits(NamedTuple):
    """Say after how many failures, and after how many leases that expired, a ref goes to failed/; None: it never does.

    They are counted apart: three preemptions are no reason to give a good ref up, and one that kills every process
    that takes it should not come for ever.
    """

    attempts: int | None
    expiries: int | None

    def used_up_by(self, ref: Counted) -> str | None:
        """Say what a ref has had too often; None where it may come again."""
        if self.attempts is not None and ref.attempts >= self.attempts:
            return f"{ref.attempts} attempts"
        if self.expiries is not None and ref.expiries >= self.expiries:
            return f"{ref.expiries} leases ended without a word"
        return None


def bury_telling(handle: Handle, claim: Claim, reason: str) -> bool:
    """Move a ref that this handle leases to failed/, and log it; False where the lease is gone."""
    buried = handle.moves.bury(claim)
    if buried:
        handle.counters.add("dead")
        tell(__name__, "warning", handle.layout.path, "%s is a dead letter: %s", claim.stem, first_line(reason))
    return buried


def first_line(reason: str) -> str:
    return reason.partition("\n")[0][:_REASON_LIMIT]


def return_or_bury(
    handle: Handle,
    claim: Claim,
    counted: Change,
    reason: str,
    limits: Limits,
    back: list[str],
    put_off: Callable[[int], float | None] = lambda attempts: None,
) -> bool:
    """Move a ref that this handle leases to the tail of pending/, or to failed/ after its last attempt or expiry.

    Args:
        counted: records the attempt or the expiry.
        back: collects the stems that went to pending/, for the caller to name in the order, once for a batch.
        put_off: says until when a ref with so many attempts has to wait, by the filesystem's clock; None: not at all.
    """

    def change(bookkeeping: Bookkeeping) -> None:
        if bookkeeping.reason is not None:
            # A dead letter that was moved back by hand: it starts afresh.
            bookkeeping.attempts, bookkeeping.expiries, bookkeeping.reason = 0, 0, None
        counted(bookkeeping)
        used_up = limits.used_up_by(bookkeeping)
        if used_up is not None:
            bookkeeping.reason = f"{used_up}, the last one: {reason}"

    bookkeeping = handle.moves.annotate(claim, change)
    if bookkeeping is None:
        return False
    if bookkeeping.reason is not None:
        return bury_telling(handle, claim, bookkeeping.reason)
    until = put_off(bookkeeping.attempts)
    if until is not None:
        return handle.moves.put_off(claim, until)
    if not handle.moves.give_back(claim):
        return False
    back.append(claim.stem)
    return True
