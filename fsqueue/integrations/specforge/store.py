"""Keep features for SpecForge in a directory: its own contract of a feature store over `SharedDirFeatureStore`."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from specforge.runtime.contracts import SCHEMA_VERSION, FeatureHandle, SampleRef
from specforge.runtime.data_plane.feature_store import FeatureStore
from torch import Tensor

from fsqueue.errors import InvalidArgumentError
from fsqueue.features import SharedDirFeatureStore
from fsqueue.features.address import Address, parse
from fsqueue.features.errors import FeatureError, FeatureMissingError, ForeignFeatureError, StaleFeatureError
from fsqueue.format.names import stem_of


class NoFeaturesError(FeatureError, KeyError):
    """A ref's features are not in this store, not those that the ref was made from, or lack one that is asked for."""

    def __str__(self) -> str:
        return str(self.args[0])


@dataclass(frozen=True)
class _Part:
    """Name those features of a ref that are asked for."""

    sample_id: str
    feature_store_uri: str
    feature_keys: Mapping[str, str]
    feature_specs: Mapping[str, Any]


class _Put(NamedTuple):
    """Remember what was put here."""

    at: float
    address: Address
    size_bytes: int


class SharedFeatureStore(FeatureStore):  # type: ignore[misc]  # SpecForge's, which the type checker does not read
    """Put, read and remove features, from any number of processes. Thread-safe.

    Args:
        root: the store's directory; created where it is missing or empty.
        retain_on_release: features stay when they are released, until they are aborted. An online trainer needs that:
            after a crash it goes back to its checkpoint. False: they are removed with the last release of this object.
        max_hold_age_s: `gc` removes what this object has put so long ago and nobody reads through it; None: it never
            does.
        clock: for that; returns seconds.
        options: further ones of `SharedDirFeatureStore`, such as durable.

    Attributes:
        files: the store in the directory, of which other processes may have `SharedDirFeatureStore` objects.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        retain_on_release: bool = False,
        max_hold_age_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        self.files = SharedDirFeatureStore(root, **options)
        self.retain_on_release = retain_on_release
        self.max_hold_age_s = max_hold_age_s
        self._clock = clock
        self._mutex = threading.Lock()
        self._serial = itertools.count(1)
        self._read: dict[str, Address] = {}  # by the token of each handle that was not released
        self._put: dict[str, _Put] = {}  # kept where there is a max_hold_age_s
        self._force_freed = 0

    @property
    def store_id(self) -> str:
        return self.files.store_id

    def put(self, tensors: Mapping[str, Tensor], *, sample_id: str, metadata: Mapping[str, Any]) -> Any:
        """Store a sample's features; return the `SampleRef` that names them, with what metadata says of the sample."""
        if not tensors:
            raise InvalidArgumentError("store.put", "at least one tensor", tensors)
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        stored = self.files.put(sample_id, tensors)
        if self.max_hold_age_s is not None:
            with self._mutex:
                self._put[sample_id] = _Put(self._clock(), _address(stored.feature_store_uri), size_bytes)
        ref = stored.ref(SampleRef, estimated_bytes=size_bytes, **_said(metadata))
        return _with_target(ref, metadata)

    def get(
        self, sample_ref: Any, *, device: Any = "cpu", names: list[str] | None = None
    ) -> tuple[dict[str, Tensor], Any]:
        """Return a ref's tensors, all or those of these names, and a handle to release.

        Raises:
            NoFeaturesError: a KeyError: they are missing, or stale, or one of these names is not in the ref.
            FeatureError: the file is damaged, or holds other shapes or types than the ref says.
        """
        part, address = self._asked_for(sample_ref, list(names or sample_ref.feature_keys))
        token = f"{address.stem}:{address.generation}:{next(self._serial)}"
        with self._mutex:
            self._read[token] = address  # before reading, so that a gc here spares them
        try:
            tensors = self.files.get(part)
            if str(device) != "cpu":
                tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        except BaseException as error:
            with self._mutex:
                self._read.pop(token, None)
            if isinstance(error, (FeatureMissingError, StaleFeatureError, ForeignFeatureError)):
                raise NoFeaturesError(sample_ref.sample_id, str(error)) from error
            raise
        return tensors, FeatureHandle(sample_ref.sample_id, int(address.generation, 16), token)

    def _asked_for(self, ref: Any, names: list[str]) -> tuple[_Part, Address]:
        address = parse(ref.feature_store_uri)
        if address is None or address.stem != stem_of(ref.sample_id):
            expected = f"features://{self.store_id}/... of this sample"
            raise NoFeaturesError(ref.sample_id, f"the ref names {ref.feature_store_uri!r}, expected {expected}")
        missing = [name for name in names if name not in ref.feature_specs]
        if missing:
            has = ", ".join(ref.feature_specs) or "none"
            raise NoFeaturesError(ref.sample_id, f"the ref has no {', '.join(missing)}; it has {has}")
        specs = {name: ref.feature_specs[name] for name in names}
        return _Part(ref.sample_id, ref.feature_store_uri, ref.feature_keys, specs), address

    def release(self, handle: Any, *, reason: str = "consumed") -> None:
        """End a reading; the last one of these features here removes them, unless the store retains them."""
        with self._mutex:
            address = self._read.pop(handle.lease_token, None)
            if address is None or self.retain_on_release or address in self._read.values():
                return
            self._remove(handle.sample_id, address)

    def abort(self, sample_id: str, *, reason: str = "aborted") -> None:
        """Remove a sample's features now, whoever reads them."""
        self.files.abort(sample_id, reason=reason)
        with self._mutex:
            self._put.pop(sample_id, None)

    def _remove(self, sample_id: str, address: Address) -> None:
        """Remove these features, but not others that were put under the same id since.

        RACE: another process may put others between the look and the removal. Only one that consumes at once what the
        other produces anew does so, and its refs are of no use to either then.
        """
        found = self.files.find(sample_id)
        if found is not None and _address(found.feature_store_uri) == address:
            self.files.abort(sample_id)
        if (put := self._put.get(sample_id)) is not None and put.address == address:
            del self._put[sample_id]

    def gc(self, *, now: float | None = None) -> dict[str, int]:
        """Remove what this object has put longer than max_hold_age_s ago and nobody reads through it."""
        at, freed_bytes, freed = self._clock() if now is None else now, 0, 0
        with self._mutex:
            if self.max_hold_age_s is not None:
                read = set(self._read.values())
                for sample_id, put in list(self._put.items()):
                    if at - put.at > self.max_hold_age_s and put.address not in read:
                        self._remove(sample_id, put.address)
                        freed, freed_bytes = freed + 1, freed_bytes + put.size_bytes
            self._force_freed += freed
        return {"force_freed": freed, "force_freed_bytes": freed_bytes, "release_pending": 0}

    def health(self) -> dict[str, Any]:
        """Count what all processes have stored; costs one listing a folder and a stat a file. Ages are of puts here."""
        found = self.files.health()
        with self._mutex:
            ages = [self._clock() - put.at for put in self._put.values()]
            return {
                "store_id": self.store_id,
                "backend": "fsqueue",
                "root": self.files.root,
                "resident_samples": found.samples,
                "active_leases": len(self._read),
                "resident_bytes": found.resident_bytes,
                "max_resident_bytes": None,
                "release_pending": 0,
                "oldest_age_s": max(ages, default=0.0),
                "avg_age_s": sum(ages) / len(ages) if ages else 0.0,
                "force_freed_total": self._force_freed,
            }

    def close(self) -> None:
        """Close the store's directory; tensors that get returned stay valid."""
        self.files.close()


def _address(uri: str) -> Address:
    found = parse(uri)
    assert found is not None, uri
    return found


def _said(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a ref that a rollout's metadata says."""
    return {
        "run_id": str(metadata.get("run_id", "unknown")),
        "source_task_id": metadata.get("source_task_id"),
        "strategy": metadata.get("strategy", "eagle3"),
        "schema_version": int(metadata.get("schema_version", SCHEMA_VERSION)),
        "target_model_version": str(metadata.get("target_model_version", "unknown")),
        "draft_weight_version": metadata.get("draft_weight_version"),
        "tokenizer_version": str(metadata.get("tokenizer_version", "unknown")),
        "num_tokens": int(metadata.get("num_tokens", 0)),
        "metadata": {name: value for name, value in metadata.items() if name != "num_tokens"},
    }


def _with_target(ref: Any, metadata: Mapping[str, Any]) -> Any:
    """Say in the target's spec how it is represented, where the metadata says it, as SpecForge's own store does."""
    representation, name = metadata.get("target_repr"), metadata.get("target_feature_name", "target")
    if not representation or name not in ref.feature_specs:
        return ref
    version = metadata.get("vocab_map_version")
    described = {"target_repr": representation, "target_meta": {"vocab_map_version": version} if version else {}}
    spec = replace(ref.feature_specs[name], **described)
    return replace(ref, feature_specs=ref.feature_specs | {name: spec})
