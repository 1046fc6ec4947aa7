"""The vLLM source, against a small server that hands files over by the connector's protocol (not a real vLLM)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fsqueue.features import SharedDirFeatureStore
from fsqueue.sources import (
    FinalNorm,
    Prompt,
    PromptRefusedError,
    SourceSetupError,
    SourceUnreachableError,
    VllmSource,
)
from tests.support import wait_until
from tests.support.features import ref_of, same
from tests.support.inference import LAYERS, FakeVllm, ids_of, states_of


def source_of(vllm: FakeVllm, **options: Any) -> VllmSource:
    given: dict[str, Any] = {"layers": LAYERS, "patience_s": 30.0, "timeout_s": 20.0, "settle_s": 0.2} | options
    return VllmSource(vllm.url, given.pop("directory", vllm.directory), **given)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{number}", f"prompt number {number}") for number in range(count)]


def test_states_come_in_order_and_are_adopted(vllm: FakeVllm, store: SharedDirFeatureStore, states: Path) -> None:
    """One request a prompt; the file itself is in the store afterwards, and nothing is left in the directory."""
    found, inodes = [], []
    with source_of(vllm) as source:
        for captured in source.capture(prompts(20)):
            (file,) = [path for path in states.glob("*.safetensors") if captured.file_name == path.name]  # type: ignore[attr-defined]
            inodes.append(file.stat().st_ino)
            assert captured.source == f"vllm at {vllm.url}" and captured.prompt.text is not None
            assert captured.token_ids == tuple(ids_of(captured.prompt.text))
            assert (captured.layers, captured.dtype, captured.weight_version) == (LAYERS, "float32", "tiny")
            found.append(captured.store_in(store))
    assert [stored.sample_id for stored in found] == [f"p{number}" for number in range(20)]
    assert len(vllm.asked) == 20 and all(body["model"] == "tiny" for body in vllm.asked)
    assert os.listdir(states) == []
    for stored, inode in zip(found, inodes, strict=True):
        ids = ids_of(f"prompt number {stored.sample_id[1:]}")
        expected = {"hidden_states": states_of(ids), "token_ids": torch.tensor(ids)}
        assert same(store.get(ref_of(stored)), expected)
        (apart,) = Path(store.root).glob(f"??/{stored.sample_id}@*")
        assert apart.stat().st_ino == inode


def test_prompts_in_tokens_go_as_tokens(vllm: FakeVllm) -> None:
    with source_of(vllm, weight_version="step-3", api_key="secret") as source:
        (captured,) = source.capture([Prompt("a", token_ids=(5, 6, 7))])
    assert captured.token_ids == (5, 6, 7) and captured.weight_version == "step-3"
    assert vllm.asked[0]["prompt"] == [5, 6, 7] and vllm.headers[0]["Authorization"] == "Bearer secret"
    assert torch.equal(captured.tensors()["hidden_states"], states_of([5, 6, 7]))


def test_the_final_norm_is_applied_on_request(
    vllm: FakeVllm, store: SharedDirFeatureStore, states: Path, tmp_path: Path
) -> None:
    """The norm of a real model's folder, as that model applies it; the file is written anew."""
    transformers = pytest.importorskip("transformers")
    from tests.support.tiny_target import make_tiny_target

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(make_tiny_target(tmp_path / "model"))
    hidden = torch.randn(3, 64)
    norm = FinalNorm.from_folder(tmp_path / "model")
    assert torch.allclose(norm(hidden), model.model.norm(hidden), atol=1e-6)
    norm.weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with source_of(vllm, final_norm=norm) as source:
        (captured,) = source.capture([Prompt("a", "abc")])
        stored = captured.store_in(store)
    expected = norm(states_of(ids_of("abc"))[:, 2])
    assert torch.equal(store.get(ref_of(stored))["last_hidden_state"], expected)
    assert os.listdir(states) == []
    with pytest.raises(SourceSetupError, match="needs the layer 'last'"):
        source_of(vllm, final_norm=norm, layers=("1", "2", "3"))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "/etc/x.safetensors",
        "../x.safetensors",
        "{states}/../x.safetensors",
        "{states}/inner/x.safetensors",
        "{states}/.safetensors",
        "{states}/x.safetensors/",
        "{states}/x\0.safetensors",
        "x.safetensors",
        ["{states}/x.safetensors"],
        7,
    ],
    ids=str,
)
def test_paths_that_lead_elsewhere_are_refused(vllm: FakeVllm, states: Path, path: Any) -> None:
    """Whatever a reply names, only a file right in the directory is taken, and no other is touched."""
    given = path.replace("{states}", str(states)) if isinstance(path, str) else path
    (states / "inner").mkdir()
    outside = [states.parent / "x.safetensors", states / "inner" / "x.safetensors"]
    for file in outside:
        save_file({"hidden_states": states_of([1]), "token_ids": torch.tensor([1])}, file)
    vllm.path_in_reply = lambda name: given
    with (
        source_of(vllm) as source,
        pytest.raises(SourceSetupError, match=r"prompt 'p0': it names .*shared_storage_path"),
    ):
        list(source.capture(prompts(1)))
    assert all(file.exists() for file in outside)


def test_links_are_not_followed(vllm: FakeVllm, states: Path) -> None:
    """A file, or a lock, that is a symbolic link is never opened; what it leads to stays."""
    target = states.parent / "target.safetensors"
    save_file({"hidden_states": states_of([1]), "token_ids": torch.tensor([1])}, target)
    vllm.written = lambda path, tensors: os.symlink(target, path)
    with source_of(vllm, patience_s=0.0) as source, pytest.raises(SourceUnreachableError, match="is not whole"):
        list(source.capture(prompts(1)))
    assert target.exists() and os.listdir(states) == []


def test_a_server_that_calls_the_directory_otherwise(vllm: FakeVllm, store: SharedDirFeatureStore) -> None:
    """A container mounts the directory elsewhere: its name there is given."""
    vllm.path_in_reply = lambda name: f"/data/states/{os.path.basename(name)}"
    with pytest.raises(SourceSetupError, match="server_directory"), source_of(vllm) as source:
        list(source.capture(prompts(1)))
    with source_of(vllm, server_directory="/data/states/") as source:
        assert [captured.store_in(store).sample_id for captured in source.capture(prompts(3))] == ["p0", "p1", "p2"]


def first_worse(worse: Any) -> Any:
    """The first file is written in another way than the others."""
    calls: list[str] = []

    def write(path: str, tensors: dict[str, Tensor]) -> None:
        calls.append(path)
        if len(calls) == 1:
            worse(path, tensors)
        else:
            save_file(tensors, path)

    return write


def torn(path: str, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, path)
    os.truncate(path, os.path.getsize(path) - 8)


@pytest.mark.parametrize("worse", [lambda path, tensors: None, torn], ids=["nothing", "torn"])
def test_a_file_that_is_lost_or_torn_is_asked_for_again(
    vllm: FakeVllm, store: SharedDirFeatureStore, states: Path, worse: Any
) -> None:
    """As after a death of the server: its lock is gone, and the file is not there, or not whole."""
    vllm.written = first_worse(worse)
    with source_of(vllm, in_flight=1) as source:
        (captured,) = source.capture(prompts(1))
        captured.store_in(store)
    assert len(vllm.asked) == 2 and os.listdir(states) == []


def test_a_reply_that_never_comes_leaves_nothing(
    vllm: FakeVllm, store: SharedDirFeatureStore, states: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server wrote a file and died before it answered: the source removes that file at its end."""
    post = FakeVllm.post

    def die(server: FakeVllm, path: str, body: dict[str, Any], headers: dict[str, str]) -> Any:
        post(server, path, body, headers)
        monkeypatch.setattr(FakeVllm, "post", post)
        raise ConnectionAbortedError  # the connection is closed without an answer

    monkeypatch.setattr(FakeVllm, "post", die)
    with source_of(vllm, in_flight=1) as source:
        (captured,) = source.capture(prompts(1))
        wait_until(lambda: len(list(states.glob("*.safetensors"))) == 2, "both files")
    captured.store_in(store)
    assert len(vllm.asked) == 2 and os.listdir(states) == []


def test_passing_failures_are_waited_for(vllm: FakeVllm, store: SharedDirFeatureStore) -> None:
    vllm.failures = [(503, "starting"), (500, "the engine died"), (429, "busy"), (502, "")]
    with source_of(vllm, in_flight=1) as source:
        assert len([captured.store_in(store) for captured in source.capture(prompts(2))]) == 2
    assert len(vllm.asked) == 6


def test_a_server_that_is_away(vllm: FakeVllm) -> None:
    """The error names the source, the prompt, for how long and why, and says how to go on."""
    vllm.failures = [(503, "starting")] * 10
    with source_of(vllm, patience_s=0.3, in_flight=1) as source, pytest.raises(SourceUnreachableError) as caught:
        list(source.capture(prompts(1)))
    text = str(caught.value)
    assert text.startswith(f"vllm at {vllm.url}, prompt 'p0': no answer for ") and "answered 503: starting" in text
    assert "start again" in text and isinstance(caught.value, TimeoutError) and caught.value.prompt_id == "p0"
    away = VllmSource("http://127.0.0.1:9", vllm.directory, layers=LAYERS, patience_s=0.0)
    with (
        away,
        pytest.raises(SourceUnreachableError, match="because /v1/models failed with NewConnectionError"),
    ):
        list(away.capture(prompts(1)))


def test_a_prompt_that_is_refused(vllm: FakeVllm, store: SharedDirFeatureStore) -> None:
    """It raises, or is left out where somebody is told; the others come."""
    vllm.failures = [(400, '{"error": {"message": "longer than the maximum model length of 64"}}')]
    with source_of(vllm, in_flight=1) as source, pytest.raises(PromptRefusedError, match=r"'p0'.*maximum model length"):
        list(source.capture(prompts(3)))
    vllm.failures = [(400, "too long")]
    refused: list[PromptRefusedError] = []
    with source_of(vllm, in_flight=1) as source:
        found = [captured.prompt.prompt_id for captured in source.capture(prompts(3), on_refused=refused.append)]
    assert [error.prompt_id for error in refused] == ["p0"] and found == ["p1", "p2"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"models": ["a", "b"]}, r"serves the models \['a', 'b'\]: say which"),
        ({"models": []}, r"serves the models \[\]"),
        ({"layers": 4}, r"captures 4 layers, and 3 are named \(2,5,last\).*eagle_aux_hidden_state_layer_ids"),
        ({"path_in_reply": lambda name: None}, "names no hidden_states_path.*extract_hidden_states"),
        ({"failures": [(404, "no such model")]}, "answered 404: no such model"),
        ({"failures": [(401, "who are you")]}, "answered 401: who are you: see that this is the server's URL, key"),
        (
            {"written": lambda path, tensors: save_file({"x": torch.zeros(2)}, path)},
            r"holds x \[2\], expected hidden_states \[tokens, layers, hidden\]",
        ),
        (
            {"written": lambda path, tensors: save_file(tensors | {"token_ids": torch.tensor([1, 2])}, path)},
            "holds 15 rows and 2 token ids, expected those of the prompt's 15",
        ),
    ],
    ids=["models", "no-models", "layers", "no-path", "404", "401", "tensors", "rows"],
)
def test_a_server_that_is_set_up_otherwise(vllm: FakeVllm, change: dict[str, Any], text: str) -> None:
    """What would be wrong for every prompt ends the run at once, and says what to set."""
    for name, value in change.items():
        setattr(vllm, name, value)
    asked = Prompt("p0", token_ids=tuple(range(15)))
    with source_of(vllm, in_flight=1) as source, pytest.raises(SourceSetupError, match=text):
        list(source.capture([asked]))


def test_a_directory_that_is_not_there(vllm: FakeVllm, tmp_path: Path) -> None:
    with pytest.raises(SourceSetupError, match=r"cannot be read .*shared_storage_path"):
        source_of(vllm, directory=tmp_path / "nowhere")


def test_what_an_earlier_life_left_is_removed(vllm: FakeVllm, states: Path, store: SharedDirFeatureStore) -> None:
    """A killed run leaves files; the next one of its name removes them, and nobody else's."""
    source = source_of(vllm, label="capture-1")
    left = list(source.capture(prompts(3)))
    (states / "somebody.safetensors").write_bytes(b"x")
    other = list(source_of(vllm, label="capture-12").capture(prompts(1)))
    assert len(os.listdir(states)) == 9 and len(left) == 3
    with source_of(vllm, label="capture-1"):
        assert len(os.listdir(states)) == 3
    other[0].store_in(store)
    assert os.listdir(states) == ["somebody.safetensors"]


def test_a_source_that_is_left_early_leaves_nothing(vllm: FakeVllm, states: Path) -> None:
    """What was captured and not taken is removed, also where it comes later."""
    vllm.seconds = 0.05
    with source_of(vllm, in_flight=4) as source:
        captured = source.capture(prompts(20))
        next(captured).discard()
        captured.close()
        taken = len(vllm.asked)
        assert taken < 20
        wait_until(lambda: os.listdir(states) == [], "what was under way to be removed")
