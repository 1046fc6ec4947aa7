"""One producer: SpecForge's builder and its `RolloutWorker`, over the channel and the store of the run's directory."""

from __future__ import annotations

import json
import sys
import time
from random import Random

from specforge.algorithms.builtin import builtin_algorithm_registry
from specforge.launch import build_disagg_online_producer

from fsqueue.integrations.specforge import RolloutSource, SharedFeatureStore, channel
from fsqueue.sources import TransformersSource
from specforging.model import HIDDEN, VOCABULARY
from specforging.settings import LAYERS, RUN_ID, Settings

_POLL_S = 0.1


def prompts(settings: Settings, name: str) -> list[dict[str, object]]:
    random = Random(name)
    return [
        {
            "task_id": f"{name}-{number}",
            "payload": {
                "input_ids": [random.randrange(1, VOCABULARY) for _ in range(settings.tokens)],
                "loss_mask": [1] * settings.tokens,
            },
        }
        for number in range(settings.prompts)
    ]


def main() -> None:
    settings, name = Settings(**json.loads(sys.argv[1])), sys.argv[2]
    refs = channel(settings.run, producer=name, expected=settings.producers, restart_s=settings.restart_s)
    todo = [task for task in prompts(settings, name) if not refs.ledger.is_committed(f"{RUN_ID}:{task['task_id']}")]
    algorithm = builtin_algorithm_registry().resolve("eagle3")
    target = TransformersSource(settings.at("target"), layers=[*(block + 1 for block in LAYERS[:-1]), "last", "normed"])
    _, drive = build_disagg_online_producer(
        algorithm=algorithm,
        prompts=todo,
        feature_store=SharedFeatureStore(settings.features),
        channel=refs,
        feature_source=RolloutSource(target, algorithm=algorithm, blocks=len(LAYERS)),
        run_id=RUN_ID,
        target_hidden_size=HIDDEN,
        target_vocab_size=VOCABULARY,
        aux_hidden_state_layer_ids=LAYERS,
        lease=2,
        in_flight_high_watermark=settings.high,
        in_flight_low_watermark=settings.low,
        backpressure_poll_s=_POLL_S,
    )
    produced = drive(should_stop=refs.consumer_stopped)
    while not refs.consumer_stopped():
        if failure := refs.consumer_failure():
            raise RuntimeError(failure)
        time.sleep(_POLL_S)
    found = {"left_out": settings.prompts - len(todo), "produced": produced, "consumed": refs.consumed_remote()}
    settings.at(f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
