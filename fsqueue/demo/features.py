"""The feature store: one safetensors file a chunk, in one directory that no key leads out of.

A file is there whole and durable before any ref to it is put, so a ref whose file is missing points at
something that somebody removed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from fsqueue.demo.directory import publish
from fsqueue.errors import FsQueueError
from fsqueue.records import FeatureSpec, SampleRef

_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,120}\.safetensors\Z")
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"}


class FeatureError(FsQueueError, ValueError):
    """A ref's features are not what it says, or not in this store; trying again does not help."""


class FeatureMissingError(FsQueueError, FileNotFoundError):
    """A ref's features are not there now; on a shared mount they may appear a little later."""


class FeatureStore:
    """Features under one directory."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        self.uri = f"file://{self.directory}"

    def write(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Store tensors; once this returns they are durable. One writer a key."""
        publish(self._path(key), save(dict(tensors)))

    def specs(self, key: str) -> dict[str, FeatureSpec] | None:
        """Shape and type of every tensor stored under a key, from the file's header; None where there is none."""
        try:
            with safe_open(self._path(key), "pt") as file:
                return {name: _spec(name, file.get_slice(name)) for name in sorted(file.keys())}
        except FileNotFoundError:
            return None

    def size_bytes(self, key: str) -> int:
        return os.stat(self._path(key)).st_size

    def read(self, ref: SampleRef) -> dict[str, torch.Tensor]:
        """The tensors that a ref names.

        Raises:
            FeatureMissingError: the file is not there.
            FeatureError: the ref leads elsewhere, the file is damaged, or a shape or type differs from the ref's.
        """
        if ref.feature_store_uri != self.uri:
            raise FeatureError(f"{ref.sample_id}: its store is {ref.feature_store_uri}, this one is {self.uri}")
        files = {key: self._load(ref.sample_id, key) for key in set(ref.feature_keys.values())}
        tensors: dict[str, torch.Tensor] = {}
        for name, spec in ref.feature_specs.items():
            tensor = files.get(ref.feature_keys.get(name, ""), {}).get(name)
            if tensor is not None:
                tensors[name] = _checked(ref.sample_id, spec, tensor)
            elif spec.required:
                raise FeatureError(f"{ref.sample_id}: its features lack {name}")
        return tensors

    def _load(self, sample_id: str, key: str) -> dict[str, torch.Tensor]:
        path = self._path(key)
        try:
            loaded: dict[str, torch.Tensor] = load_file(path)
        except FileNotFoundError:
            raise FeatureMissingError(f"{sample_id}: {path} is not there") from None
        except SafetensorError as error:
            raise FeatureError(f"{sample_id}: {path} is damaged: {error}") from None
        return loaded

    def _path(self, key: str) -> str:
        path = os.path.join(self.directory, key)
        if not _KEY.match(key) or os.path.islink(path):
            raise FeatureError(f"{key!r} is no file of the store {self.directory}")
        return path


def _spec(name: str, stored: Any) -> FeatureSpec:
    shape, dtype = tuple(stored.get_shape()), str(stored.get_dtype())
    return FeatureSpec(
        name, shape, _DTYPES.get(dtype, dtype), target_repr="hidden_state" if name == "hidden_state" else None
    )


def _checked(sample_id: str, spec: FeatureSpec, tensor: torch.Tensor) -> torch.Tensor:
    found = (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    if found != (spec.shape, spec.dtype):
        raise FeatureError(
            f"{sample_id}: {spec.name} is {found[1]}{list(found[0])}, its ref says {spec.dtype}{list(spec.shape)}"
        )
    return tensor
