"""The model of a queue with several handles, in sets and lists; the real one is held to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from fsqueue import dp_partition
from fsqueue.format.names import done_file, stem_of

LEASE_S = 60.0
MAX_ATTEMPTS = 3

Ending = Literal["settled", "returned", "lost"]


@dataclass
class Lease:
    """Who has a ref, since when, and under which claim."""

    handle: int
    since: float
    claim: int


@dataclass
class Book:
    """A ref's past, as its file tells it.

    Attributes:
        dead: it was a dead letter, and then moved back by hand: the next attempt counts as the first.
        ended: the claims whose end its history tells.
    """

    attempts: int = 0
    expiries: int = 0
    dead: bool = False
    ended: set[int] = field(default_factory=set)


@dataclass
class View:
    """One handle's view: the refs that it leases, its latest claim on each, and how that ended."""

    holds: set[str] = field(default_factory=set)
    claims: dict[str, int] = field(default_factory=dict)
    endings: dict[str, Ending] = field(default_factory=dict)

    def end(self, sample_id: str, how: Ending) -> None:
        if sample_id in self.holds:
            self.holds.discard(sample_id)
            self.endings[sample_id] = how


class Model:
    """The states of all ids, and what each handle knows of them.

    Attributes:
        pending: in order; where `ordered` is false, only the set counts.
        live: id to what the file in pending/ or leased/ says.
        done: id to the optimizer steps that its files in done/ name, each with what the file says.
    """

    def __init__(self) -> None:
        self.now = 1_000_000_000.0
        self.pending: list[str] = []
        self.leased: dict[str, Lease] = {}
        self.live: dict[str, Book] = {}
        self.done: dict[str, dict[int | None, Book]] = {}
        self.failed: dict[str, Book] = {}
        self.views: dict[int, View] = {}
        self.ordered = True
        self.claims = 0

    def put(self, handle: int, sample_ids: Iterable[str]) -> None:
        for sample_id in dict.fromkeys(sample_ids):
            if sample_id not in self.pending and sample_id not in self.leased:
                self.appear(sample_id)
                self.views[handle].endings.pop(sample_id, None)

    def appear(self, sample_id: str) -> None:
        """A new file in pending/."""
        self.pending.append(sample_id)
        self.live[sample_id] = Book()

    def reclaim(self, handle: int) -> int:
        expired = [i for i, lease in self.leased.items() if lease.since + LEASE_S <= self.now]
        for sample_id in sorted(expired, key=stem_of):
            lease = self.leased.pop(sample_id)
            if lease.handle == handle:
                self.views[handle].end(sample_id, "lost")
            self._count(sample_id, lease, expiry=1)
        return len(expired)

    def _count(self, sample_id: str, lease: Lease, expiry: int = 0) -> None:
        """A delivery has failed or expired: back to the tail, or a dead letter after the last of its kind."""
        book = self.live[sample_id]
        book.ended.add(lease.claim)
        if book.dead:
            book.attempts, book.expiries, book.dead = 0, 0, False
        book.attempts += 1 - expiry
        book.expiries += expiry
        if max(book.attempts, book.expiries) >= MAX_ATTEMPTS:
            self._bury(sample_id)
        else:
            self.pending.append(sample_id)

    def _bury(self, sample_id: str) -> None:
        book = self.failed[sample_id] = self.live.pop(sample_id)
        book.dead = True

    def candidates(self, partition: tuple[int, int] | None) -> list[str]:
        """Return what a get may return, in order."""
        return [i for i in self.pending if partition is None or dp_partition(i, partition[1]) == partition[0]]

    def lease(self, handle: int, sample_id: str) -> None:
        self.pending.remove(sample_id)
        self.claims += 1
        self.leased[sample_id] = Lease(handle, self.now, self.claims)
        self.views[handle].holds.add(sample_id)
        self.views[handle].claims[sample_id] = self.claims
        self.views[handle].endings.pop(sample_id, None)

    def _has(self, handle: int, sample_id: str) -> bool:
        return sample_id in self.leased and self.leased[sample_id].handle == handle

    def ack(self, handle: int, sample_ids: list[str], step: int | None) -> list[str]:
        lost, strangers = [], []
        for sample_id in sample_ids:
            ending = self._own_ending(handle, sample_id, "settled")
            if ending is None:
                strangers.append(sample_id)
            elif ending == "now":
                self._finish(sample_id, step)
            elif ending != "settled":
                lost += [sample_id] if ending == "lost" else []
                if self._ended_in_this_life(handle, sample_id):
                    self._finish_pending(sample_id, step)
        for sample_id in strangers:
            if sample_id in self.leased:
                self._finish(sample_id, step)
            elif sample_id in self.pending and self.live[sample_id].ended:
                self._finish_pending(sample_id, step)
        return lost

    def _ended_in_this_life(self, handle: int, sample_id: str) -> bool:
        """The pending ref's history tells that the handle's latest claim on it ended."""
        return sample_id in self.pending and self.views[handle].claims[sample_id] in self.live[sample_id].ended

    def _own_ending(self, handle: int, sample_id: str, how: Ending) -> Ending | Literal["now"] | None:
        """Tell how the handle's latest lease on a ref ended; "now" where it has one, which ends so."""
        view = self.views[handle]
        if sample_id in view.holds:
            if self._has(handle, sample_id):
                view.end(sample_id, how)
                return "now"
            view.end(sample_id, "lost")
        return view.endings.get(sample_id)

    def _finish(self, sample_id: str, step: int | None) -> None:
        del self.leased[sample_id]
        self._file_away(sample_id, step)

    def _file_away(self, sample_id: str, step: int | None) -> None:
        self.done.setdefault(sample_id, {})[step] = self.live.pop(sample_id)

    def _finish_pending(self, sample_id: str, step: int | None) -> None:
        self.pending.remove(sample_id)
        self._file_away(sample_id, step)
        self.ordered = False  # the order's line for it stays behind, and may give it an earlier place

    def fail(self, handle: int, sample_ids: list[str], retryable: bool) -> list[str]:
        how: Ending = "returned" if retryable else "settled"
        lost, strangers = [], []
        for sample_id in sample_ids:
            ending = self._own_ending(handle, sample_id, how)
            if ending == "now":
                self._fail(sample_id, retryable)
            elif ending == "lost":
                lost.append(sample_id)
            elif ending is None or (ending == "returned" and not retryable):
                strangers.append(sample_id)
        for sample_id in strangers:
            if sample_id in self.leased:
                if self.views[handle].endings.get(sample_id) is None:
                    self._fail(sample_id, retryable)
            elif sample_id in self.pending and not retryable:
                returned = self.views[handle].endings.get(sample_id) == "returned"
                if returned and not self._ended_in_this_life(handle, sample_id):
                    continue
                self.pending.remove(sample_id)
                self.live[sample_id].ended.add(0)
                self._bury(sample_id)
                self.ordered = False
        return lost

    def _fail(self, sample_id: str, retryable: bool) -> None:
        lease = self.leased.pop(sample_id)
        if retryable:
            self._count(sample_id, lease)
        else:
            self.live[sample_id].ended.add(lease.claim)
            self._bury(sample_id)

    def release(self, handle: int, sample_ids: list[str]) -> list[str]:
        lost, strangers = [], []
        for sample_id in sample_ids:
            ending = self._own_ending(handle, sample_id, "returned")
            if ending == "now":
                del self.leased[sample_id]
                self.pending.append(sample_id)
            elif ending == "lost":
                lost.append(sample_id)
            elif ending is None:
                strangers.append(sample_id)
        for sample_id in strangers:
            if lease := self.leased.pop(sample_id, None):
                self.live[sample_id].ended.add(lease.claim)
                self.pending.append(sample_id)
        return lost

    def renew(self, handle: int, sample_ids: list[str]) -> list[str]:
        lost = []
        for sample_id in sample_ids:
            if sample_id in self.views[handle].holds and self._has(handle, sample_id):
                self.leased[sample_id].since = self.now
            else:
                lost.append(sample_id)
                self.views[handle].end(sample_id, "lost")
        return lost

    def move(self, sample_id: str, source: str, target: str) -> None:
        """A move by hand between two states; target "" takes the file out of the queue."""
        self.ordered = False
        if source == "pending":
            self.pending.remove(sample_id)
            book = self.live.pop(sample_id)
        elif source == "leased":
            del self.leased[sample_id]
            book = self.live.pop(sample_id)
        elif source == "failed":
            book = self.failed.pop(sample_id)
        else:
            steps = self.done.pop(sample_id)
            book = steps[min(steps, key=lambda step: done_file(sample_id, step))]
        if target == "pending":
            self.pending.append(sample_id)
            self.live[sample_id] = book
        elif target == "failed":
            self.failed[sample_id] = book
        elif target == "done":
            self.done.setdefault(sample_id, {})[None] = book
