"""`TrainLease`: one trainer's side of the controller, in the shape of a queue."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fsqueue.control.ledger.metadata_store import id_of

if TYPE_CHECKING:
    from fsqueue.control.controller import DataFlowController

R = TypeVar("R")


class TrainLease(Generic[R]):
    """Leases and acknowledges through the controller, so that the ledger knows of every acknowledgement.

    Attributes:
        trainer_id: in whose name.
    """

    def __init__(self, controller: DataFlowController[R], trainer_id: str) -> None:
        self.trainer_id = trainer_id
        self._controller = controller

    def get(
        self, max_refs: int, timeout_s: float | None = None, *, partition: tuple[int, int] | None = None
    ) -> list[R]:
        """As `DataFlowController.lease_train_refs`."""
        return self._controller.lease_train_refs(self.trainer_id, max_refs, timeout_s, partition=partition)

    def ack(
        self,
        refs: Iterable[R],
        *,
        global_step: int | None = None,
        optimizer_durable: bool = False,
        step: int | None = None,
    ) -> list[str]:
        """As `ack_ids`, by refs."""
        return self.ack_ids(map(id_of, refs), global_step=global_step, optimizer_durable=optimizer_durable, step=step)

    def ack_ids(
        self,
        sample_ids: Iterable[str],
        *,
        global_step: int | None = None,
        optimizer_durable: bool = False,
        step: int | None = None,
    ) -> list[str]:
        """As `DataFlowController.ack_train_refs`; step is another word for global_step, the queue's."""
        return self._controller.ack_train_refs(
            self.trainer_id,
            list(sample_ids),
            global_step=step if global_step is None else global_step,
            optimizer_durable=optimizer_durable,
        )

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> None:
        self._controller.fail_refs(self.trainer_id, list(map(id_of, refs)), reason, retryable)

    def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back without counting an attempt, where the queue can; fails them as retryable where not."""
        return self._pass_on("release", list(refs))

    def renew(self, refs: Iterable[R]) -> list[str]:
        """Start the lease timeout anew, where the queue can; returns the ids that were lost."""
        return self._pass_on("renew", list(refs))

    def _pass_on(self, method: str, refs: list[R]) -> list[str]:
        call: Any = getattr(self._controller.sample_queue, method, None)
        if call is not None:
            return list(call(refs) or ())
        if method == "release":
            self.fail(refs, "released", retryable=True)
        return []

    def depth(self) -> int:
        return int(self._controller.sample_queue.depth())

    def in_flight(self) -> int:
        return int(self._controller.sample_queue.in_flight())
