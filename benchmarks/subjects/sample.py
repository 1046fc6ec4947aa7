"""The ref that everything measured carries, and how long it is leased."""

from __future__ import annotations

from typing import Any

from fsqueue import FeatureSpec, SampleRef

LEASE_TIMEOUT_S = 600.0


def sample(sample_id: str, **metadata: Any) -> SampleRef:
    """A ref of the usual size: two features, about 700 bytes of JSON."""
    return SampleRef(
        sample_id=sample_id,
        run_id="bench",
        source_task_id=f"task-{sample_id}",
        feature_store_uri="file:///scratch/features",
        feature_keys={"hidden_states": f"{sample_id}/hidden_states", "input_ids": f"{sample_id}/input_ids"},
        feature_specs={
            "hidden_states": FeatureSpec("hidden_states", (1, 2048, 4096), "bfloat16", target_repr="hidden_state"),
            "input_ids": FeatureSpec("input_ids", (1, 2048), "int64"),
        },
        strategy="eagle3",
        target_model_version="target-1",
        tokenizer_version="tokenizer-1",
        num_tokens=2048,
        estimated_bytes=16_793_600,
        metadata={"rollout": 7, "temperature": 0.8, "tags": ["train", "english"], **metadata},
    )
