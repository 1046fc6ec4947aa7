"""Put a batch's tensors where a trainer wants them: into page-locked memory, or onto a device.

To a CUDA device they are copied on a stream of its own, which runs beside the trainer's kernels:

    the thread that loads      page-locked memory -> device, on the copy stream; waits for the event after the copies
    the thread that trains     says to the allocator which stream uses the tensors, and gets them

When the event has come about, the copies are done, so that the trainer need not wait for them, and what they were made
from may be let go of. The allocator would give the memory of such tensors to the next copy as soon as the trainer drops
them, while its kernels still read there: `record_stream` keeps it until they are done.

Sources: https://docs.pytorch.org/docs/stable/generated/torch.Tensor.record_stream.html,
https://docs.nvidia.com/cuda/cuda-runtime-api/api-sync-behavior.html
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fsqueue.errors import InvalidArgumentError

_DEVICE = "FeatureDataLoader(device=)"
_PINNED = "FeatureDataLoader(pin_memory=)"


class Placement:
    """Places batches for one loader; several threads may.

    Args:
        device: as torch names it; "cuda" is the one that is current in the thread that trains. None: the host.
        pin_memory: None: as a step before the copy to a CUDA device.

    Attributes:
        pin_memory: whether tensors go to page-locked memory.

    Raises:
        InvalidArgumentError: there is no such device here, or none that page-locked memory is for.
    """

    def __init__(self, device: Any, pin_memory: bool | None) -> None:
        self._device = None if device is None else _device(device)
        self._cuda = self._device is not None and self._device.type == "cuda"
        self.pin_memory = self._cuda if pin_memory is None else pin_memory
        if self.pin_memory and not _has_accelerator():
            raise InvalidArgumentError(_PINNED, "False or None where torch finds no accelerator", pin_memory)
        self._stream: torch.cuda.Stream | None = None

    def prepare(self) -> None:
        """Begin an iteration, in the thread that trains.

        A device's copy stream is made once: the memory of tensors that a stream copied is used again by it alone.
        """
        if self._device is not None and self._cuda:
            if self._device.index is None:
                self._device = torch.device("cuda", torch.cuda.current_device())
            self._stream = self._stream or torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def place(self, features: Any) -> Any:
        """Return a batch with its tensors in their place, when they are there."""
        if self.pin_memory:
            features = each_tensor(features, Tensor.pin_memory)
        device = self._device
        if device is None:
            return features
        if self._stream is None:
            return each_tensor(features, lambda tensor: tensor.to(device))
        with torch.cuda.stream(self._stream):
            placed = each_tensor(features, lambda tensor: tensor.to(device, non_blocking=True))
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        copied.synchronize()
        return placed

    def hand_over(self, features: Any) -> None:
        """Let the thread that trains use a batch, on the stream that is current in it."""
        if self._stream is not None:
            stream = torch.cuda.current_stream(self._device)
            each_tensor(features, lambda tensor: _used_on(stream, tensor))


def each_tensor(features: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Return a batch with each of its tensors changed, in dicts, lists and tuples however deep; others stay."""
    if isinstance(features, Tensor):
        return change(features)
    if isinstance(features, dict):
        changed = copy.copy(features)
        changed.update({name: each_tensor(value, change) for name, value in features.items()})
        return changed
    if isinstance(features, (list, tuple)):
        values = [each_tensor(value, change) for value in features]
        return type(features)(*values) if hasattr(features, "_fields") else type(features)(values)
    return features


def _used_on(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor


def _device(given: Any) -> torch.device:
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        raise InvalidArgumentError(_DEVICE, "a device such as 'cuda', 'cuda:0' or 'cpu'", given) from None
    module = getattr(torch, device.type, None)
    count = module.device_count() if module is not None and _is_available(module) else 0
    if (device.index or 0) >= count:
        shown = f"one of the {count} devices" if count else "another device than one"
        raise InvalidArgumentError(_DEVICE, f"{shown} of type {device.type} that torch finds here", given)
    return device


def _is_available(module: Any) -> bool:
    return bool(getattr(module, "is_available", lambda: True)())


def _has_accelerator() -> bool:
    accelerator = getattr(torch, "accelerator", torch.cuda)  # torch 2.6 has the first
    return bool(accelerator.is_available())
