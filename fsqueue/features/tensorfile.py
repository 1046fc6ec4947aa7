"""Read the store's safetensors files, on one open descriptor.

safetensors' own functions open a path once for the header and once more for the data, which may be another file's by
then, and follow links.

Source: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from fsqueue.features.address import is_generation
from fsqueue.records import FeatureSpec

LENGTH_BYTES = 8
HEADER_LIMIT_BYTES = 1 << 20
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
STORABLE = frozenset(DTYPES.values())


Digest = Literal["sha256", "xxh3"]


class NotTensorsError(ValueError):
    """The bytes are no complete safetensors file of this store."""


class TensorEntry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class Metadata(msgspec.Struct, omit_defaults=True):
    """The store's addition to a file's header.

    Attributes:
        tensors: "here", or "apart": then this file has none, and they are in the file that is named by the generation.
        digest: what the generation is of the tensors.
    """

    sample_id: str
    generation: str
    tensors: Literal["here", "apart"] = "here"
    digest: Digest = "sha256"


class TensorHeader(msgspec.Struct):
    """A file's header: where each tensor lies.

    Attributes:
        data_at: offset of the first tensor's bytes in the file.
    """

    metadata: Metadata
    entries: dict[str, TensorEntry]
    data_at: int

    def specs(self) -> dict[str, FeatureSpec]:
        """Describe the tensors as a ref does, in the order of their names."""
        return {
            name: FeatureSpec(name, entry.shape, dtype_name(DTYPES[entry.dtype]))
            for name, entry in sorted(self.entries.items())
        }

    def tensors(self, content: Tensor) -> dict[str, Tensor]:
        """Return the tensors as views of the file's content, which is given as bytes (uint8).

        Raises:
            NotTensorsError: a shape that torch cannot have.
        """
        data = content[self.data_at :]
        try:
            return {
                name: data[slice(*entry.data_offsets)].view(DTYPES[entry.dtype]).view(entry.shape)
                for name, entry in self.entries.items()
            }
        except (RuntimeError, OverflowError, TypeError) as error:
            raise NotTensorsError(f"holds a tensor that torch cannot have ({error})") from None


@lru_cache(maxsize=len(DTYPES))
def dtype_name(dtype: torch.dtype) -> str:
    """Name a type as a `FeatureSpec` does, such as ``float32``."""
    return str(dtype).removeprefix("torch.")


def read_header(read: Callable[[int, int], bytes], file_bytes: int, metadata: Metadata | None = None) -> TensorHeader:
    """Read a file's header, and check that every tensor lies inside the file, which ends with the last one.

    Args:
        read: ``read(count, offset)`` returns the file's bytes.
        metadata: stands for what the file itself says, which somebody else than this store wrote.

    Raises:
        NotTensorsError: says what is wrong: among others, the file is too short for what it says, or the header
            longer than the store reads.
    """
    first = read(LENGTH_BYTES, 0)
    length = int.from_bytes(first, "little")
    if len(first) < LENGTH_BYTES or not 2 <= length <= file_bytes - LENGTH_BYTES:
        raise NotTensorsError("has no safetensors header")
    if length > HEADER_LIMIT_BYTES:
        raise NotTensorsError(f"has a header of {length} bytes, of at most {HEADER_LIMIT_BYTES}")
    return _parse_header(read(length, LENGTH_BYTES), file_bytes, metadata)


def _parse_header(data: bytes, file_bytes: int, metadata: Metadata | None) -> TensorHeader:
    try:
        raw = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        own = raw.pop("__metadata__", b"{}")
        metadata = metadata or msgspec.json.decode(own, type=Metadata)
        entries = {name: msgspec.json.decode(entry, type=TensorEntry) for name, entry in raw.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotTensorsError(f"has a damaged header ({error})") from None
    if metadata.tensors == "apart" and (entries or not is_generation(metadata.generation)):
        raise NotTensorsError("says that its tensors lie apart, and has some, or names no generation")
    data_at = LENGTH_BYTES + len(data)
    _check_layout(entries, data_at, file_bytes - data_at)
    return TensorHeader(metadata, entries, data_at)


def _check_layout(entries: dict[str, TensorEntry], data_at: int, data_bytes: int) -> None:
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise NotTensorsError(f"holds {name!r} of unknown type {entry.dtype!r}")
        start, stop = entry.data_offsets
        if start != end or min(entry.shape, default=0) < 0 or stop - start != math.prod(entry.shape) * dtype.itemsize:
            raise NotTensorsError(f"holds {name!r} at {start} to {stop}, which does not fit its shape or neighbours")
        if (data_at + start) % dtype.itemsize:
            raise NotTensorsError(f"holds {name!r} at an odd place")
        end = stop
    if end != data_bytes:
        raise NotTensorsError(f"has {data_bytes} bytes of data, its header says {end}")


def unsupported(tensors: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the name of something that a put has to refuse, and why, in words; None where all is well."""
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not name or name == "__metadata__":
            return str(name), "is no name that a tensor can be stored under"
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.dtype not in STORABLE:
            return name, f"is a {type(tensor).__name__} that safetensors cannot hold: pass dense torch tensors"
    return None
