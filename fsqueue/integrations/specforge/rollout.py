"""Let SpecForge's rollout workers have the features that a source captures: by any of `fsqueue.sources`."""

from __future__ import annotations

import logging
import threading
from contextlib import closing
from typing import Any

import torch
from torch import Tensor

from fsqueue.sources.contract import HIDDEN_STATES, LAST, LAST_HIDDEN_STATE, NORMED, Captured, FeatureSource, Prompt
from fsqueue.sources.errors import PromptRefusedError, SourceSetupError

_logger = logging.getLogger(__name__)
_LAYER_IDS = "__aux_layer_ids__"  # among the features, what the worker compares with the ids that it asked for


class RolloutSource:
    """Capture prompts that a `RolloutWorker` has leased; a ``feature_source`` for ``build_disagg_online_producer``.

    SpecForge counts a target's blocks, and takes what block i gives: the source's layer of the name i + 1. A draft that
    learns from the target's last states has them after the final norm, as the output head reads them: from the layer
    "normed", or from a source that applies the norm.

    A prompt that the source refuses is failed for good by its worker, which then reports features that are missing; why
    it was refused is in the log. The other prompts of the lease are committed.

    Args:
        source: the caller closes it. Calls from several threads go one after another: a larger lease is what lets a
            server work on several prompts at once.
        algorithm: SpecForge's, as the builder has it: it names the features.
        modality: the algorithm's.
        blocks: how many the target has. Needed where the draft takes what the last one gives: the layer "last".
    """

    def __init__(
        self, source: FeatureSource, *, algorithm: Any, modality: str = "text", blocks: int | None = None
    ) -> None:
        self._source = source
        self._algorithm = algorithm.name
        self._layout = algorithm.providers.server_streaming_for(modality).layout
        self._blocks = blocks
        self._mutex = threading.Lock()

    def generate_features(self, tasks: list[Any], *, capture: Any) -> list[dict[str, Any]]:
        """Return the features of each task, by SpecForge's names and with a batch dimension; {} for a refused one.

        Raises:
            SourceSetupError: the source has not the layers that the draft needs, or a prompt has not its payload.
            SourceError: the source did not answer; see `FeatureSource.capture`.
        """
        layers = self._layers(capture.aux_hidden_state_layer_ids)
        found: dict[str, dict[str, Any]] = {task.task_id: {} for task in tasks}
        passed_on = {task.task_id: self._passed_on(task) for task in tasks}
        prompts = [Prompt(task.task_id, token_ids=tuple(task.payload["input_ids"])) for task in tasks]
        with self._mutex, closing(self._source.capture(prompts, on_refused=_note)) as captures:
            for captured in captures:
                name = captured.prompt.prompt_id
                try:
                    found[name] = passed_on[name] | self._features(captured, layers)
                finally:
                    captured.discard()
                found[name][_LAYER_IDS] = tuple(capture.aux_hidden_state_layer_ids)
        return [found[task.task_id] for task in tasks]

    def _layers(self, block_ids: tuple[int, ...]) -> list[str]:
        """Return the names of the source's layers that the draft is fed with."""
        given = self._source.layers
        wanted = [LAST if block + 1 == self._blocks else str(block + 1) for block in block_ids]
        needed = [*(wanted if self._layout.aux_feature else ()), *(self._target() if LAST not in given else ())]
        if missing := [name for name in needed if name not in given]:
            raise SourceSetupError(
                self._source.name,
                None,
                f"it gives the layers {','.join(given)} and lacks {','.join(missing)}, of which {self._algorithm} "
                f"learns: make it with the layers {','.join(needed)}",
            )
        return wanted

    def _target(self) -> tuple[str, ...]:
        return (NORMED,) if self._layout.last_hidden_feature else ()

    def _passed_on(self, task: Any) -> dict[str, Tensor]:
        """Return what the task itself says of each of its tokens."""
        layout, tokens = self._layout, len(task.payload.get("input_ids", ()))
        features = {}
        for feature, key, trailing in layout.passthrough:
            values = torch.tensor(task.payload.get(key, ()), dtype=torch.int64)
            if not tokens or tuple(values.shape) != (tokens, *trailing):
                problem = (
                    f"its payload {key!r} has the shape {list(values.shape)}, expected {[tokens or 1, *trailing]}, of "
                    f"{tokens} input_ids: prompts have to come with it, as SpecForge prepares them"
                )
                raise SourceSetupError(self._source.name, task.task_id, problem)
            features[feature] = values[None]
        if layout.attention_mask_feature is not None:
            features[layout.attention_mask_feature] = torch.ones(1, tokens, dtype=torch.int64)
        return features

    def _features(self, captured: Captured, layers: list[str]) -> dict[str, Tensor]:
        """Return the target's states over one prompt, copied."""
        tensors, names = captured.tensors(), captured.layers
        states, features = tensors[HIDDEN_STATES], {}
        if self._layout.aux_feature is not None:
            features[self._layout.aux_feature] = states[:, [names.index(name) for name in layers]].flatten(1)[None]
        if self._layout.last_hidden_feature is not None:
            features[self._layout.last_hidden_feature] = self._last(captured, tensors)[None].clone()
        return features

    def _last(self, captured: Captured, tensors: dict[str, Tensor]) -> Tensor:
        if NORMED in captured.layers:
            return tensors[HIDDEN_STATES][:, captured.layers.index(NORMED)]
        if LAST_HIDDEN_STATE in tensors:
            return tensors[LAST_HIDDEN_STATE]
        raise SourceSetupError(
            self._source.name,
            captured.prompt.prompt_id,
            f"it gives {', '.join(tensors)} of the layers {','.join(captured.layers)}, and {self._algorithm} learns "
            f"from the last states after the final norm: capture the layer {NORMED!r}, or let the source apply it",
        )


def _note(error: PromptRefusedError) -> None:
    _logger.warning("%s; the rollout worker fails it", error)
