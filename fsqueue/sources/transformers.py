"""States from a model in this process, through transformers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import cached_property
from typing import Any

import torch
import transformers
from torch import Tensor

from fsqueue.features.tensorfile import dtype_name
from fsqueue.sources.contract import (
    HIDDEN_STATES,
    LAST,
    NORMED,
    TOKEN_IDS,
    CapturedTensors,
    Captures,
    OnRefused,
    Prompt,
    layer_names,
)
from fsqueue.sources.errors import PromptRefusedError, SourceSetupError

# transformers is typed in parts only, and other parts in every release.
_AutoModel: Any = transformers.AutoModelForCausalLM
_AutoTokenizer: Any = transformers.AutoTokenizer
_BLOCKS = ("layers", "h", "blocks")


class TransformersSource:
    """A causal language model of this process, which is only read.

    Args:
        model: a folder to load it from, or the model itself.
        layers: the names of the layers to give.
        dtype: what it computes in, such as "bfloat16"; float32 unless given. A model that is given keeps its own.
        device: where a model that is loaded goes.
        weight_version: None: the folder's name.

    Raises:
        SourceSetupError: the folder holds no such model, or the model has not these layers.
    """

    def __init__(
        self,
        model: Any,
        *,
        layers: Iterable[str | int] = (NORMED,),
        dtype: str = "float32",
        device: str = "cpu",
        weight_version: str | None = None,
    ) -> None:
        self.layers = layer_names(layers)
        self._folder = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
        self._given_version = weight_version
        if self._folder is not None:
            model = self._load(self._folder, dtype).to(device)
        self.model: Any = model.eval()
        self._blocks = next((getattr(self.model.base_model, name, None) for name in _BLOCKS), None)
        count = len(self._blocks) if self._blocks is not None else 0
        if any(name != NORMED and (not count or (name != LAST and int(name) >= count)) for name in self.layers):
            raise SourceSetupError(
                self.name,
                None,
                f"it has no layers {','.join(self.layers)}: name numbers below {count}, {LAST!r} or {NORMED!r}",
            )

    @property
    def name(self) -> str:
        return f"transformers in this process ({self._folder or type(self.model).__name__})"

    def _load(self, folder: str, dtype: str) -> Any:
        known = getattr(torch, dtype, None)
        if not isinstance(known, torch.dtype):
            raise SourceSetupError(self.name, None, f"dtype is {dtype!r}: name one of torch's, such as bfloat16")
        try:
            return _AutoModel.from_pretrained(folder, dtype=known, local_files_only=True)
        except (OSError, ValueError) as error:
            problem = f"{folder} holds no causal language model that transformers loads: {error}"
            raise SourceSetupError(self.name, None, problem) from error

    def weight_version(self) -> str:
        return self._given_version or os.path.basename(os.path.abspath(self._folder or "")) or "unknown"

    def capture(self, prompts: Iterable[Prompt], *, on_refused: OnRefused | None = None) -> Captures:
        """Yield the states of the prompts, one after the other; see `FeatureSource.capture`."""
        for prompt in prompts:
            try:
                yield self._captured(prompt)
            except PromptRefusedError as error:
                if on_refused is None:
                    raise
                on_refused(error)

    def _captured(self, prompt: Prompt) -> CapturedTensors:
        ids = prompt.token_ids if prompt.token_ids is not None else tuple(self._tokenizer(prompt.text)["input_ids"])
        size = self.model.get_input_embeddings().weight.shape[0]
        if not ids or not all(0 <= token < size for token in ids):
            problem = f"it has {len(ids)} tokens, expected one at least, of 0 to {size - 1}: leave this prompt out"
            raise PromptRefusedError(self.name, prompt.prompt_id, problem)
        tokens = torch.tensor(ids, dtype=torch.int64)
        states = self.states(tokens)
        named = {TOKEN_IDS: tokens, HIDDEN_STATES: states}
        version = self.weight_version()
        return CapturedTensors(prompt, self.name, ids, self.layers, dtype_name(states.dtype), version, named)

    @torch.inference_mode()
    def states(self, tokens: Tensor) -> Tensor:
        """Map [T] token ids to [T, layers, H], on the CPU."""
        seen: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name in self.layers:
                if name != NORMED:
                    hooks.callback(self._hook(name, seen).remove)
            read = self.model.base_model(input_ids=tokens[None].long().to(self.model.device), use_cache=False)
        seen[NORMED] = read.last_hidden_state
        return torch.stack([seen[name][0] for name in self.layers], dim=1).cpu().contiguous()

    def _hook(self, name: str, seen: dict[str, Tensor]) -> Any:
        """Note what a block reads, or what the last one gives."""

        def note_output(block: Any, given: Any, output: Any) -> None:
            seen[name] = output[0] if isinstance(output, tuple) else output

        def note_input(block: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen[name] = given[0] if given else named["hidden_states"]

        blocks: Any = self._blocks
        if name == LAST:
            return blocks[-1].register_forward_hook(note_output)
        return blocks[int(name)].register_forward_pre_hook(note_input, with_kwargs=True)

    @cached_property
    def _tokenizer(self) -> Callable[[str | None], Any]:
        if self._folder is None:
            raise SourceSetupError(self.name, None, "it was given without its folder: give prompts as token_ids")
        tokenizer: Callable[[str | None], Any] = _AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        return tokenizer

    def close(self) -> None:
        """Do nothing: the model goes with this object."""
