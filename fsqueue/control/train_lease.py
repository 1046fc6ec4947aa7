"""`TrainLease`: one trainer's side of the controller, in the shape of a queue."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from fsqueue.control.sample_queue import Renews, SampleQueue, give_back
from fsqueue.engine import arguments
from fsqueue.engine.picking import Partition
from fsqueue.engine.waiting import StopEvent

R = TypeVar("R")


class Trainable(Protocol[R]):
    """Do for a lease what a controller does."""

    def require_queue(self, call: str) -> SampleQueue[R]: ...
    def lease_train_refs(
        self,
        trainer_id: str,
        max_refs: int,
        timeout_s: float | None,
        *,
        partition: Partition | None,
        stop_event: StopEvent | None,
    ) -> list[R]: ...
    def ack_train_refs(
        self, trainer_id: str, sample_ids: Iterable[str], *, global_step: int | None, optimizer_durable: bool
    ) -> list[str]: ...
    def fail_refs(self, owner: str, sample_ids: Iterable[str], reason: str, retryable: bool) -> list[str]: ...


class TrainLease(Generic[R]):
    """Lease and acknowledge through the controller, so that the ledger knows of every acknowledgement.

    Attributes:
        trainer_id: in whose name.
    """

    def __init__(self, controller: Trainable[R], trainer_id: str) -> None:
        self.trainer_id = trainer_id
        self._controller = controller

    def get(
        self,
        max_refs: int,
        timeout_s: float | None = None,
        *,
        partition: Partition | None = None,
        stop_event: StopEvent | None = None,
    ) -> list[R]:
        """Lease samples; see `DataFlowController.lease_train_refs`."""
        return self._controller.lease_train_refs(
            self.trainer_id, max_refs, timeout_s, partition=partition, stop_event=stop_event
        )

    def ack(
        self,
        refs: Iterable[R],
        *,
        global_step: int | None = None,
        optimizer_durable: bool = False,
        step: int | None = None,
    ) -> list[str]:
        """Acknowledge refs; see `ack_ids`."""
        return self.ack_ids(
            list(arguments.ids("ack", refs)), global_step=global_step, optimizer_durable=optimizer_durable, step=step
        )

    def ack_ids(
        self,
        sample_ids: Iterable[str],
        *,
        global_step: int | None = None,
        optimizer_durable: bool = False,
        step: int | None = None,
    ) -> list[str]:
        """Acknowledge ids; see `DataFlowController.ack_train_refs`. ``step`` is the queue's word for global_step."""
        return self._controller.ack_train_refs(
            self.trainer_id,
            sample_ids,
            global_step=step if global_step is None else global_step,
            optimizer_durable=optimizer_durable,
        )

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> None:
        self._controller.fail_refs(self.trainer_id, list(arguments.ids("fail", refs)), reason, retryable)

    def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back without counting an attempt, where the queue can; fail them as retryable where not."""
        return give_back(self._controller.require_queue("release"), list(refs), "released")

    def renew(self, refs: Iterable[R]) -> list[str]:
        """Start the lease timeout anew, where the queue can; returns the ids that were lost."""
        queue = self._controller.require_queue("renew")
        return list(queue.renew(list(refs)) or ()) if isinstance(queue, Renews) else []

    def depth(self) -> int:
        return self._controller.require_queue("depth").depth()

    def in_flight(self) -> int:
        return self._controller.require_queue("in_flight").in_flight()
