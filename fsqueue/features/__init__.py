"""Features: the tensors that sample refs name, where they are kept, and how a trainer loads them.

Nothing of fsqueue's core imports this package, and this module imports torch only once something that needs it is
asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsqueue.errors import install_command
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


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "numpy", "safetensors"):
            raise
        raise ImportError(
            f"{__name__}.{name} needs {error.name}, which is not installed: {install_command('features')}",
            name=error.name,
        ) from error
