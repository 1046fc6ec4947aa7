"""Capture the target's hidden states over a chunk into the feature store, and make a ref to them."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property

from safetensors.torch import load_file

from fsqueue.demo.demo_dir import DemoDirectory, Plan, Sample
from fsqueue.demo.prepare import CHUNKS
from fsqueue.features import CorruptFeatureError, SharedDirFeatureStore, StoredFeatures
from fsqueue.records import SampleRef
from fsqueue.sources.contract import HIDDEN_STATES, Prompt
from fsqueue.sources.transformers import TransformersSource


class Capture:
    """Captures chunks through the source in this process; the target is loaded when the first one is."""

    def __init__(self, demo: DemoDirectory, plan: Plan) -> None:
        self._plan = plan
        self._store = SharedDirFeatureStore(demo.features)
        self._chunks = load_file(demo.at("plan", CHUNKS))["training"]

    def ref(self, sample: Sample, rollout: str) -> SampleRef:
        """Make a ref to the sample's features, which are durable when this returns."""
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
        """Find what an earlier pass or an earlier life of this rollout stored for the chunk, or else capture it now."""
        with suppress(CorruptFeatureError):
            if found := self._store.find(sample.chunk_id):
                return found
        tokens = self._chunks[sample.chunk]
        prompt = Prompt(sample.chunk_id, token_ids=tuple(tokens.tolist()))
        (captured,) = self._source.capture([prompt])
        states = captured.tensors()[HIDDEN_STATES][:, 0]
        return self._store.put(sample.chunk_id, {"tokens": tokens, "hidden_state": states})

    @cached_property
    def _source(self) -> TransformersSource:
        return TransformersSource(self._plan.target)
