"""What SpecForge's loader, controller and rollouts ask of a feature store; each line runs for all that there are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.upstream import required

torch: Any = pytest.importorskip("torch")
required("specforge.runtime.contracts")

from tests.support.specforge import STORES, FeatureSpec, SampleRef  # noqa: E402  # only where there is SpecForge

SAID = {
    "run_id": "run",
    "source_task_id": "p0",
    "strategy": "not one of theirs",
    "num_tokens": 2,
    "target_model_version": "t1",
    "draft_weight_version": "d1",
    "tokenizer_version": "k1",
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return STORES[request.param](tmp_path)


def tensors(value: float = 1.0) -> dict[str, Any]:
    return {"hidden": torch.full((2, 3), value, dtype=torch.bfloat16), "input_ids": torch.tensor([1, 2])}


def values(found: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in found.items()}


def test_a_put_returns_a_ref_that_says_what_was_said(store: Any) -> None:
    """With the shape, the type and the size of each feature."""
    found = store.put(tensors(), sample_id="s 0", metadata=SAID)
    assert type(found) is SampleRef and found.sample_id == "s 0"
    assert {name: getattr(found, name) for name in SAID} == SAID
    assert found.feature_specs == {
        "hidden": FeatureSpec("hidden", (2, 3), "bfloat16"),
        "input_ids": FeatureSpec("input_ids", (2,), "int64"),
    }
    assert (list(found.feature_keys), found.estimated_bytes) == (["hidden", "input_ids"], 28)


def test_features_come_back_as_they_were(store: Any) -> None:
    """All that the ref names, or those that are asked for; a handle goes with them."""
    put = store.put(tensors(), sample_id="s", metadata=SAID)
    found, handle = store.get(put, device="cpu")
    assert values(found) == values(tensors()) and found["hidden"].dtype is torch.bfloat16
    assert handle.sample_id == "s"
    some, _ = store.get(put, names=["input_ids"])
    assert values(some) == {"input_ids": [1, 2]}
    with pytest.raises(KeyError):
        store.get(put, names=["logits"])


def test_features_that_are_missing_are_a_key_error(store: Any) -> None:
    """Never stored, or aborted, which may be done twice."""
    put = store.put(tensors(), sample_id="s", metadata=SAID)
    with pytest.raises(KeyError):
        store.get(replace(put, sample_id="unknown"))
    for _ in range(2):
        store.abort("s", reason="lost")
    with pytest.raises(KeyError):
        store.get(put)


def test_a_ref_does_not_lead_to_what_was_stored_after_it(store: Any) -> None:
    """Under the same id: the older ref is stale, the newer one has its own."""
    older = store.put(tensors(1.0), sample_id="s", metadata=SAID)
    newer = store.put(tensors(2.0), sample_id="s", metadata=SAID)
    assert values(store.get(newer)[0]) == values(tensors(2.0))
    with pytest.raises(KeyError):
        store.get(older)


def test_features_are_gone_with_their_last_release(store: Any) -> None:
    """Where the store does not retain them; a handle that was released already releases nothing more."""
    put = store.put(tensors(), sample_id="s", metadata=SAID)
    (_, one), (_, two) = store.get(put), store.get(put)
    store.release(one, reason="loaded")
    store.get(put)
    store.release(two)
    again = store.put(tensors(2.0), sample_id="s", metadata=SAID)
    store.release(one)
    assert values(store.get(again)[0]) == values(tensors(2.0))


def test_what_a_store_holds_is_in_its_health(store: Any) -> None:
    assert store.health()["resident_samples"] == 0
    put = store.put(tensors(), sample_id="s", metadata=SAID)
    _, handle = store.get(put)
    health = store.health()
    assert (health["resident_samples"], health["active_leases"]) == (1, 1)
    assert health["resident_bytes"] >= 28
    store.release(handle)
    assert (store.health()["resident_samples"], store.health()["active_leases"]) == (0, 0)
    assert set(store.gc()) == {"force_freed", "force_freed_bytes", "release_pending"}


def test_a_put_of_nothing_is_refused(store: Any) -> None:
    with pytest.raises(ValueError, match="at least one tensor"):
        store.put({}, sample_id="s", metadata=SAID)
