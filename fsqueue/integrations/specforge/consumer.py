"""Build SpecForge's trainer over a run's directory: each rank takes its refs from a `TrainerView`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from specforge.training import Trainer
from specforge.training.checkpoint import CheckpointManager

from fsqueue.errors import InvalidArgumentError
from fsqueue.integrations.specforge.controller import ConsumerSetupError, OnlineController
from fsqueue.integrations.specforge.refs import RefChannel
from fsqueue.stream.sigterm import OnSigterm
from fsqueue.stream.view import Ending, TrainerView

T = TypeVar("T")

_REQUIRED = {"max_steps": None, "save_interval": 0, "logger": None, "log_interval": 50}


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
    end = _End()
    try:
        state = _together(lambda: _state(resume_from))
        controller = OnlineController(run_id, channel, feature_store, keep_features)
        _together(
            lambda: end.join(
                TrainerView(
                    _Untrained(channel),
                    partition=_rank() if _rank() != (0, 1) else None,
                    batch=batch_size,
                    window=accumulation_steps,
                    rest=controller.settle_rest if rest == "ack" else rest,
                    idle_timeout_s=idle_timeout_s,
                    attempt=attempt,
                    on_sigterm=on_sigterm,
                )
            )
        )
        controller.view = end.view
        saved = _last_step(output_dir, run_id)
        _together(lambda: controller.begin(state, saved) if _rank()[0] == 0 else None)
        channel.queue.publish_quantum(dp_size=_rank()[1], batch_size=batch_size, accumulation_steps=accumulation_steps)
        trainer = Trainer(
            controller=controller,
            store=feature_store,
            ref_source={"queue": end.view, "prepositioned": state is not None, "defer_ack_until_durable": True},
            model=draft_model,
            optimizer_factory=optimizer_factory,
            run_id=run_id,
            output_dir=output_dir,
            batch_size=batch_size,
            accumulation_steps=accumulation_steps,
            num_epochs=1,
            resume_from=resume_from,
            resume_state=state,
            on_fit_success=controller.remove_features,
            on_fit_failure=end.note,
            on_fit_finally=end.leave,
            **(_REQUIRED | _of(algorithm, modality, target_head, collate_fn) | options),
        )
    except BaseException as error:
        end.note(error)
        end.leave()
        raise
    controller.saved_step = lambda: trainer.last_checkpoint_step
    trainer.view = end.view
    return trainer


def _of(algorithm: Any, modality: str, target_head: Any, collate_fn: Any) -> dict[str, Any]:
    """Return those arguments of a trainer that its algorithm decides."""
    step = algorithm.providers.step
    return {
        "algorithm_name": algorithm.name,
        "make_step_strategy": step.build,
        "target_head": target_head if step.uses_external_target_head else None,
        "collate_fn": collate_fn or algorithm.providers.server_streaming_for(modality).build_collator(),
    }


def _rank() -> tuple[int, int]:
    """Return this rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


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
            raise ConsumerSetupError(f"no rank starts, since one could not: {'; '.join(failed)}")
    if error is not None:
        raise error
    return result[0]


def _state(resume_from: str | None) -> dict[str, Any] | None:
    """Read a checkpoint for this rank, also one that another number of ranks has written.

    Raises:
        ConsumerSetupError: each of those has kept a share of the optimizer's state, or this rank's is missing.
    """
    if resume_from is None:
        return None
    state: dict[str, Any] = CheckpointManager.read_resume_state(resume_from, require_full_state=False)
    rank, world = _rank()
    written_by, optimizer = state.get("world_size", world), state.get("replicated_optimizer_state")
    if written_by == world and state["backend"]:
        return state
    if optimizer is None:
        raise ConsumerSetupError(
            f"checkpoint {resume_from} was written by {written_by} ranks, each of which kept its share of the "
            f"optimizer's state; there is none for rank {rank} of {world}: start {written_by} ranks; only with "
            "FSDP_SHARDING=NO_SHARD may their number change"
        )
    return state | {"world_size": world, "backend": {"optimizer": optimizer, "rng": None}}


def _last_step(output_dir: str, run_id: str) -> int | None:
    """Return the step of the last checkpoint that a run has written."""
    found = CheckpointManager(output_dir, run_id).latest_dir()
    return int(found.rpartition("-step")[2]) if found else None
