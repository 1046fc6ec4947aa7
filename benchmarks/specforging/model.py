"""A tiny random Llama as the target, what SpecForge's EAGLE-3 draft is trained on of it, and the draft itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from specforging.settings import LAYERS

HIDDEN = 32
VOCABULARY = 64


def _config(layers: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        tie_word_embeddings=False,
        **more,
    )


def save_target(folder: Path) -> None:
    """Write a target with random weights, in several files and with an index, as SpecForge reads its head."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.manual_seed(0)
    LlamaForCausalLM(_config(len(LAYERS))).save_pretrained(folder, max_shard_size="20KB")


@contextmanager
def _stand_in_for_triton() -> Iterator[None]:
    """Let SpecForge define its Triton kernels where there is no Triton; nobody launches them."""
    triton, language = ModuleType("triton"), ModuleType("triton.language")
    triton.jit = lambda kernel: kernel  # type: ignore[attr-defined]
    triton.language = language  # type: ignore[attr-defined]
    language.constexpr = int  # type: ignore[attr-defined]
    missing = "triton" not in sys.modules
    if missing:
        sys.modules.update({"triton": triton, "triton.language": language})
    try:
        yield
    finally:
        if missing:
            del sys.modules["triton"], sys.modules["triton.language"]


def training_model() -> Any:
    """Return SpecForge's EAGLE-3 model around its own draft, with its reference loss in the place of the kernels."""
    with _stand_in_for_triton():
        from specforge.algorithms.eagle3 import model
        from specforge.core import loss
        from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3

    class ReferenceLoss:
        apply = staticmethod(loss._compute_loss)

    model.LogSoftmaxLoss = ReferenceLoss
    torch.manual_seed(1)
    draft = LlamaForCausalLMEagle3(_config(1, draft_vocab_size=VOCABULARY), attention_backend="sdpa")
    return model.OnlineEagle3Model(draft, length=2, attention_backend="sdpa")


def target_head(folder: Path) -> Any:
    from specforge.modeling.target.target_head import TargetHead

    return TargetHead.from_pretrained(str(folder)).float()
