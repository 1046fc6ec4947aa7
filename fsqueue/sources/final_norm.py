"""Apply the target's final norm to states that were captured before it."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fsqueue.sources.errors import SourceSetupError

_WEIGHT = "model.norm.weight"
_PLAIN = ("llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3")


class FinalNorm:
    """The root mean square norm before the output head: x / sqrt(mean(x²) + eps) · weight, in float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight = weight
        self.eps = eps

    @classmethod
    def from_folder(cls, folder: str | os.PathLike[str]) -> FinalNorm:
        """Read the norm's weight and its epsilon from a model's folder, and nothing else of it.

        Raises:
            SourceSetupError: it is no such folder, or a kind of model whose norm may be another one.
        """
        path = os.fspath(folder)
        try:
            with open(os.path.join(path, "config.json"), encoding="utf-8") as file:
                config: dict[str, Any] = json.load(file)
            weight = _tensor(path, _WEIGHT)
        except (OSError, ValueError, KeyError) as error:
            problem = f"the folder holds no model in safetensors with a {_WEIGHT}: {error}"
            raise SourceSetupError(f"final norm of {path}", None, problem) from None
        kind, eps = config.get("model_type"), config.get("rms_norm_eps")
        if kind not in _PLAIN or not isinstance(eps, float):
            raise SourceSetupError(
                f"final norm of {path}",
                None,
                f"the model is of type {kind!r}, whose norm is not known to be a plain one, as that of "
                f"{', '.join(_PLAIN)} is: capture without it, and apply it where you train",
            )
        return cls(weight, eps)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Map [..., H] to [..., H], in the type of hidden."""
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (self.weight.to(hidden.dtype) * (wide * scale).to(hidden.dtype)).contiguous()


def _tensor(folder: str, name: str) -> Tensor:
    file_name = "model.safetensors"
    index = os.path.join(folder, f"{file_name}.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            file_name = json.load(file)["weight_map"][name]
    with safe_open(os.path.join(folder, os.path.basename(file_name)), framework="pt") as tensors:
        if name not in tensors.keys():  # noqa: SIM118  # it is no mapping
            raise KeyError(f"no {name} in {file_name}")
        found: Tensor = tensors.get_tensor(name)
        return found
