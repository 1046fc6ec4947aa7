"""Make one batch of several samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsqueue.features.buffers import Buffers
from fsqueue.features.errors import CollateError


def stack(samples: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Stack every feature of the samples along a new first dimension.

    Raises:
        CollateError: a feature is not there in all samples with one shape and type; nothing is padded or cut.
    """
    stacking = Stack(len(samples))
    for sample in samples:
        stacking.add(sample)
    return stacking.batch()


class Stack:
    """Stacks samples as they come: once added, a sample's own memory is not needed any more.

    Args:
        most: how many samples may come.
        pin_memory: whether the batch of samples that are the host's goes to page-locked memory.
        buffers: where other memory for it comes from; None: from torch.
    """

    def __init__(self, most: int, pin_memory: bool = False, buffers: Buffers | None = None) -> None:
        self._most = most
        self._pin_memory = pin_memory
        self._buffers = buffers
        self._count = 0
        self._rows: dict[str, Tensor] = {}

    def add(self, sample: Mapping[str, Tensor]) -> None:
        """Copy a sample into the batch; raises as `stack` does."""
        if self._count == 0:
            self._rows = {name: self._room_for(tensor) for name, tensor in sample.items()}
        for name in self._rows.keys() ^ sample.keys():
            raise CollateError(name, "is there in some samples of the batch and not in others")
        for name, tensor in sample.items():
            self._copy(name, tensor)
        self._count += 1

    def _room_for(self, tensor: Tensor) -> Tensor:
        shape, host = (self._most, *tensor.shape), tensor.device.type == "cpu"
        if self._buffers is not None and host and not self._pin_memory:
            return self._buffers.empty(shape, tensor.dtype)
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, pin_memory=host and self._pin_memory)

    def _copy(self, name: str, tensor: Tensor) -> None:
        row = self._rows[name][self._count]
        if (row.shape, row.dtype) != (tensor.shape, tensor.dtype):
            shown = ", ".join(sorted(f"{each.dtype}{list(each.shape)}" for each in (row, tensor)))
            raise CollateError(name, f"differs between the samples of a batch ({shown})")
        row.copy_(tensor)

    def batch(self) -> dict[str, Tensor]:
        """Return the samples that were added, stacked."""
        return {name: rows if self._count == self._most else rows[: self._count] for name, rows in self._rows.items()}
