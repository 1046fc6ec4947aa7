"""SpecForge's `RolloutWorker` over fsqueue's sources: what it asks for, and what becomes of its prompts."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.support import InThread
from tests.support.inference import HIDDEN, FakeVllm, states_of
from tests.support.upstream import required

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from fsqueue.sources import (
    FinalNorm,
    SourceSetupError,
    TransformersSource,
    VllmSource,
)
from tests.support.tiny_target import HIDDEN_SIZE, make_tiny_target

algorithms: Any = required("specforge.algorithms.builtin")
capturing: Any = required("specforge.inference.capture")
rollout: Any = required("specforge.inference.rollout_worker")
control_plane: Any = required("specforge.runtime.control_plane")

from fsqueue.integrations.specforge import RolloutSource, SharedFeatureStore  # noqa: E402  # only where there is one


def algorithm(name: str = "eagle3") -> Any:
    return algorithms.builtin_algorithm_registry().resolve(name)


def capture_of(name: str, block_ids: tuple[int, ...], hidden: int) -> Any:
    contract = algorithm(name).spec.feature_contract("streaming", "text")
    return capturing.CaptureConfig.from_strategy(
        required_features=contract.required_tensors,
        aux_hidden_state_layer_ids=block_ids,
        target_repr=algorithm(name).providers.server_streaming_for("text").target_representation,
        target_hidden_size=hidden,
    )


class Run:
    """A worker over a source, with SpecForge's controller and our store."""

    def __init__(self, path: Path, source: Any, block_ids: tuple[int, ...], hidden: int, name: str = "eagle3") -> None:
        self.controller = control_plane.DataFlowController("run")
        self.store = SharedFeatureStore(path / "features", durable=False)
        self.worker = rollout.RolloutWorker(
            self.controller, self.store, source, capture_of(name, block_ids, hidden), run_id="run", strategy=name
        )
        self.worker.start()

    def ingest(self, **prompts: list[int]) -> None:
        self.controller.ingest_prompts(
            {"task_id": name, "payload": {"input_ids": ids, "loss_mask": [0, *[1] * (len(ids) - 1)]}}
            for name, ids in prompts.items()
        )

    def features(self) -> dict[str, dict[str, torch.Tensor]]:
        return {ref.sample_id: self.store.get(ref)[0] for ref in self.worker.run_once(8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_target(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[FakeVllm]:
    (tmp_path / "states").mkdir()
    server = FakeVllm(tmp_path / "states")
    yield server
    server.close()


def test_a_model_in_this_process(folder: str, tmp_path: Path) -> None:
    """Block i of SpecForge is layer i + 1; the last block's states are before the norm, and the target's after it."""
    source = TransformersSource(folder, layers=("normed", "last", 1))
    run = Run(tmp_path, RolloutSource(source, algorithm=algorithm(), blocks=2), (0, 1), HIDDEN_SIZE)
    run.ingest(a=[1, 2, 3], b=[9, 8])
    found = run.features()
    states = source.states(torch.tensor([1, 2, 3]))
    assert list(found) == ["run:a", "run:b"] and run.controller.status()["prompts"] == 0
    a = found["run:a"]
    assert torch.equal(a["hidden_state"], torch.cat([states[:, 2], states[:, 1]], dim=-1)[None])
    assert torch.equal(a["target"], states[:, 0][None])
    masks = {name: a[name].tolist() for name in ("input_ids", "loss_mask", "attention_mask")}
    assert masks == {"input_ids": [[1, 2, 3]], "loss_mask": [[0, 1, 1]], "attention_mask": [[1, 1, 1]]}


def test_an_algorithm_without_a_target(folder: str, tmp_path: Path) -> None:
    """It names its features otherwise, and needs no last states."""
    source = RolloutSource(TransformersSource(folder, layers=(1,)), algorithm=algorithm("dflash"))
    run = Run(tmp_path, source, (0,), HIDDEN_SIZE, "dflash")
    run.ingest(a=[1, 2, 3])
    found = run.features()["run:a"]
    assert found["hidden_states"].shape == (1, 3, HIDDEN_SIZE) and "target" not in found


def test_a_vllm_server(served: FakeVllm, tmp_path: Path) -> None:
    """The norm is the source's; the files that it was handed are gone."""
    norm = FinalNorm(torch.ones(HIDDEN), 1e-6)
    with_norm = VllmSource(served.url, served.directory, layers="2,5,last", final_norm=norm)
    run = Run(tmp_path, RolloutSource(with_norm, algorithm=algorithm()), (1, 4), HIDDEN)
    run.ingest(a=[5, 6, 7])
    found = run.features()["run:a"]
    states = states_of([5, 6, 7])
    assert torch.equal(found["hidden_state"].float(), states[:, :2].flatten(1)[None])
    assert torch.allclose(found["target"].float(), norm(states[:, 2])[None])
    assert list(served.directory.iterdir()) == []
    with_norm.close()


def test_last_states_before_the_norm_are_no_target(served: FakeVllm, tmp_path: Path) -> None:
    source = VllmSource(served.url, served.directory, layers="2,5,last")
    run = Run(tmp_path, RolloutSource(source, algorithm=algorithm()), (1, 4), HIDDEN)
    run.ingest(a=[5, 6, 7])
    with pytest.raises(SourceSetupError, match="after the final norm: capture the layer 'normed'"):
        run.worker.run_once(8)
    assert run.controller.status()["prompts_pending"] == 1
    assert list(served.directory.iterdir()) == [], "nobody else would remove what it was handed"
    source.close()


def test_layers_that_the_source_has_not(folder: str, tmp_path: Path) -> None:
    """The text says which ones to make it with."""
    source = RolloutSource(TransformersSource(folder, layers=(0, "normed")), algorithm=algorithm())
    run = Run(tmp_path, source, (0, 1), HIDDEN_SIZE)
    run.ingest(a=[1])
    with pytest.raises(SourceSetupError, match="lacks 1,2, of which eagle3 learns: make it with the layers 1,2,normed"):
        run.worker.run_once(8)


def test_a_refused_prompt_fails_alone(folder: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And for good: asked again it would be refused again. The log says why."""
    source = RolloutSource(TransformersSource(folder, layers=(1, "normed")), algorithm=algorithm())
    run = Run(tmp_path, source, (0,), HIDDEN_SIZE)
    run.ingest(a=[1, 2], bad=[1, 10_000], c=[3])
    with caplog.at_level(logging.WARNING, "fsqueue"), pytest.raises(capturing.CaptureMismatchError):
        run.worker.run_once(8)
    status = run.controller.status()
    assert (status["prompts_failed"], status["prompts_pending"], status["prompts_leased"]) == (1, 0, 0)
    assert [ref.sample_id for ref in run.controller.sample_queue.get(9)] == ["run:a", "run:c"]
    assert "'bad'" in caplog.text and "fails it" in caplog.text


def test_one_call_at_a_time(folder: str) -> None:
    """A source knows nothing of threads, and SpecForge's producer may have several calls under way."""
    source, meanwhile = TransformersSource(folder, layers=(1, "normed")), Event()
    both = RolloutSource(source, algorithm=algorithm())
    task = control_plane.DataFlowController("run")
    task.ingest_prompts([{"task_id": "a", "payload": {"input_ids": [1, 2], "loss_mask": [1, 1]}}])
    leased = task.lease_prompt_tasks("w0", 1)

    def call() -> Any:
        return both.generate_features(leased, capture=capture_of("eagle3", (0,), HIDDEN_SIZE))

    def second(prompts: Any, **options: Any) -> Any:
        meanwhile.set()
        return capture(prompts, **options)

    def first(prompts: Any, **options: Any) -> Any:
        source.capture = second  # type: ignore[method-assign]
        others.append(InThread(call))
        assert not meanwhile.wait(0.3), "another call came in"
        return capture(prompts, **options)

    others: list[Any] = []
    capture, source.capture = source.capture, first  # type: ignore[method-assign]
    assert call()[0]["target"].equal(others[0].result()[0]["target"]) and meanwhile.is_set()


@pytest.mark.parametrize("payload", [{}, {"input_ids": [1, 2]}, {"input_ids": [1, 2], "loss_mask": [1]}])
def test_prompts_that_are_not_prepared(folder: str, payload: dict[str, list[int]], tmp_path: Path) -> None:
    source = RolloutSource(TransformersSource(folder, layers=(1, "normed")), algorithm=algorithm())
    run = Run(tmp_path, source, (0,), HIDDEN_SIZE)
    run.controller.ingest_prompts([{"task_id": "a", "payload": payload}])
    with pytest.raises(SourceSetupError, match=r"prompt 'a': its payload .* as SpecForge prepares them"):
        run.worker.run_once(8)
