"""Sources: where a rollout has hidden states from, and the run that brings them into a store and a queue.

Nothing of fsqueue's core imports this package. This module imports neither torch nor transformers nor an HTTP library:
each comes with the source that needs it, once that is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsqueue.lazy import lazily
from fsqueue.sources.contract import Captured, FeatureSource, Prompt
from fsqueue.sources.errors import (
    PromptRefusedError,
    SourceError,
    SourceSetupError,
    SourceUnreachableError,
)

if TYPE_CHECKING:
    from fsqueue.sources.capture_run import CaptureReport, CaptureRun, Progress
    from fsqueue.sources.final_norm import FinalNorm
    from fsqueue.sources.prompt_file import PromptFile
    from fsqueue.sources.sglang import SglangSource
    from fsqueue.sources.transformers import TransformersSource
    from fsqueue.sources.vllm import VllmSource

_HOMES = {
    "CaptureReport": "capture_run",
    "CaptureRun": "capture_run",
    "FinalNorm": "final_norm",
    "Progress": "capture_run",
    "PromptFile": "prompt_file",
    "SglangSource": "sglang",
    "TransformersSource": "transformers",
    "VllmSource": "vllm",
}

__all__ = [
    "CaptureReport",
    "CaptureRun",
    "Captured",
    "FeatureSource",
    "FinalNorm",
    "Progress",
    "Prompt",
    "PromptFile",
    "PromptRefusedError",
    "SglangSource",
    "SourceError",
    "SourceSetupError",
    "SourceUnreachableError",
    "TransformersSource",
    "VllmSource",
]


_EXTRA_OF = dict.fromkeys(("torch", "numpy", "safetensors", "urllib3"), "sources") | {"transformers": "transformers"}


def __getattr__(name: str) -> Any:
    return lazily(__name__, _HOMES, name, _EXTRA_OF)
