"""Make one batch of several samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsqueue.features.errors import CollateError


def stack(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack every feature of the samples along a new first dimension.

    Raises:
        CollateError: a feature is not there in all samples with one shape and type; nothing is padded or cut.
    """
    names = samples[0].keys()
    for sample in samples:
        for name in names ^ sample.keys():
            raise CollateError(name, "is there in some samples of the batch and not in others")
    return {name: _stack_one(name, [sample[name] for sample in samples]) for name in names}


def _stack_one(name: str, tensors: list[Tensor]) -> Tensor:
    kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
    if len(kinds) > 1:
        shown = ", ".join(sorted(f"{dtype}{list(shape)}" for shape, dtype in kinds))
        raise CollateError(name, f"differs between the samples of a batch ({shown})")
    return torch.stack(tensors)
