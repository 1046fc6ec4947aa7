"""The contract of feature stores, which keep the tensors that sample refs name. Imports no torch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, get_type_hints

import msgspec

from fsqueue.records import FeatureSpec, SampleRef

if TYPE_CHECKING:
    from torch import Tensor

R = TypeVar("R")


class FeatureRef(Protocol):
    """The part of a ref that a store reads, whatever the ref's class."""

    @property
    def sample_id(self) -> str: ...

    @property
    def feature_store_uri(self) -> str: ...

    @property
    def feature_keys(self) -> Mapping[str, str]: ...

    @property
    def feature_specs(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class StoredFeatures:
    """Features in a store, as a ref has to describe them.

    Attributes:
        feature_store_uri: names the store, the file in it, and the generation of its content.
        feature_keys: feature name to the tensor's name in the file.
        estimated_bytes: the file's size.
    """

    sample_id: str
    feature_store_uri: str
    feature_keys: dict[str, str]
    feature_specs: dict[str, FeatureSpec]
    estimated_bytes: int

    def ref(self, ref_type: type[R] = cast(Any, SampleRef), **fields: Any) -> R:  # noqa: B008
        """Make a ref to these features; the specs become those of ref_type's own class.

        Args:
            fields: the ref's other fields, such as run_id and strategy; they take precedence.
        """
        wanted = _specs_type(cast(Hashable, ref_type))
        specs = dict(self.feature_specs)
        if wanted != dict[str, FeatureSpec]:
            specs = msgspec.convert(specs, wanted, from_attributes=True)
        return ref_type(**(vars(self) | {"feature_specs": specs} | fields))


@lru_cache(maxsize=32)  # of a class that is made anew for each call, not all copies are kept
def _specs_type(ref_type: Hashable) -> Any:
    """Return the type of a ref class's feature_specs; to find it out takes longer than to store a small sample."""
    return get_type_hints(ref_type).get("feature_specs", dict[str, FeatureSpec])


@dataclass(frozen=True)
class StoreHealth:
    """A store's content: live samples, released ones that gc may remove, and files that are being written."""

    samples: int
    resident_bytes: int
    released: int
    released_bytes: int
    unfinished: int
    unfinished_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Collected:
    """Files that a gc removed."""

    files: int
    freed_bytes: int


class FeatureStore(Protocol):
    """Holds one set of named tensors a sample. All methods may be called by several processes at once."""

    def put(self, sample_id: str, tensors: Mapping[str, Tensor]) -> StoredFeatures:
        """Publish a sample's features; once this returns they are there whole. Replaces older ones."""

    def get(self, ref: FeatureRef) -> dict[str, Tensor]:
        """Load the tensors that a ref names, checked against its specs.

        Raises:
            FeatureError: ``retryable`` tells whether trying again may help.
        """

    def release(self, sample_id: str) -> None:
        """Let gc remove the features, which were used; until then they can be read. Idempotent."""

    def abort(self, sample_id: str, *, reason: str | None = None) -> None:
        """Remove the features now: nobody will read them. Idempotent."""

    def gc(self, *, released_older_than_s: float = 0.0, unfinished_older_than_s: float = 3600.0) -> Collected:
        """Remove released features, and what writers that died left behind."""

    def health(self) -> StoreHealth: ...
