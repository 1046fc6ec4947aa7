"""The demo's learning: target, draft, loss, checkpoint, acceptance; on a model of two random layers."""

# ruff: noqa: E402 - what needs torch is imported only once it is known to be there

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.demo_dir import DemoDirectory, Plan
from fsqueue.demo.draft import DraftHead, Frozen, draft_loss, new_draft
from fsqueue.demo.evaluate import HeldOut, acceptance
from fsqueue.demo.options import DemoError, DemoOptions
from fsqueue.demo.target import Target
from tests.support.tiny_target import HIDDEN_SIZE, VOCABULARY

TOKENS, KEPT = 12, 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch uses one thread and one seed here."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def tiny_frozen() -> Frozen:
    kept = torch.arange(0, VOCABULARY, VOCABULARY // KEPT)[:KEPT]
    embedding = torch.randn(VOCABULARY, HIDDEN_SIZE)
    return Frozen(embedding, embedding[kept], torch.zeros(KEPT), kept)


def test_draft_predicts_without_looking_ahead() -> None:
    """The prediction at a position does not change with later inputs, and has the hidden state's shape."""
    draft = new_draft(HIDDEN_SIZE, seed=0)
    embedded, hidden = torch.randn(2, TOKENS, HIDDEN_SIZE), torch.randn(2, TOKENS, HIDDEN_SIZE)
    predicted = draft(embedded, hidden)
    assert predicted.shape == (2, TOKENS, HIDDEN_SIZE)
    hidden[:, 7:] += 1.0
    changed = draft(embedded, hidden)
    assert torch.equal(predicted[:, :7], changed[:, :7])
    assert not torch.allclose(predicted[:, 7:], changed[:, 7:])


def test_loss_trains_every_weight_of_the_draft_and_nothing_else() -> None:
    """The loss has a gradient for every parameter of the draft, none for what is frozen, and training lowers it."""
    draft, frozen = new_draft(HIDDEN_SIZE, seed=0), tiny_frozen()
    tokens, hidden = torch.randint(0, VOCABULARY, (3, TOKENS)), torch.randn(3, TOKENS, HIDDEN_SIZE)
    optimizer = torch.optim.AdamW(draft.parameters(), lr=3e-3)
    first = draft_loss(draft, frozen, tokens, hidden)
    first.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in draft.parameters())
    assert frozen.embedding.grad is None and frozen.head.grad is None
    for _ in range(20):
        optimizer.zero_grad()
        loss = draft_loss(draft, frozen, tokens, hidden)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss < first / 2


def test_new_draft_depends_on_the_seed_alone() -> None:
    """Two drafts of one seed are equal, and making one leaves the global generator alone."""
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, other = new_draft(HIDDEN_SIZE, seed=3), new_draft(HIDDEN_SIZE, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert not torch.equal(one.fuse.weight, new_draft(HIDDEN_SIZE, seed=4).fuse.weight)


@pytest.mark.parametrize("hidden_size", [2, 64, 100, 576, 768])
def test_draft_fits_any_hidden_size(hidden_size: int) -> None:
    """Heads divide the hidden size into even parts, as the rotary embedding needs."""
    draft = new_draft(hidden_size, seed=0)
    assert draft(torch.randn(1, 3, hidden_size), torch.randn(1, 3, hidden_size)).shape == (1, 3, hidden_size)


def a_plan(**changes: Any) -> Plan:
    return Plan("target", "tiny", HIDDEN_SIZE, DemoOptions("unused", **changes))


def random_gradient(state: TrainingState) -> Any:
    return torch.cat([torch.randn_like(state.gradient()), state.counts_of([])])


def test_a_checkpoint_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Steps after a restore are those that the uninterrupted state takes; the checkpoint is replaced whole."""
    directory = DemoDirectory(str(tmp_path / "demo"))
    directory.create(DemoOptions("unused"))
    state, other = TrainingState(a_plan()), TrainingState(a_plan(seed=1))
    gradients = [random_gradient(state) for _ in range(6)]
    for gradient in gradients[:3]:
        state.apply(gradient, 1.0)
        state.save(directory)
    assert other.digest() != state.digest()
    assert other.load(directory) == other.step == 3
    for gradient in gradients[3:]:
        state.apply(gradient, 1.0)
        other.apply(gradient, 1.0)
    assert other.digest() == state.digest()
    assert os.listdir(directory.at("checkpoints")) == ["latest.safetensors"]


def test_the_state_counts_what_went_into_it_through_checkpoint_and_hand_over(tmp_path: Path) -> None:
    """Which samples, and how often each, survives being saved, loaded, and handed from rank to rank."""
    directory = DemoDirectory(str(tmp_path / "demo"))
    directory.create(DemoOptions("unused"))
    state, loaded, handed = (TrainingState(a_plan(samples=3, passes=2)) for _ in range(3))
    one, two, three = "chunk-00001.pass-0", "chunk-00000.pass-1", "chunk-00002.pass-1"
    for ids in ([one, two], [two]):
        state.apply(torch.cat([state.gradient(), state.counts_of(ids)]), float(len(ids)))
    state.save(directory)
    loaded.load(directory)
    handed.restore(state.flatten(), state.step)
    for each in (state, loaded, handed):
        assert each.trained_ids() == [one, two, two]
        assert each.has_seen(one) and not each.has_seen(three)


def test_hidden_states_are_what_the_head_reads(tiny_target: str) -> None:
    """The captured states, put through the target's head, give the target's own logits and choices."""
    from transformers import AutoModelForCausalLM

    target = Target(tiny_target)
    tokens = torch.randint(0, VOCABULARY, (TOKENS,), dtype=torch.int32)
    hidden = target.hidden_states(tokens)
    assert hidden.shape == (TOKENS, target.hidden_size) == (TOKENS, HIDDEN_SIZE)
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tiny_target)(tokens[None].long()).logits[0]
    assert torch.equal(target.choices(hidden), logits.argmax(dim=-1))
    kept = torch.tensor([3, 9, 200])
    rows, bias = target.head_rows(kept)
    assert torch.allclose(hidden @ rows.T + bias, logits[:, kept], atol=1e-5)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    """A target that is none is an error with the folder's name."""
    with pytest.raises(DemoError, match=str(tmp_path)):
        Target(str(tmp_path))


class Oracle(DraftHead):
    """A draft that knows the answer."""

    def __init__(self, answers: Any) -> None:
        super().__init__(HIDDEN_SIZE)
        self.answers = answers

    def forward(self, embedded: Any, hidden: Any) -> Any:
        return self.answers


def test_acceptance_counts_agreement_with_the_target() -> None:
    """A draft that predicts the next hidden state is accepted wherever the choice is in its vocabulary."""
    frozen = tiny_frozen()
    tokens = torch.randint(0, VOCABULARY, (3, TOKENS), dtype=torch.int32)
    wanted = torch.randint(0, KEPT, (3, TOKENS))
    hidden = frozen.head[wanted] * 10
    choices = frozen.kept[frozen.logits(hidden).argmax(dim=-1)]
    assert acceptance(Oracle(hidden[:, 1:]), frozen, HeldOut(tokens, hidden, choices)) == 1.0
    choices[0, 1:] = VOCABULARY - 1  # a token that the draft cannot propose
    assert acceptance(Oracle(hidden[:, 1:]), frozen, HeldOut(tokens, hidden, choices)) == pytest.approx(2 / 3)
