"""Other projects' queues behind the interface of subjects/, each used as its documentation says.

All carry the same payload, the JSON of a ref in fsqueue's encoding. A call with several refs is the peer's own
batch call where it has one, otherwise a loop. A peer's package is imported when it is opened and not before.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from fsqueue import SampleRef
from fsqueue.format.codec import Codec
from subjects.sample import sample
from subjects.subject import put_all, take_all

_BULK = 1_000
Taken = tuple[Any, bytes]
"""What finishes a message, and its content."""


class PeerSubject(ABC):
    """What the adapters share; a peer stores bytes or text, and knows nothing of refs.

    Attributes:
        label: its name in tables.
        package, module: what is installed, with the versions that this was written for, and what is imported.
        exclusive: whether what one process was given is kept from others until it is finished or its time is up.
        recovers: what gives a killed consumer's messages to others, as its documentation has it.
        shared: whether several hosts may use it through one filesystem.
    """

    label: str
    package: str
    module: str
    exclusive: bool
    recovers: str
    shared: bool

    def __init__(self, path: str, lease_timeout_s: float) -> None:
        self._codec = Codec(SampleRef)
        self._taken: dict[str, Any] = {}
        self._lease_timeout_s = lease_timeout_s
        self._open(importlib.import_module(self.module), path)

    def plan(self, sample_ids: list[str], count: int) -> tuple[Any, Any]:
        return [sample(sample_id) for sample_id in sample_ids], count

    def put(self, batch: Sequence[SampleRef]) -> None:
        self._put([self._codec.encode(ref) for ref in batch])

    def get(self, wanted: int) -> list[SampleRef]:
        refs = []
        for receipt, content in self._take(wanted):
            ref = self._codec.decode(content)
            self._taken[ref.sample_id] = receipt
            refs.append(ref)
        return refs

    def ack(self, batch: Sequence[SampleRef]) -> None:
        self._finish([self._taken.pop(ref.sample_id) for ref in batch])

    def fill(self, sample_ids: list[str]) -> None:
        put_all(self, sample_ids, _BULK)

    def drain(self) -> list[str]:
        return take_all(self, _BULK)

    def recover(self) -> None:
        """Get back what a killed consumer had; most peers have nothing for it, or need no call."""
        return None

    @abstractmethod
    def _open(self, module: Any, path: str) -> None: ...

    @abstractmethod
    def _put(self, contents: list[bytes]) -> None: ...

    @abstractmethod
    def _take(self, count: int) -> list[Taken]:
        """Up to count messages, the next ones; fewer where there are no more."""

    @abstractmethod
    def _finish(self, receipts: list[Any]) -> None: ...

    @abstractmethod
    def leftover(self) -> int:
        """Messages that are pending or taken."""

    def close(self) -> None:
        """Close what the peer holds open; some hold nothing."""
        return None


class OneByOne(PeerSubject):
    """A peer without batches."""

    def _put(self, contents: list[bytes]) -> None:
        for content in contents:
            self._put_one(content)

    def _take(self, count: int) -> list[Taken]:
        found: list[Taken] = []
        while len(found) < count and (taken := self._take_one()) is not None:
            found.append(taken)
        return found

    def _finish(self, receipts: list[Any]) -> None:
        for receipt in receipts:
            self._finish_one(receipt)

    @abstractmethod
    def _put_one(self, content: bytes) -> None: ...

    @abstractmethod
    def _take_one(self) -> Taken | None: ...

    def _finish_one(self, receipt: Any) -> None:
        """Nothing where a message is gone once it was taken."""
