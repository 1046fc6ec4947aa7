"""Record what the ranks of SpecForge's trainer have trained, go back to a checkpoint, remove features of no more use.

started       rank 0 makes ledger and queue say what the checkpoint says, before anybody leases
each step     the ledger, then the queue, each rank for its own samples
checkpoint    the features of what it holds are removed; those of later samples stay, to go back to
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fsqueue.control import DataFlowController
from fsqueue.engine import arguments
from fsqueue.errors import FsQueueError
from fsqueue.integrations.specforge.refs import RefChannel
from fsqueue.stream.view import TrainerView

_HELD = "a checkpoint holds it"


class ConsumerSetupError(FsQueueError, RuntimeError):
    """A trainer cannot be built, or go on, as it was asked to, or another rank's could not: nothing was leased."""


class OnlineController(DataFlowController[Any]):
    """Acknowledge what one rank has trained, and remove features once a checkpoint holds their samples.

    Args:
        keep_features: remove none.

    Attributes:
        view: the rank's; its acks, which the trainer makes next, settle in the queue what the ledger knows by then.
        saved_step: returns the step of the last checkpoint, None where there is none.
    """

    def __init__(self, run_id: str, channel: RefChannel, feature_store: Any, keep_features: bool) -> None:
        super().__init__(run_id, sample_queue=channel.queue, metadata_store=channel.ledger)
        self.view: TrainerView[Any] | None = None
        self.saved_step: Callable[[], int | None] = lambda: None
        self._features = feature_store
        self._keep_features = keep_features
        self._trained: dict[int, list[str]] = {}  # by step, those whose features are still there
        channel.ledger.note_in(channel.queue)

    def ack_train_refs(
        self,
        trainer_id: str,
        sample_ids: Iterable[str],
        *,
        global_step: int | None = None,
        optimizer_durable: bool = False,
    ) -> list[str]:
        """Record samples as trained; CRASH: what is still leased then, the next start settles in the queue, too."""
        ids = arguments.sample_ids("ack_train_refs", sample_ids)
        self.store.record_train_ack(ids, global_step=global_step, optimizer_durable=optimizer_durable)
        if self.view is not None:
            self.view.step = global_step
        if global_step is not None:
            self._trained.setdefault(global_step, []).extend(ids)
        self.remove_features(self.saved_step())
        return []

    def settle_rest(self, view: TrainerView[Any], refs: list[Any]) -> None:
        """Acknowledge what is too little for a window, at the last step."""
        self.ack_train_refs("rest", [ref.sample_id for ref in refs], global_step=view.step)
        view.ack(refs)

    def begin(self, state: Mapping[str, Any] | None, saved: int | None) -> None:
        """Make queue and ledger say what a checkpoint says, or that nothing was trained; remove features of no use.

        Leases of ranks that are known to be dead end now, others when their time is up.

        Args:
            saved: the step of the last checkpoint that the run has written.

        Raises:
            ConsumerSetupError: that would train samples anew whose features may be gone.
        """
        step = int(state["global_step"]) if state is not None else 0
        trained, _ = self.store.progress()
        if saved is not None and saved > step and trained and not self._keep_features:
            where = f"starts at step {step}" if state is not None else "starts from the beginning"
            raise ConsumerSetupError(
                f"run {self.run_id!r} {where}, but has written a checkpoint of step {saved}, and the features of what "
                f"that holds may be gone: give it as resume_from, take another directory for a new run, or, if the "
                "run has kept them, give keep_features=True"
            )
        report = self.rewind(after_step=step, force=True)
        if not self._keep_features:
            for sample_id in report["released"]:
                self._features.abort(sample_id, reason=_HELD)

    def remove_features(self, up_to: int | None) -> None:
        """Remove the features of what this rank has trained up to a step."""
        if up_to is None or self._keep_features:
            return
        for step in [step for step in self._trained if step <= up_to]:
            for sample_id in self._trained.pop(step):
                self._features.abort(sample_id, reason=_HELD)
