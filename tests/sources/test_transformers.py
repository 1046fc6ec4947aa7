"""The source in this process: its layers are those of transformers, whichever are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
import transformers

from fsqueue.features import SharedDirFeatureStore
from fsqueue.sources import FinalNorm, Prompt, PromptRefusedError, SourceSetupError, TransformersSource
from tests.support.features import ref_of
from tests.support.tiny_target import make_tiny_target


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_target(tmp_path_factory.mktemp("model") / "tiny")


def test_layers_are_those_of_transformers(folder: str) -> None:
    """Numbers are transformers' hidden_states, "normed" is the last of them, and "last" is that before the norm."""
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.eval()
    tokens = torch.tensor([1, 2, 3, 250])
    with torch.inference_mode():
        expected = model(input_ids=tokens[None], output_hidden_states=True).hidden_states
    source = TransformersSource(folder, layers=("normed", 1, "last", 0))
    (captured,) = source.capture([Prompt("a", token_ids=(1, 2, 3, 250))])
    states = captured.tensors()["hidden_states"]
    assert captured.layers == ("normed", "1", "last", "0") and states.shape == (4, 4, 64)
    assert torch.allclose(states[:, 0], expected[2][0], atol=1e-6)
    assert torch.allclose(states[:, 1], expected[1][0], atol=1e-6)
    assert torch.allclose(states[:, 3], expected[0][0], atol=1e-6)
    assert torch.allclose(FinalNorm.from_folder(folder)(states[:, 2]), states[:, 0], atol=1e-6)
    assert TransformersSource(model, layers="last").states(tokens).shape == (4, 1, 64), "no hook is left"


def test_texts_are_tokenized_and_stored(folder: str, store: SharedDirFeatureStore) -> None:
    source = TransformersSource(folder, layers="1,last", dtype="bfloat16", weight_version="v1")
    (captured,) = source.capture([Prompt("a", "some text")])
    assert len(captured.token_ids) == 9 and (captured.dtype, captured.weight_version) == ("bfloat16", "v1")
    found = store.get(ref_of(captured.store_in(store)))
    assert found["hidden_states"].shape == (9, 2, 64) and found["token_ids"].tolist() == list(captured.token_ids)
    assert TransformersSource(folder).weight_version() == "tiny"


def test_prompts_that_the_model_cannot_take(folder: str) -> None:
    source = TransformersSource(folder)
    refused: list[PromptRefusedError] = []
    asked = [Prompt("a", token_ids=(1, 256)), Prompt("b", token_ids=()), Prompt("c", token_ids=(255,))]
    found = list(source.capture(asked, on_refused=refused.append))
    assert [captured.prompt.prompt_id for captured in found] == ["c"]
    assert [error.prompt_id for error in refused] == ["a", "b"] and "of 0 to 255" in str(refused[0])
    with pytest.raises(PromptRefusedError, match="has 0 tokens"):
        list(source.capture([Prompt("b", token_ids=())]))


def test_models_that_will_not_do(folder: str, tmp_path: Path) -> None:
    with pytest.raises(SourceSetupError, match="holds no causal language model"):
        TransformersSource(str(tmp_path))
    with pytest.raises(SourceSetupError, match="no layers 1,2: name numbers below 2"):
        TransformersSource(folder, layers=(1, 2))
    with pytest.raises(SourceSetupError, match="dtype is 'fp12'"):
        TransformersSource(folder, dtype="fp12")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(SourceSetupError, match="prompts as token_ids"):
        list(TransformersSource(model).capture([Prompt("a", "text")]))
    with pytest.raises(SourceSetupError, match=r"final norm of .*holds no model"):
        FinalNorm.from_folder(tmp_path)
    config = Path(folder) / "config.json"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((Path(folder) / name).read_bytes())
    (tmp_path / "config.json").write_text(config.read_text().replace('"llama"', '"gemma2"'))
    with pytest.raises(SourceSetupError, match="type 'gemma2', whose norm is not known"):
        FinalNorm.from_folder(tmp_path)
