"""Keep a ledger in memory: for each id its place in the commit log and the step of its acknowledgement.

About 200 bytes a committed sample; the refs themselves are read when they are asked for.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence

UNACKED = -2
NO_STEP = -1

Ints = Sequence[int]


class Index:
    """Hold ids in commit order, and in ``early`` acknowledgements of ids that are not committed.

    Attributes:
        numbers: id to its number in commit order.
        steps: by number: the step of the acknowledgement, `NO_STEP` or `UNACKED`.
        acked: how many ids are acknowledged.
        waiting: how many committed ids are not acknowledged.
        waiting_bytes: the sum of their weights.
        acked_chars: the length of all acknowledged ids together.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.steps = array("q")
        self.early: dict[str, int] = {}
        self.acked = self.acked_chars = self.waiting = self.waiting_bytes = 0
        self._offsets = array("Q")
        self._sizes = array("I")
        self._weights = array("Q")

    def commit(self, ids: list[str], offsets: Ints, sizes: Ints, weights: Ints) -> None:
        """Add ids; one that is there already keeps its place, which it has where the lock did not exclude."""
        if not self.numbers.keys().isdisjoint(ids) or len(ids) > len(set(ids)):
            fresh = {i: n for n, i in reversed(list(enumerate(ids))) if i not in self.numbers}
            chosen = sorted(fresh.values())
            ids = [ids[n] for n in chosen]
            offsets, sizes, weights = ([given[n] for n in chosen] for given in (offsets, sizes, weights))
        first = len(self.numbers)
        self.numbers.update(zip(ids, range(first, first + len(ids)), strict=True))
        self._offsets.extend(offsets)
        self._sizes.extend(sizes)
        self._weights.extend(weights)
        self.steps.extend([UNACKED] * len(ids))
        self.waiting += len(ids)
        self.waiting_bytes += sum(weights)
        if self.early:
            for sample_id in self.early.keys() & ids:
                self._end_wait(self.numbers[sample_id], self.early.pop(sample_id))

    def ack(self, ids: Iterable[str], step: int) -> None:
        """Acknowledge ids; the first acknowledgement of each counts."""
        number_of, steps, weights = self.numbers.get, self.steps, self._weights
        settled = settled_bytes = settled_chars = 0
        for sample_id in ids:
            number = number_of(sample_id)
            if number is None:
                self._ack_early(sample_id, step)
            elif steps[number] == UNACKED:
                steps[number] = step
                settled += 1
                settled_bytes += weights[number]
                settled_chars += len(sample_id)
        self.waiting -= settled
        self.waiting_bytes -= settled_bytes
        self.acked += settled
        self.acked_chars += settled_chars

    def _ack_early(self, sample_id: str, step: int) -> None:
        if sample_id not in self.early:
            self.early[sample_id] = step
            self.acked += 1
            self.acked_chars += len(sample_id)

    def _end_wait(self, number: int, step: int) -> None:
        self.steps[number] = step
        self.waiting -= 1
        self.waiting_bytes -= self._weights[number]

    def forget_acks(self, after_step: int) -> list[str]:
        """Take back acknowledgements of later steps; returns the committed ids among them, in commit order."""
        early = [i for i, step in self.early.items() if step > after_step]
        for sample_id in early:
            del self.early[sample_id]
        forgotten = [i for i, number in self.numbers.items() if self.steps[number] > after_step]
        for number in map(self.numbers.__getitem__, forgotten):
            self.steps[number] = UNACKED
            self.waiting += 1
            self.waiting_bytes += self._weights[number]
        self.acked -= len(early) + len(forgotten)
        self.acked_chars -= sum(map(len, early)) + sum(map(len, forgotten))
        return forgotten

    def place(self, number: int) -> tuple[int, int]:
        """Return a ref's offset and size in the commit log."""
        return self._offsets[number], self._sizes[number]

    def places_as_bytes(self) -> list[bytes]:
        """Return offsets, sizes and weights."""
        return [places.tobytes() for places in (self._offsets, self._sizes, self._weights)]

    def restore(self, ids: list[str], places: list[bytes]) -> None:
        """Commit, in an empty index, what another one held.

        Raises:
            ValueError: the parts do not fit each other.
        """
        offsets, sizes, weights = array("Q"), array("I"), array("Q")
        for values, data in zip((offsets, sizes, weights), places, strict=True):
            values.frombytes(data)
        if not len(ids) == len(offsets) == len(sizes) == len(weights) == len(set(ids)):
            raise ValueError("the snapshot's parts differ in length")
        self.commit(ids, offsets, sizes, weights)

    def step_of(self, sample_id: str) -> int:
        number = self.numbers.get(sample_id)
        return self.early.get(sample_id, UNACKED) if number is None else self.steps[number]

    def acked_ids(self) -> set[str]:
        steps = self.steps
        return {i for i, number in self.numbers.items() if steps[number] != UNACKED} | self.early.keys()

    def acked_by_step(self) -> dict[int, list[str]]:
        """Return acknowledged ids by step."""
        found: dict[int, list[str]] = defaultdict(list)
        for sample_id, number in self.numbers.items():
            if self.steps[number] != UNACKED:
                found[self.steps[number]].append(sample_id)
        for sample_id, step in self.early.items():
            found[step].append(sample_id)
        return found

    def forget_commits(self) -> None:
        """Start over with the commit log; acknowledgements stay."""
        self.early |= {i: self.steps[n] for i, n in self.numbers.items() if self.steps[n] != UNACKED}
        self.numbers.clear()
        for places in (self._offsets, self._sizes, self._weights, self.steps):
            del places[:]
        self.waiting = self.waiting_bytes = 0

    def forget_all_acks(self) -> None:
        """Start over with the acknowledgements; commits stay."""
        self.early.clear()
        self.steps = array("q", [UNACKED]) * len(self.numbers)
        self.acked = self.acked_chars = 0
        self.waiting, self.waiting_bytes = len(self.numbers), sum(self._weights)
