"""Records, the partition function, and the walk for tensors; and what importing the package pulls in."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
from collections import OrderedDict
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue import FeatureSpec, PromptTask, SampleRef, TensorInRefError, assert_no_tensors, dp_partition
from tests.support import ROOT
from tests.support.implementations import make_ref


class Array:
    """Has what every array has."""

    dtype, shape, device = "float32", (1,), "cpu"


class AlmostArray:
    """Has two of the three attributes, as a FeatureSpec-like record may."""

    dtype, shape = "float32", (1,)


class FromTorch:
    """A type of torch's without an array's attributes."""


FromTorch.__module__ = "torch"


class FromTorchish:
    """A type of a module whose name only begins like torch's."""


FromTorchish.__module__ = "torchish.things"


def nested_record() -> FeatureSpec:
    return FeatureSpec("f", (1,), "float32", target_meta={"scale": Array()})


def test_sample_ref_defaults() -> None:
    """A SampleRef needs seven fields; the others have the contract's defaults, and dicts are not shared."""
    ref = SampleRef("s", "run", None, "uri", {}, {}, "eagle3")
    assert (ref.schema_version, ref.target_model_version, ref.draft_weight_version) == (1, "unknown", None)
    assert (ref.tokenizer_version, ref.num_tokens, ref.estimated_bytes, ref.metadata) == ("unknown", 0, 0, {})
    assert ref.metadata is not SampleRef("s", "run", None, "uri", {}, {}, "eagle3").metadata


def test_feature_spec_defaults() -> None:
    """A FeatureSpec needs name, shape and dtype."""
    spec = FeatureSpec("hidden", (1, 2), "float32")
    assert (spec.device_hint, spec.required, spec.target_repr, spec.target_meta) == (None, True, None, {})


def test_prompt_task_fields() -> None:
    """A PromptTask has the contract's fields in its order."""
    expected = "task_id run_id source_id payload max_length chat_template loss_mask_policy target_model_version"
    names = [field.name for field in dataclasses.fields(PromptTask)]
    assert names == [*expected.split(), "draft_weight_version", "attempt", "metadata"]


@pytest.mark.parametrize("record", [SampleRef, FeatureSpec, PromptTask])
def test_records_are_frozen(record: type[Any]) -> None:
    """Records are frozen dataclasses."""
    assert record.__dataclass_params__.frozen


@given(st.text(), st.integers(2, 1000))
def test_dp_partition_is_sha1_modulo_n(sample_id: str, n: int) -> None:
    """The partition is the id's SHA-1 as a number, modulo n, so that other programs agree."""
    assert dp_partition(sample_id, n) == int(hashlib.sha1(sample_id.encode()).hexdigest(), 16) % n


@pytest.mark.parametrize("n", [1, 0, -3])
def test_dp_partition_of_one_is_zero(n: int) -> None:
    """With one partition or none everything is in partition 0."""
    assert dp_partition("anything", n) == 0


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Array(), "<root>"),
        ({"x": [0, 1, 2, Array()]}, "<root>['x'][3]"),
        (make_ref("s", metadata={"x": [0, 1, 2, Array()]}), "<root>.metadata['x'][3]"),
        (make_ref("s", feature_specs={"f": nested_record()}), "<root>.feature_specs['f'].target_meta['scale']"),
        ((1, (2, FromTorch())), "<root>[1][1]"),
        ({frozenset({Array()})}, "<root>"),
        ({"a": OrderedDict(b=MappingProxyType({"c": Array()}))}, "<root>['a']['b']['c']"),
        ({7: Array()}, "<root>[7]"),
    ],
    ids=["itself", "dict", "ref", "nested-record", "tuple", "set", "mappings", "int-key"],
)
def test_tensors_are_found_with_their_path(value: Any, path: str) -> None:
    """A tensor anywhere inside raises a TypeError that names the path to it."""
    with pytest.raises(TypeError) as caught:
        assert_no_tensors(value)
    assert isinstance(caught.value, TensorInRefError)
    assert isinstance(caught.value, ValueError)
    assert caught.value.where.startswith(path)
    assert path in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [None, 1, 1.5, "x", b"x", [], {}, (), set(), AlmostArray(), FromTorchish(), make_ref("s")],
    ids=lambda value: type(value).__name__,
)
def test_other_values_pass(value: Any) -> None:
    """Everything that is no tensor passes: scalars, containers, records, objects with some of the attributes only."""
    assert_no_tensors(value)


def test_real_tensors_are_found() -> None:
    """numpy's arrays and scalars are found."""
    numpy = pytest.importorskip("numpy")
    for value in (numpy.zeros(3), numpy.float64(1.0), numpy.bool_(True)):
        with pytest.raises(TensorInRefError, match=r"<root>\['a'\]\[0\]"):
            assert_no_tensors({"a": [value]})


def test_a_cycle_is_no_crash() -> None:
    """A container that holds itself is refused, or passes; it does not end the process."""
    cycle: list[Any] = []
    cycle.append(cycle)
    with contextlib.suppress(ValueError, RecursionError):
        assert_no_tensors(cycle)


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after a statement."""
    script = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_core_imports_no_torch_and_no_terminal_library() -> None:
    """`import fsqueue` pulls in neither torch nor numpy nor click nor rich."""
    assert not imported_by("import fsqueue") & {"torch", "numpy", "transformers", "click", "rich"}


def test_looking_for_tensors_imports_neither_library() -> None:
    """assert_no_tensors and put recognise arrays without importing torch or numpy."""
    statement = (
        "import fsqueue; q = fsqueue.MemorySampleRefQueue(); "
        "q.put([fsqueue.SampleRef('s', 'r', None, 'u', {}, {}, 'x', metadata={'t': (1,)})]); q.get(1)"
    )
    assert not imported_by(statement) & {"torch", "numpy"}
