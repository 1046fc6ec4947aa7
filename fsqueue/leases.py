"""What a queue object offers for the refs that it leases: how a lease ends, goes on, or becomes another handle's."""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from fsqueue.disk.fileops import explained
from fsqueue.engine.get import id_of_ref
from fsqueue.engine.parts import Parts
from fsqueue.errors import QueueConfigError
from fsqueue.format import names
from fsqueue.format.codec import tidy

R = TypeVar("R")


class Leases(Generic[R]):
    """The leases' side of `FileSampleRefQueue`."""

    path: str

    @abstractmethod
    def _here(self) -> Parts: ...

    def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]:
        """Move refs to done/; with step, the optimizer step becomes part of the file's name.

        Returns:
            The ids whose lease this handle had lost, normally none. What another owner holds stays untouched;
            a ref that is back in pending/ goes to done/ all the same. Unknown ids are ignored.
        """
        try:
            step = None if step is None else operator.index(step) + 0
        except TypeError:
            step = -1
        if step is not None and step < 0:
            raise QueueConfigError(self.path, "needs as step an integer of 0 or more, or None")
        return self._settle("acknowledging refs in", refs, lambda parts, stems: parts.settler.ack(stems, step))

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> list[str]:
        """Count an attempt: retryable refs go to the tail of pending/, others to failed/ with the reason.

        Returns:
            The ids whose lease this handle had lost, normally none; they are left as they are.
        """
        return self._settle(
            "failing refs in", refs, lambda parts, stems: parts.settler.fail(stems, tidy(reason), retryable)
        )

    def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back to the tail of pending/ without counting an attempt; returns the ids lost, as ack does."""
        return self._settle("releasing refs in", refs, lambda parts, stems: parts.settler.release(stems))

    def renew(self, refs: Iterable[R]) -> list[str]:
        """Start the lease timeout of refs anew; returns the ids that this handle does not lease (any more)."""
        return self._settle("renewing leases in", refs, lambda parts, stems: parts.settler.renew(stems))

    def hand_over(self, refs: Iterable[R], owner: str) -> list[str]:
        """Make leases another handle's, which adopts them: a process that ends leaves its work to one that goes on.

        The lease timeout runs on; from now on the new owner's heartbeat and process count.

        Args:
            owner: the `owner` of a handle that has leased or announced itself; its process ends these leases.

        Returns:
            The ids whose lease this handle had lost.
        """
        return self._settle("handing leases over in", refs, lambda parts, stems: parts.settler.hand_over(stems, owner))

    def adopt(self, refs: Iterable[R]) -> list[str]:
        """Take up leases that were handed over to this handle, to settle and renew them; returns the ids of others."""
        return self._settle("adopting leases in", refs, lambda parts, stems: parts.settler.adopt(stems))

    def release_all(self) -> int:
        """Give back every ref leased in this handle's name, also those handed over to it; returns how many."""
        parts = self._here()
        with explained("releasing refs in", self.path):
            return parts.settler.release_all()

    def _settle(self, what: str, refs: Iterable[R], settle: Callable[[Parts, list[str]], list[str]]) -> list[str]:
        parts = self._here()
        ids = {names.stem_of(sample_id): sample_id for sample_id in map(id_of_ref, refs)}
        if not ids:
            return []
        with explained(what, self.path):
            return [ids[stem] for stem in settle(parts, list(ids))]
