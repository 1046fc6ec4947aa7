"""How large a sample will be in memory: its ref alone says it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fsqueue import FeatureSpec
from fsqueue.features import SharedDirFeatureStore
from fsqueue.features.sizes import bytes_of
from fsqueue.features.tensorfile import STORABLE, dtype_name
from tests.support.features import ref_of


@pytest.mark.parametrize("dtype", sorted(STORABLE, key=str), ids=str)
def test_every_type_s_width(tmp_path: Path, dtype: torch.dtype) -> None:
    """Of each type that a store holds, the specs tell what torch needs for it."""
    tensor = torch.zeros(7, 3, dtype=torch.float32).to(dtype)
    ref = ref_of(SharedDirFeatureStore(tmp_path / "f").put("s", {"x": tensor}), estimated_bytes=0)
    assert ref.feature_specs["x"].dtype == dtype_name(dtype) and bytes_of(ref) == tensor.nbytes


def test_what_refs_say_otherwise(tmp_path: Path) -> None:
    """The larger of specs and estimate counts; a ref that has neither, or an unknown type, does not tell."""
    ref = ref_of(SharedDirFeatureStore(tmp_path / "f").put("s", {"x": torch.zeros(1000), "y": torch.zeros(0)}))
    assert ref.estimated_bytes > 4000 and bytes_of(ref) == ref.estimated_bytes
    assert bytes_of(replace(ref, estimated_bytes=10)) == 4000
    odd = replace(ref, feature_specs={"x": FeatureSpec("x", (10,), "quaternion")})
    assert bytes_of(odd) == ref.estimated_bytes and bytes_of(replace(odd, estimated_bytes=0)) is None
    assert bytes_of(replace(ref, feature_specs={}, estimated_bytes=0)) is None
    assert bytes_of(replace(ref, feature_specs={"y": FeatureSpec("y", (0,), "int8")}, estimated_bytes=0)) == 0
    assert bytes_of(SimpleNamespace(sample_id="s")) is None


@pytest.mark.parametrize(
    "spec",
    [
        {"shape": [4], "dtype": "float32"},
        None,
        FeatureSpec("x", (None, 4), "float32"),  # type: ignore[arg-type]
        FeatureSpec("x", (-1, 4), "int8"),
    ],
    ids=str,
)
def test_a_class_with_specs_of_its_own_does_not_tell(spec: object) -> None:
    """A ref's class is the user's: a size that cannot be read off is not known, and no error."""
    assert bytes_of(SimpleNamespace(sample_id="s", feature_specs={"x": spec})) is None
    assert bytes_of(SimpleNamespace(sample_id="s", feature_specs={"x": spec}, estimated_bytes=-1)) is None
    assert bytes_of(SimpleNamespace(sample_id="s", feature_specs={"x": spec}, estimated_bytes=9)) == 9
