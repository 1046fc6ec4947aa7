"""Build SpecForge's trainer over a run's directory: each rank takes its refs from a `TrainerView`.

started       ranks join, rank 0 goes back to the checkpoint, and only then anybody leases
each step     ledger, then queue, each rank for its own samples
checkpoint    the features of what it holds are removed; those of later samples stay, to go back to
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch.distributed as dist
from specforge.training import Trainer
from specforge.training.checkpoint import CheckpointManager

from fsqueue.control import DataFlowController
from fsqueue.engine import arguments
from fsqueue.errors import FsQueueError, InvalidArgumentError
from fsqueue.integrations.specforge.refs import RefChannel
from fsqueue.stream.membership import OnSigterm
from fsqueue.stream.view import Ending, TrainerView

T = TypeVar("T")

_REQUIRED = {"max_steps": None, "save_interval": 0, "logger": None, "log_interval": 50}


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
                self._features.abort(sample_id, reason="a checkpoint holds it")

    def remove_features(self, up_to: int | None) -> None:
        """Remove the features of what this rank has trained up to a step."""
        if up_to is None or self._keep_features:
            return
        for step in [step for step in self._trained if step <= up_to]:
            for sample_id in self._trained.pop(step):
                self._features.abort(sample_id, reason="a checkpoint holds it")


def build_online_consumer(
    *,
    algorithm: Any,
    channel: RefChannel,
    feature_store: Any,
    draft_model: Any,
    optimizer_factory: Any,
    run_id: str,
    output_dir: str,
    modality: str = "text",
    target_head: Any = None,
    batch_size: int = 1,
    accumulation_steps: int = 1,
    collate_fn: Any = None,
    idle_timeout_s: float | None = None,
    resume_from: str | None = None,
    rest: Ending | Callable[[TrainerView[Any], list[Any]], object] = "release",
    keep_features: bool = False,
    attempt: int | None = None,
    on_sigterm: OnSigterm = None,
    **options: Any,
) -> Any:
    """Build this rank's `Trainer`, in the place of ``specforge.launch.build_disagg_online_consumer``.

    The ranks are those of the process group, where there is one. Started with resume_from, they go on from that
    checkpoint with what was not trained by then, whoever had leased or acknowledged it, also in another number than
    those that wrote it, where the optimizer's state is not sharded (FSDP_SHARDING=NO_SHARD).

    Args:
        feature_store: any of SpecForge's contract with retain_on_release.
        rest, attempt, on_sigterm: see `TrainerView`.
        keep_features: leave the features of what was trained, so that one may go back to any checkpoint.
        options: further arguments of ``specforge.training.Trainer``, such as max_steps and save_interval.

    Returns:
        SpecForge's trainer; its ``view`` is the rank's `TrainerView`.

    Raises:
        ConsumerSetupError: the checkpoint is not for this many ranks, samples were trained and resume_from is not
            given, features that the checkpoint needs may be gone, or another rank failed.
        QueueConfigError: a former rank is alive.
    """
    if getattr(feature_store, "retain_on_release", False) is not True:
        raise InvalidArgumentError(
            "build_online_consumer(feature_store=)", "a store with retain_on_release=True", feature_store
        )
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    end = _End()
    try:
        state = _together(lambda: _state(resume_from, world))
        view_options = {"idle_timeout_s": idle_timeout_s, "attempt": attempt, "on_sigterm": on_sigterm}
        controller = OnlineController(run_id, channel, feature_store, keep_features)
        _together(
            lambda: end.join(
                TrainerView(
                    _Untrained(channel),
                    partition=(rank, world) if world > 1 else None,
                    batch=batch_size,
                    window=accumulation_steps,
                    rest=controller.settle_rest if rest == "ack" else rest,
                    **view_options,
                )
            )
        )
        controller.view = end.view
        saved = _last_step(output_dir, run_id)
        _together(lambda: controller.begin(state, saved) if rank == 0 else None)
        channel.queue.publish_quantum(dp_size=world, batch_size=batch_size, accumulation_steps=accumulation_steps)
        trainer = Trainer(
            algorithm_name=algorithm.name,
            make_step_strategy=algorithm.providers.step.build,
            controller=controller,
            store=feature_store,
            ref_source={"queue": end.view, "prepositioned": state is not None, "defer_ack_until_durable": True},
            model=draft_model,
            target_head=target_head if algorithm.providers.step.uses_external_target_head else None,
            optimizer_factory=optimizer_factory,
            run_id=run_id,
            output_dir=output_dir,
            batch_size=batch_size,
            accumulation_steps=accumulation_steps,
            num_epochs=1,
            collate_fn=collate_fn or algorithm.providers.server_streaming_for(modality).build_collator(),
            resume_from=resume_from,
            resume_state=state,
            on_fit_success=controller.remove_features,
            on_fit_failure=end.note,
            on_fit_finally=end.leave,
            **(_REQUIRED | options),
        )
    except BaseException as error:
        end.note(error)
        end.leave()
        raise
    controller.saved_step = lambda: trainer.last_checkpoint_step
    trainer.view = end.view
    return trainer


class _End:
    """Leave the stream when training has ended, and say how."""

    def __init__(self) -> None:
        self.view: TrainerView[Any] | None = None
        self._error: BaseException | None = None

    def join(self, view: TrainerView[Any]) -> None:
        self.view = view.__enter__()

    def note(self, error: BaseException) -> None:
        self._error = error

    def leave(self) -> None:
        error = self._error
        if self.view is not None:
            self.view.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


class _Untrained:
    """Lease for a view what the ledger does not know as trained; what it knows is settled instead."""

    def __init__(self, channel: RefChannel) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel.queue, name)

    def get(self, max_refs: int, timeout_s: float | None = None, **options: Any) -> list[Any]:
        return self._channel.controller.lease_train_refs("trainer", max_refs, timeout_s, **options)


def _together(work: Callable[[], T]) -> T:
    """Do this rank's part of something that all ranks do; where one of them fails, all do."""
    result: list[T] = []
    error: BaseException | None = None
    try:
        result.append(work())
    except BaseException as found:
        error = found
    if dist.is_initialized():
        said: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(said, f"{type(error).__name__}: {error}" if error else None)
        failed = [f"rank {rank}: {problem}" for rank, problem in enumerate(said) if problem]
        if failed and error is None:
            raise ConsumerSetupError(f"no rank can start, since one could not: {'; '.join(failed)}")
    if error is not None:
        raise error
    return result[0]


def _state(resume_from: str | None, world: int) -> dict[str, Any] | None:
    """Read a checkpoint for this rank, also one that another number of ranks has written."""
    if resume_from is None:
        return None
    state: dict[str, Any] = CheckpointManager.read_resume_state(resume_from, require_full_state=False)
    written_by = state.get("world_size", world)
    if written_by == world:
        return state
    optimizer = state.get("replicated_optimizer_state")
    if optimizer is None:
        raise ConsumerSetupError(
            f"checkpoint {resume_from} was written by {written_by} ranks, each with its share of the optimizer's state, "
            f"and this run has {world}: start {written_by} ranks; runs with FSDP_SHARDING=NO_SHARD may change their number"
        )
    return state | {"world_size": world, "backend": {"optimizer": optimizer, "rng": None}}


def _last_step(output_dir: str, run_id: str) -> int | None:
    """Return the step of the last checkpoint that a run has written."""
    found = CheckpointManager(output_dir, run_id).latest_dir()
    return int(found.rpartition("-step")[2]) if found else None
