"""Make one batch of several samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fsqueue.features.buffers import Buffers
from fsqueue.features.errors import CollateError

_WAITING_BYTES = 16 << 20


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
    """Stacks samples as they come: the memory of those that were copied is not needed any more.

    It copies several at a time, since to load a sample takes longer when a copy has just gone through the caches.

    Args:
        most: how many samples may come.
        pin_memory: whether the batch of samples that are the host's goes to page-locked memory.
        buffers: where other memory for it comes from; None: from torch.
    """

    def __init__(self, most: int, pin_memory: bool = False, buffers: Buffers | None = None) -> None:
        self._most = most
        self._pin_memory = pin_memory
        self._buffers = buffers
        self._rows: dict[str, Tensor] = {}
        self._copied = 0
        self._waiting: list[Mapping[str, Tensor]] = []
        self._waiting_bytes = 0

    def add(self, sample: Mapping[str, Tensor]) -> None:
        """Take a sample into the batch; raises as `stack` does."""
        if not self._waiting and not self._copied:
            self._rows = {name: self._room_for(tensor) for name, tensor in sample.items()}
        for name in self._rows.keys() ^ sample.keys():
            raise CollateError(name, "is there in some samples of the batch and not in others")
        for name, tensor in sample.items():
            self._check(name, tensor)
        self._waiting.append(sample)
        self._waiting_bytes += sum(tensor.nbytes for tensor in sample.values())
        if self._waiting_bytes >= _WAITING_BYTES:
            self._copy()

    def _room_for(self, tensor: Tensor) -> Tensor:
        shape, host = (self._most, *tensor.shape), tensor.device.type == "cpu"
        if self._buffers is not None and host and not self._pin_memory:
            return self._buffers.empty(shape, tensor.dtype)
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, pin_memory=host and self._pin_memory)

    def _check(self, name: str, tensor: Tensor) -> None:
        row = self._rows[name][0]
        if (row.shape, row.dtype) != (tensor.shape, tensor.dtype):
            shown = ", ".join(sorted(f"{each.dtype}{list(each.shape)}" for each in (row, tensor)))
            raise CollateError(name, f"differs between the samples of a batch ({shown})")

    def _copy(self) -> None:
        for name, rows in self._rows.items():
            for at, sample in enumerate(self._waiting, self._copied):
                rows[at].copy_(sample[name])
        self._copied += len(self._waiting)
        self._waiting, self._waiting_bytes = [], 0

    def batch(self) -> dict[str, Tensor]:
        """Return the samples that were added, stacked."""
        self._copy()
        return {name: rows if self._copied == self._most else rows[: self._copied] for name, rows in self._rows.items()}
