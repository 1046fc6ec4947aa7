"""The contract on what refs may carry: it comes back equal, or put refuses it and says where."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from fsqueue import FeatureSpec, InvalidRefError, TensorInRefError
from tests.support import foreign_records, ids
from tests.support.foreign_records import foreign_ref
from tests.support.implementations import Implementation, make_ref, make_refs

IDS = [
    "plain",
    "with/slash",
    "../../etc/passwd",
    "..",
    ".",
    ".hidden",
    "a b\tc\nd",
    "übung-日本語-🙂",
    "x" * 1000,
    "x" * 999 + "y",
    "per%cent",
    "at@owner.1.abcdef",
    "tilde~",
    "ends.json",
    "nul\x00byte",
    "#hash",
    "-dash",
]


class FakeTensor:
    """Looks like an array of a library that nobody has heard of."""

    dtype = "float32"
    shape = (2,)
    device = "cpu"


class FakeTorchScalar:
    """Has none of an array's attributes, but comes from torch."""


FakeTorchScalar.__module__ = "torch.fake"


def full_ref(sample_id: str) -> Any:
    return make_ref(
        sample_id,
        source_task_id="task",
        feature_specs={
            "hidden": FeatureSpec("hidden", (1, 2, 3), "float32", target_repr="hidden_state"),
            "logits": FeatureSpec("logits", (), "bfloat16", "cuda", False, "pruned_logits", {"vocab": [1, 2]}),
        },
        schema_version=3,
        draft_weight_version="draft-7",
        num_tokens=10**12,
        metadata={"nested": {"list": [1, 2.5, None, True, "ü"], "empty": {}}, "": "empty key"},
    )


def round_trip(queue: Any, ref: Any) -> Any:
    queue.put([ref])
    (found,) = queue.get(1)
    return found


def test_a_round_trip_gives_an_equal_ref(any_queue: Implementation) -> None:
    """Every field comes back equal, nested specs as FeatureSpec, shapes as tuples, frozen."""
    ref = full_ref("s")
    found = round_trip(any_queue.open(), ref)
    assert found == ref
    assert type(found.feature_specs["hidden"]) is FeatureSpec
    assert type(found.feature_specs["hidden"].shape) is tuple
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.num_tokens = 1


def test_every_id_comes_back(any_queue: Implementation) -> None:
    """Ids are any non-empty strings: paths, dots, Unicode, control characters, a thousand characters."""
    queue = any_queue.open()
    queue.put(make_refs(*IDS))
    leased = queue.get(len(IDS))
    assert ids(leased) == IDS
    queue.put(make_refs(*IDS))
    assert queue.depth() == 0
    assert not queue.ack(make_refs(*IDS))
    assert queue.in_flight() == 0


def test_a_controller_s_own_class(any_queue: Implementation) -> None:
    """ref_type= takes a foreign frozen dataclass, with postponed annotations, and get returns its instances."""
    ref = foreign_ref("s", metadata={"k": [1, {"x": None}]})
    found = round_trip(any_queue.open(ref_type=foreign_records.SampleRef), ref)
    assert type(found) is foreign_records.SampleRef
    assert found == ref
    assert type(found.pair) is tuple
    assert type(found.features["hidden"].spans[1]) is foreign_records.Span
    assert type(found.features["hidden"].spans[1].offsets) is tuple


@pytest.mark.parametrize(
    "value",
    [(1, 2), {"a": (1, (2, [3, (4,)]))}, [(), ((),)], ({"k": ("v",)},), [[1], (1,)]],
    ids=["tuple", "nested", "empty", "dict-inside", "list-and-tuple"],
)
def test_tuples_are_carried_where_the_type_says_any(any_queue: Implementation, value: Any) -> None:
    """JSON knows lists only; a tuple inside metadata still comes back a tuple, and a list a list."""
    queue = any_queue.open()
    ref = make_ref("s", metadata={"value": value})
    assert round_trip(queue, ref) == ref
    loose = any_queue.open if any_queue.kind == "memory" else None
    if loose is not None:
        assert round_trip(loose(ref_type=foreign_records.Loose), foreign_records.Loose("t", value)).value == value


def test_tuples_survive_retries(any_queue: Implementation) -> None:
    """A ref that failed and came back still has its tuples."""
    queue = any_queue.open()
    ref = make_ref("s", metadata={"pair": (1, 2)})
    queue.put([ref])
    for _ in range(3):
        queue.fail(queue.get(1), "flaky", retryable=True)
    assert queue.get(1) == [ref]


def test_a_delivered_ref_is_the_caller_s_own(any_queue: Implementation) -> None:
    """A caller's changes to the dicts of a ref that it put or leased do not show in the next delivery."""
    queue = any_queue.open()
    ref = make_ref("s", metadata={"x": [1]})
    queue.put([ref])
    ref.metadata["x"].append(2)
    (leased,) = queue.get(1)
    assert leased.metadata == {"x": [1]}
    leased.metadata["x"].append(3)
    queue.fail([leased], "flaky", retryable=True)
    assert queue.get(1)[0].metadata == {"x": [1]}


@pytest.mark.parametrize(
    ("metadata", "where"),
    [
        ({"x": [0, {"y": FakeTensor()}]}, "<root>.metadata['x'][1]['y']"),
        ({"x": (FakeTorchScalar(),)}, "<root>.metadata['x'][0]"),
    ],
    ids=["looks-like-one", "from-torch"],
)
def test_tensors_are_refused(any_queue: Implementation, metadata: dict[str, Any], where: str) -> None:
    """put raises a TypeError that names the path to the tensor, and nothing is put."""
    queue = any_queue.open()
    with pytest.raises(TypeError) as caught:
        queue.put([make_ref("good"), make_ref("s", metadata=metadata)])
    assert isinstance(caught.value, TensorInRefError)
    assert where in str(caught.value)
    assert queue.depth() == 0


def test_numpy_arrays_and_scalars_are_refused(any_queue: Implementation) -> None:
    """Anything of numpy's is refused, also a scalar that is a float."""
    numpy = pytest.importorskip("numpy")
    queue = any_queue.open()
    for value in (numpy.zeros(2), numpy.float32(1), numpy.float64(1), numpy.int64(1)):
        with pytest.raises(TensorInRefError) as caught:
            queue.put([make_ref("s", metadata={"loss": value})])
        assert caught.value.where == "<root>.metadata['loss']"
    assert queue.depth() == 0


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (float("nan"), "<root>.metadata['v']"),
        ([1.0, float("inf")], "<root>.metadata['v'][1]"),
        ({"deep": (float("-inf"),)}, "<root>.metadata['v']['deep'][0]"),
        (b"bytes", "<root>.metadata['v']"),
        ([{1, 2}], "<root>.metadata['v'][0]"),
        ({"k": {1: "non-string key"}}, "<root>.metadata['v']['k']"),
        (object(), "<root>.metadata['v']"),
        ("\ud800", "<root>.metadata['v']"),
        (foreign_records.Loose("inner"), "<root>.metadata['v']"),
    ],
    ids=["nan", "inf", "minus-inf", "bytes", "set", "int-key", "object", "surrogate", "dataclass"],
)
def test_what_json_would_change_is_refused(any_queue: Implementation, value: Any, where: str) -> None:
    """put raises a ValueError that names the path, and nothing is put."""
    queue = any_queue.open()
    with pytest.raises(ValueError) as caught:
        queue.put([make_ref("good"), make_ref("s", metadata={"v": value})])
    assert isinstance(caught.value, InvalidRefError)
    assert caught.value.where == where
    assert queue.depth() == 0


def test_a_path_through_a_nested_record_reads_like_python(any_queue: Implementation) -> None:
    """Fields of nested records are named as attributes, keys and indices in brackets."""
    queue = any_queue.open()
    spec = FeatureSpec("hidden", (1,), "float32", target_meta={"scale": float("nan")})
    with pytest.raises(InvalidRefError) as caught:
        queue.put([make_ref("s", feature_specs={"hidden": spec})])
    assert caught.value.where == "<root>.feature_specs['hidden'].target_meta['scale']"


@pytest.mark.parametrize("sample_id", ["", None, 7, b"bytes", "\ud800"])
def test_unusable_ids_are_refused(any_queue: Implementation, sample_id: Any) -> None:
    """An id that is empty, no string, or no valid Unicode is a ValueError, and nothing is put."""
    queue = any_queue.open()
    with pytest.raises(ValueError):
        queue.put([make_ref("good"), make_ref(sample_id)])
    assert queue.depth() == 0


def test_another_class_is_refused(any_queue: Implementation) -> None:
    """A ref of another class than ref_type is a ValueError that says how to open the queue."""
    queue = any_queue.open()
    with pytest.raises(InvalidRefError, match="ref_type="):
        queue.put([foreign_ref("s")])
    assert queue.depth() == 0
