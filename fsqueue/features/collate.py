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
    first = samples[0]
    for sample in samples:
        _require_alike(first, sample)
    return {name: torch.stack([sample[name] for sample in samples]) for name in first}


def _require_alike(first: Mapping[str, Tensor], sample: Mapping[str, Tensor]) -> None:
    for name in first.keys() ^ sample.keys():
        raise CollateError(name, "is there in some samples of the batch and not in others")
    for name, tensor in sample.items():
        if (tensor.shape, tensor.dtype) != (first[name].shape, first[name].dtype):
            shown = ", ".join(sorted(f"{each.dtype}{list(each.shape)}" for each in (first[name], tensor)))
            raise CollateError(name, f"differs between the samples of a batch ({shown})")


class Stack:
    """Stacks samples as they come: the memory of those that were copied is not needed any more.

    It copies several at a time, since to load a sample takes longer when a copy has just gone through the caches.

    Args:
        most: how many samples may come.
        pin_memory: whether the batch of samples that are the host's goes to page-locked memory.
        buffers: where other memory for it comes from.
    """

    def __init__(self, most: int, pin_memory: bool, buffers: Buffers) -> None:
        self._most = most
        self._pin_memory = pin_memory
        self._buffers = buffers
        self._rows: dict[str, Tensor] = {}
        self._first: dict[str, Tensor] = {}
        self._copied = 0
        self._waiting: list[Mapping[str, Tensor]] = []
        self._waiting_bytes = 0

    def add(self, sample: Mapping[str, Tensor]) -> None:
        """Take a sample into the batch; raises as `stack` does."""
        if not self._waiting and not self._copied:
            self._rows = {name: self._room_for(tensor) for name, tensor in sample.items()}
            self._first = {name: rows[0] for name, rows in self._rows.items()}
        _require_alike(self._first, sample)
        self._waiting.append(sample)
        self._waiting_bytes += sum(tensor.nbytes for tensor in sample.values())
        if self._waiting_bytes >= _WAITING_BYTES:
            self._copy()

    def _room_for(self, tensor: Tensor) -> Tensor:
        shape, host = (self._most, *tensor.shape), tensor.device.type == "cpu"
        if host and not self._pin_memory:
            return self._buffers.empty(shape, tensor.dtype)
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, pin_memory=host and self._pin_memory)

    def _copy(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        end = self._copied + len(waiting)
        for name, rows in self._rows.items():
            torch.stack([sample[name].detach() for sample in waiting], out=rows[self._copied : end])
        self._copied = end

    def batch(self) -> dict[str, Tensor]:
        """Return the samples that were added, stacked."""
        if self._waiting:
            self._copy()
        return {name: rows if self._copied == self._most else rows[: self._copied] for name, rows in self._rows.items()}
