"""The SGLang source, against replies in the form that SGLang documents (no SGLang ran)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fsqueue.features import SharedDirFeatureStore
from fsqueue.sources import Prompt, PromptRefusedError, SglangSource, SourceSetupError
from tests.support.features import ref_of, same
from tests.support.inference import HIDDEN, FakeSglang, ids_of, states_of


def source_of(sglang: FakeSglang, **options: Any) -> SglangSource:
    return SglangSource(sglang.url, **({"patience_s": 30.0, "timeout_s": 20.0} | options))


def test_states_come_in_order_with_their_type(sglang: FakeSglang, store: SharedDirFeatureStore) -> None:
    """The server's type is given back, the weight version is the reply's, and every request has its own cache key."""
    asked = [Prompt("a", token_ids=(1, 2, 3)), Prompt("b", "xyz"), Prompt("c", token_ids=(9,))]
    with source_of(sglang) as source:
        found = list(source.capture(asked))
    assert [captured.token_ids for captured in found] == [(1, 2, 3), tuple(ids_of("xyz")), (9,)]
    for captured in found:
        assert (captured.layers, captured.dtype, captured.weight_version) == (("normed",), "bfloat16", "step-7")
        states = states_of(list(captured.token_ids), 1).to(torch.bfloat16)
        tensors = {"hidden_states": states, "token_ids": torch.tensor(captured.token_ids)}
        assert same(store.get(ref_of(captured.store_in(store))), tensors)
    bodies = [body for body in sglang.asked if "input_ids" in body]
    assert len({body["extra_key"] for body in bodies}) == 3
    assert all(body["return_hidden_states"] is True for body in bodies)


def test_auxiliary_layers_lie_beside_each_other(sglang: FakeSglang) -> None:
    """A row of several layers becomes a row a layer."""
    sglang.layers = 3
    with source_of(sglang, layers=("2", "16", "29"), hidden_size=HIDDEN, dtype="float32") as source:
        (captured,) = source.capture([Prompt("a", token_ids=(1, 2, 3, 4))])
    assert captured.layers == ("2", "16", "29") and captured.dtype == "float32"
    assert torch.equal(captured.tensors()["hidden_states"], states_of([1, 2, 3, 4], 3))


def without(*path: str) -> Any:
    def change(reply: dict[str, Any]) -> dict[str, Any]:
        inner = reply
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return reply

    return change


def with_states(states: Any) -> Any:
    def change(reply: dict[str, Any]) -> dict[str, Any]:
        reply["meta_info"]["hidden_states"] = states
        return reply

    return change


@pytest.mark.parametrize(
    ("change", "options", "text"),
    [
        ({"cached": 4}, {}, r"4 of the prompt's 10 tokens came from the radix cache.*--disable-radix-cache"),
        ({"chunk": 4}, {}, r"gave 2 rows for 10 tokens, as of a prefill in chunks.*--chunked-prefill-size -1"),
        ({"changed": without("meta_info", "hidden_states")}, {}, "no hidden_states: .*--enable-return-hidden-states"),
        ({"changed": without("meta_info")}, {}, "no meta_info: is this the URL of an SGLang server"),
        ({"changed": lambda reply: ["hello"]}, {}, "no meta_info"),
        ({"changed": with_states([[1.0, 2.0]])}, {}, "begin with no list of rows"),
        ({"changed": with_states([[[1.0, 2.0]] * 9 + [[1.0]]])}, {}, "rows differ in length"),
        ({"changed": with_states([[[None, 2.0]] * 10])}, {}, "what is no number"),
        ({"changed": with_states([[[0.1, 2.0]] * 10])}, {}, "do not fit into bfloat16.*dtype="),
        ({"info": {"dtype": "auto"}}, {}, "says that its dtype is 'auto'.*bfloat16"),
        ({"layers": 3}, {"layers": ("1", "2")}, None),
        ({"layers": 3}, {"hidden_size": HIDDEN}, r"have 12 numbers, expected 1 x 4.*return-aux-hidden-state-layer-ids"),
        ({"failures": [(403, "no")]}, {}, "answered 403"),
        ({"failures": [(200, "<html>")]}, {}, "answered with what is no JSON.*the server's URL"),
    ],
)
def test_replies_that_will_not_do(
    sglang: FakeSglang, change: dict[str, Any], options: dict[str, Any], text: str | None
) -> None:
    """Too few rows are told apart by their cause; each error says what to set, and nothing is captured."""
    for name, value in change.items():
        setattr(sglang, name, value)
    with source_of(sglang, **({"in_flight": 1} | options)) as source:
        if text is None:  # twelve numbers may be two layers of six: only hidden_size tells
            assert next(source.capture([Prompt("a", token_ids=(1,))])).tensors()["hidden_states"].shape == (1, 2, 6)
            return
        with pytest.raises(SourceSetupError, match=text):
            list(source.capture([Prompt("a", token_ids=tuple(range(10)))]))


def test_a_width_that_no_number_of_layers_gives(sglang: FakeSglang) -> None:
    source = source_of(sglang, layers=("1", "2", "3"), in_flight=1)
    with source, pytest.raises(SourceSetupError, match="have 4 numbers, expected a multiple of 3"):
        list(source.capture([Prompt("a", token_ids=(1,))]))


def test_prompts_that_are_refused(sglang: FakeSglang) -> None:
    sglang.failures = [(400, "the input is longer than the model's context")]
    with source_of(sglang, in_flight=1) as source, pytest.raises(PromptRefusedError, match="longer than the model"):
        list(source.capture([Prompt("a", token_ids=(1,))]))
    with source_of(sglang, in_flight=1) as source, pytest.raises(PromptRefusedError, match="no tokens"):
        list(source.capture([Prompt("a", "")]))


def test_a_type_that_is_none(sglang: FakeSglang) -> None:
    with pytest.raises(SourceSetupError, match="dtype is 'int7', expected one of float32, float16, bfloat16"):
        source_of(sglang, dtype="int7")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_value_of_a_type_survives_json(sglang: FakeSglang, dtype: str) -> None:
    """What the server had comes back bit for bit."""
    kind: torch.dtype = getattr(torch, dtype)
    states = torch.randn(10, 64).to(kind)
    sglang.changed = with_states([states.tolist()])
    with source_of(sglang, dtype=dtype) as source:
        (captured,) = source.capture([Prompt("a", token_ids=tuple(range(10)))])
    assert torch.equal(captured.tensors()["hidden_states"][:, 0], states)
