"""The draft head: one decoder layer that predicts the target's next hidden state, and its loss.

After EAGLE (Li et al., 2024): at position t it sees the target's hidden state h(t) and the embedding of the
token t+1 that the target chose, and predicts h(t+1). The target's frozen output head turns that into the
draft's guess at the token t+2.

Shapes: B samples, T positions, H hidden size, V the target's vocabulary, K the pruned one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from fsqueue.demo.demo_dir import DemoDirectory, publish

_MLP_RATIO = 8 / 3
_ROPE_BASE = 10_000.0


@dataclass(frozen=True)
class Frozen:
    """The parts of the target that the draft borrows; never trained.

    Attributes:
        embedding: [V, H].
        head: [K, H], the output head's rows for the kept tokens.
        bias: [K], zeros where the head has none.
        kept: [K], the kept tokens' ids.
    """

    embedding: Tensor
    head: Tensor
    bias: Tensor
    kept: Tensor

    def logits(self, hidden: Tensor) -> Tensor:
        """Map [..., H] to [..., K]."""
        return functional.linear(hidden, self.head, self.bias)

    def embed(self, tokens: Tensor) -> Tensor:
        """Map [B, T] to [B, T, H]."""
        return functional.embedding(tokens, self.embedding)

    def save(self, demo: DemoDirectory) -> None:
        tensors = {name: tensor.contiguous() for name, tensor in vars(self).items()}
        publish(demo.at("plan", "frozen.safetensors"), save(tensors))

    @classmethod
    def load(cls, demo: DemoDirectory) -> Frozen:
        return cls(**load_file(demo.at("plan", "frozen.safetensors")))


class DraftHead(nn.Module):
    """Fuses embedding and hidden state, then one pre-norm decoder layer with rotary attention and SwiGLU."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.heads = max(1, hidden_size // 64)
        while hidden_size % self.heads or hidden_size // self.heads % 2:
            self.heads -= 1
        inner = int(hidden_size * _MLP_RATIO)
        self.embedding_norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.hidden_norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.fuse = nn.Linear(2 * hidden_size, hidden_size, bias=False)
        self.attention_norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.attention_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.gate_up = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden_size, bias=False)

    def forward(self, embedded: Tensor, hidden: Tensor) -> Tensor:
        """Map [B, T, H] embeddings of the tokens t+1 and hidden states of t to predicted hidden states of t+1."""
        fused: Tensor = self.fuse(torch.cat([self.embedding_norm(embedded), self.hidden_norm(hidden)], dim=-1))
        fused = fused + self._attend(self.attention_norm(fused))
        gate, up = self.gate_up(self.mlp_norm(fused)).chunk(2, dim=-1)
        out: Tensor = fused + self.down(functional.silu(gate) * up)
        return out

    def _attend(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        query, key, value = (
            part.view(batch, length, self.heads, size // self.heads).transpose(1, 2)
            for part in self.query_key_value(x).chunk(3, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(_rotate(query), _rotate(key), value, is_causal=True)
        out: Tensor = self.attention_out(mixed.transpose(1, 2).reshape(batch, length, size))
        return out


def _rotate(x: Tensor) -> Tensor:
    """Apply rotary position embedding over the last two dimensions, [..., T, D]."""
    length, size = x.shape[-2:]
    frequencies = _ROPE_BASE ** (-torch.arange(0, size, 2, dtype=torch.float32) / size)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    low, high = x.chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([low * cos - high * sin, low * sin + high * cos], dim=-1)


def new_draft(hidden_size: int, seed: int) -> DraftHead:
    """Make a draft with random weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DraftHead(hidden_size)


def draft_loss(draft: DraftHead, frozen: Frozen, tokens: Tensor, hidden: Tensor) -> Tensor:
    """Compute soft cross-entropy over the kept tokens plus smooth L1 on the hidden state, mean over all positions.

    Args:
        tokens: [B, T], what the target read.
        hidden: [B, T, H], the hidden states it computed.
    """
    predicted = draft(frozen.embed(tokens[:, 1:]), hidden[:, :-1])
    truth = hidden[:, 1:]
    with torch.no_grad():
        wanted = functional.softmax(frozen.logits(truth), dim=-1)
    guess = functional.log_softmax(frozen.logits(predicted), dim=-1)
    return functional.smooth_l1_loss(predicted, truth) - (wanted * guess).sum(dim=-1).mean()
