"""The frozen target model: loaded through transformers, converted once a run, and run over chunks."""

from __future__ import annotations

import copy
import importlib.util
import os
from typing import Any

import torch
import transformers
from torch import Tensor

from fsqueue.demo.options import INSTALL_MODEL, MODEL_PACKAGE, DemoError
from fsqueue.sources.errors import SourceSetupError
from fsqueue.sources.transformers import TransformersSource

# transformers is typed in parts only, and other parts in every release.
_AutoModel: Any = transformers.AutoModelForCausalLM
_AutoTokenizer: Any = transformers.AutoTokenizer
_logging: Any = transformers.utils.logging
_logging.disable_progress_bar()


def packaged_gguf() -> tuple[str, str]:
    """Find folder and file name of the GGUF that the model package brings; the package is not imported.

    Raises:
        DemoError: it is not installed.
    """
    found = importlib.util.find_spec(MODEL_PACKAGE)
    folder = os.path.dirname(found.origin) if found and found.origin else ""
    files = sorted(name for name in os.listdir(folder) if name.endswith(".gguf")) if folder else []
    if not files:
        raise DemoError(f"the package {MODEL_PACKAGE} with the target model is not installed: {INSTALL_MODEL}")
    return folder, files[0]


def convert_gguf(folder: str, file: str, destination: str) -> None:
    """Load a GGUF once and write it as an ordinary model folder in half precision, which loads in seconds."""
    tokenizer = _AutoTokenizer.from_pretrained(folder, gguf_file=file)
    loaded = _AutoModel.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    # transformers 5 calls a model from a GGUF quantized, although its weights are not, and will not cast it.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = _AutoModel.from_config(config)
    model.load_state_dict(loaded.state_dict())
    model.half().save_pretrained(destination)
    tokenizer.save_pretrained(destination)


class Target:
    """A causal language model that is only read.

    Raises:
        DemoError: the folder holds no such model.
    """

    def __init__(self, folder: str) -> None:
        try:
            self.source = TransformersSource(folder)
        except SourceSetupError as error:
            raise DemoError(f"the target cannot be loaded: {error}") from error
        self._model: Any = self.source.model
        self.hidden_size: int = self.embedding().shape[1]

    def hidden_states(self, tokens: Tensor) -> Tensor:
        """Map [T] token ids to [T, H]: the last hidden states, after the final norm, as the output head reads them."""
        return self.source.states(tokens)[:, 0]

    @torch.inference_mode()
    def choices(self, hidden: Tensor) -> Tensor:
        """Map [T, H] to [T]: the most likely next token after each position."""
        logits: Tensor = self._model.get_output_embeddings()(hidden)
        return logits.argmax(dim=-1)

    def embedding(self) -> Tensor:
        """Return [V, H], the input embedding."""
        weight: Tensor = self._model.get_input_embeddings().weight.detach()
        return weight

    def head_rows(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Return the output head's rows [K, H] and biases [K] for these tokens."""
        head = self._model.get_output_embeddings()
        rows: Tensor = head.weight.detach()[kept]
        bias = getattr(head, "bias", None)
        return rows, torch.zeros(len(kept)) if bias is None else bias.detach()[kept]


def load_tokenizer(folder: str) -> Any:
    return _AutoTokenizer.from_pretrained(folder, local_files_only=True)
