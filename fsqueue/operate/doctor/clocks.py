"""Compare times that several peers read from their own monotonic clocks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fsqueue.operate.doctor.peer import Peer

_READS = 7
_LEAST_TELLING_S = 0.0005
_TIMES_THE_DOUBT = 4


@dataclass(frozen=True)
class Clocks:
    """Know how far the clocks of some peers are apart.

    Attributes:
        ahead_s: by how much each one's clock is ahead of this process's, in the order of the peers.
        doubt_s: the most that any two of them may be apart beyond that; 0 where all read one clock.
    """

    ahead_s: tuple[float, ...]
    doubt_s: float

    @classmethod
    def of(cls, peers: Sequence[Peer]) -> Clocks:
        """Ask each peer for the time, again and again, and believe the quickest answer."""
        reads = [min(_read(peer) for _ in range(_READS)) for peer in peers]
        if len({boot for _, _, boot in reads}) == 1 and reads[0][2]:
            return cls((0.0,) * len(reads), 0.0)
        return cls(tuple(ahead_s for _, ahead_s, _ in reads), sum(sorted(took_s for took_s, _, _ in reads)[-2:]) / 2)

    @property
    def worth_telling_s(self) -> float:
        """Return how long something has to last so that an overlap with it is seen."""
        return max(_LEAST_TELLING_S, _TIMES_THE_DOUBT * self.doubt_s)

    def overlaps(self, visits: Sequence[Sequence[Sequence[float]]]) -> int:
        """Count the visits that surely began while another peer's lasted; each peer's are (begin, end), in order."""
        begun = sorted(
            (begin - ahead_s, end - ahead_s, number)
            for number, (ahead_s, own) in enumerate(zip(self.ahead_s, visits, strict=True))
            for begin, end in own
        )
        ends: dict[int, float] = {}
        count = 0
        for begin, end, number in begun:
            count += any(other != number and left > begin + self.doubt_s for other, left in ends.items())
            ends[number] = max(end, ends.get(number, end))
        return count


def _read(peer: Peer) -> tuple[float, float, Any]:
    before = time.monotonic()
    there, boot = peer.call("now")
    after = time.monotonic()
    return after - before, there - (before + after) / 2, boot
