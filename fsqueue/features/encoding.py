"""Write tensors as a safetensors file that names their generation, without a copy of their memory.

The generation, a digest of the tensors' bytes, stands in the header, which comes first. But how long the header is does
not depend on it: so the tensors are written, and digested piece by piece while a processor's cache still holds what was
just written, and the header comes last. A small file is digested first, and written by one call.

Source: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

import msgspec
import torch
import xxhash
from torch import Tensor

from fsqueue.disk.publish import WriteAt
from fsqueue.features.address import GENERATION_DIGITS
from fsqueue.features.tensorfile import (
    DTYPES,
    HEADER_LIMIT_BYTES,
    LENGTH_BYTES,
    Digest,
    Metadata,
    TensorEntry,
    TensorHeader,
    dtype_name,
)

SMALL_BYTES = 128 << 10
_COPY_BYTES = 1 << 20
LOCAL_PIECE_BYTES = 512 << 10
REMOTE_PIECE_BYTES = 1 << 20
"""The most that FUSE sends at a time."""
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_UNKNOWN = "0" * GENERATION_DIGITS


class NamesTooLongError(ValueError):
    """The tensors' names and shapes do not fit into a header."""


class Encoder:
    """Write one sample's tensors.

    Tensors on an accelerator are copied to the host, once. The others are not copied: one whose memory is not in the
    order of its elements is put into order piece by piece.

    Args:
        piece_bytes: how much is written by one call; it is digested faster where it fits into a processor's cache.

    Attributes:
        header: of the file; it has the generation once it is written.
        size_bytes: of the file.

    Raises:
        NamesTooLongError: the header would be longer than the store reads.
    """

    def __init__(self, sample_id: str, tensors: Mapping[str, Tensor], piece_bytes: int = LOCAL_PIECE_BYTES) -> None:
        self._piece_bytes = piece_bytes
        self._tensors = {name: _on_host(tensor) for name, tensor in in_order(tensors)}
        entries: dict[str, TensorEntry] = {}
        end = 0
        for name, tensor in self._tensors.items():
            start, end = end, end + tensor.nbytes
            entries[name] = TensorEntry(_NAMES[tensor.dtype], tuple(tensor.shape), (start, end))
        parts: list[bytes | memoryview] | None = [] if end <= SMALL_BYTES else None
        generation = _UNKNOWN if parts is None else self._digested(lambda piece, at: parts.append(piece))
        self.header = TensorHeader(Metadata(sample_id, generation, digest="xxh3"), entries, 0)
        head = _head(self.header)
        self.header.data_at = len(head)
        self.size_bytes = len(head) + end
        self._whole = None if parts is None else b"".join([head, *parts])

    def write(self, write_at: WriteAt) -> int:
        """Write the file by calls of ``write_at(data, offset)``; return its size in bytes."""
        if self._whole is not None:
            write_at(self._whole, 0)
        else:
            self.header.metadata.generation = self._digested(write_at, self.header.data_at)
            write_at(_head(self.header), 0)
        return self.size_bytes

    def _digested(self, first: WriteAt, at: int = 0) -> str:
        return _digest(self._tensors.items(), "xxh3", first, at, self._piece_bytes)


def encode_apart(sample_id: str, generation: str) -> bytes:
    """Return the content of a sample's file whose tensors lie apart."""
    return _head(TensorHeader(Metadata(sample_id, generation, "apart", "xxh3"), {}, 0))


def digest(tensors: Mapping[str, Tensor], kind: Digest = "xxh3") -> str:
    """Return these tensors' generation: equal ones have equal generations, in whatever order and process."""
    return _digest(in_order(tensors) if kind == "xxh3" else sorted(tensors.items()), kind)


def in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Return tensors by the size of their elements, as they have to lie so that each is aligned, and by name."""
    return sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))


def _digest(
    tensors: Iterable[tuple[str, Tensor]],
    kind: Digest,
    first: WriteAt = lambda piece, at: None,
    at: int = 0,
    piece_bytes: int = LOCAL_PIECE_BYTES,
) -> str:
    """Digest tensors, which lie from an offset on, in pieces; what is to be done with a piece is done first.

    Pieces end at multiples of their size: a page cache keeps what is written so in larger parts, which ext4 writes, and
    whoever maps the file reads, with a fifth less work.
    """
    state = xxhash.xxh3_128() if kind == "xxh3" else hashlib.sha256()
    for name, tensor in tensors:
        state.update(msgspec.json.encode((name, dtype_name(tensor.dtype), tuple(tensor.shape))))
        for part in _in_order_of_elements(tensor):
            start = 0
            while start < len(part):
                piece = part[start : start + piece_bytes - at % piece_bytes]
                first(piece, at)
                state.update(piece)
                start += len(piece)
                at += len(piece)
    return state.hexdigest()[:GENERATION_DIGITS]


def _head(header: TensorHeader) -> bytes:
    """Encode a header, with spaces at its end so that the tensors begin at a multiple of eight bytes."""
    data = msgspec.json.encode({"__metadata__": header.metadata, **header.entries})
    data += b" " * (-len(data) % LENGTH_BYTES)
    if len(data) > HEADER_LIMIT_BYTES:
        raise NamesTooLongError(f"has a header of {len(data)} bytes, of at most {HEADER_LIMIT_BYTES}")
    return len(data).to_bytes(LENGTH_BYTES, "little") + data


def _on_host(tensor: Tensor) -> Tensor:
    if tensor.is_cpu and not (tensor.requires_grad or tensor.is_conj() or tensor.is_neg()):
        return tensor  # as most are; a small sample's put takes a tenth longer with the calls below
    return tensor.detach().to("cpu").resolve_conj().resolve_neg()


def _in_order_of_elements(tensor: Tensor) -> Iterable[memoryview]:
    """Return a tensor's bytes in the order of its elements; what is not in that order is copied part by part."""
    if tensor.is_contiguous():
        return (tensor.reshape(-1).view(torch.uint8).numpy().data,)
    return _put_in_order(tensor)


def _put_in_order(tensor: Tensor) -> Iterator[memoryview]:
    if tensor.nbytes <= _COPY_BYTES:
        yield from _in_order_of_elements(tensor.contiguous())
    elif len(tensor) == 1:
        yield from _in_order_of_elements(tensor[0])
    else:
        rows = max(1, len(tensor) * _COPY_BYTES // tensor.nbytes)
        for first in range(0, len(tensor), rows):
            yield from _in_order_of_elements(tensor[first : first + rows])
