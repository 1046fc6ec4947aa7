"""Features: the tensors that sample refs name, where they are kept, and how a trainer loads them.

Nothing of fsqueue's core imports this package, and this module imports torch only once something that needs it is
asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fsqueue.features.contract import Collected, FeatureRef, FeatureStore, StoredFeatures, StoreHealth
from fsqueue.features.errors import (
    CollateError,
    CorruptFeatureError,
    FeatureError,
    FeatureMissingError,
    FeatureSpecError,
    FeatureStoreError,
    ForeignFeatureError,
    StaleFeatureError,
    UnfitFileError,
)
from fsqueue.lazy import lazily

if TYPE_CHECKING:
    from fsqueue.features.collate import stack
    from fsqueue.features.dataset import FeatureDataset, rank_and_world
    from fsqueue.features.loader import Batch, FeatureDataLoader
    from fsqueue.features.shared_dir import SharedDirFeatureStore

_HOMES = {
    "Batch": "loader",
    "FeatureDataLoader": "loader",
    "FeatureDataset": "dataset",
    "SharedDirFeatureStore": "shared_dir",
    "rank_and_world": "dataset",
    "stack": "collate",
}

__all__ = [
    "Batch",
    "CollateError",
    "Collected",
    "CorruptFeatureError",
    "FeatureDataLoader",
    "FeatureDataset",
    "FeatureError",
    "FeatureMissingError",
    "FeatureRef",
    "FeatureSpecError",
    "FeatureStore",
    "FeatureStoreError",
    "ForeignFeatureError",
    "SharedDirFeatureStore",
    "StaleFeatureError",
    "StoreHealth",
    "StoredFeatures",
    "UnfitFileError",
    "rank_and_world",
    "stack",
]


_EXTRA_OF = dict.fromkeys(("torch", "numpy", "safetensors"), "features")


def __getattr__(name: str) -> Any:
    return lazily(__name__, _HOMES, name, _EXTRA_OF)
