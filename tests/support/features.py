"""Shared by the tests of feature stores and loaders: samples whose content tells their number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fsqueue import SampleRef
from fsqueue.features import SharedDirFeatureStore, StoredFeatures

torch.set_num_threads(1)


def tensors(number: float) -> dict[str, Tensor]:
    """A sample whose content tells its number."""
    return {"hidden": torch.full((4, 3), float(number)), "tokens": torch.arange(4) + int(number)}


def ref_of(stored: StoredFeatures, **fields: Any) -> SampleRef:
    made: SampleRef = stored.ref(**({"run_id": "r1", "source_task_id": None, "strategy": "eagle3"} | fields))
    return made


def publish(store: SharedDirFeatureStore, count: int) -> list[SampleRef]:
    """Samples s000, s001, ... with the content of their numbers."""
    return [ref_of(store.put(f"s{number:03d}", tensors(number))) for number in range(count)]


def file_of(store: SharedDirFeatureStore, ref: SampleRef) -> Path:
    """Return where a ref's features lie, as the format says."""
    return Path(store.root) / ref.feature_store_uri.split("/", 3)[3].partition("?")[0]


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
