"""What a rollout computes: the target's hidden states over a chunk, in the feature store, and a ref to them."""

from __future__ import annotations

from safetensors.torch import load_file

from fsqueue.demo.demo_dir import DemoDirectory, Plan, Sample
from fsqueue.demo.prepare import CHUNKS
from fsqueue.demo.target import Target
from fsqueue.features import CorruptFeatureError, SharedDirFeatureStore, StoredFeatures
from fsqueue.records import SampleRef


class Capture:
    """Captures chunks; the target is loaded when the first one is."""

    def __init__(self, demo: DemoDirectory, plan: Plan) -> None:
        self._plan = plan
        self._store = SharedDirFeatureStore(demo.features)
        self._chunks = load_file(demo.at("plan", CHUNKS))["training"]
        self._target: Target | None = None

    def ref(self, sample: Sample, rollout: str) -> SampleRef:
        """A ref to the sample's features, which are durable when this returns."""
        return self._features(sample).ref(
            sample_id=sample.sample_id,
            run_id=self._plan.options.run_id,
            source_task_id=sample.chunk_id,
            strategy="eagle",
            target_model_version=self._plan.target_version,
            tokenizer_version=self._plan.target_version,
            num_tokens=self._plan.options.tokens,
            metadata={"pass": sample.pass_index, "rollout": rollout},
        )

    def _features(self, sample: Sample) -> StoredFeatures:
        """What is stored for the chunk, by an earlier pass or an earlier life of this rollout, or else captured now."""
        try:
            found = self._store.find(sample.chunk_id)
        except CorruptFeatureError:
            found = None
        if found is not None:
            return found
        tokens = self._chunks[sample.chunk]
        return self._store.put(
            sample.chunk_id, {"tokens": tokens, "hidden_state": self._load_target().hidden_states(tokens)}
        )

    def _load_target(self) -> Target:
        if self._target is None:
            self._target = Target(self._plan.target)
        return self._target
