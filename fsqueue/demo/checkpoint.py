"""The training state: draft weights, optimizer moments, step, and what was trained, as a flat vector and as a file.

A checkpoint is one safetensors file, replaced by rename; nothing is pickled. All ranks hold the same state,
so rank 0 alone writes it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from fsqueue.demo.demo_dir import DemoDirectory, Plan, all_sample_ids, publish
from fsqueue.demo.draft import new_draft

_FILE = "latest.safetensors"
_WARM_UP_STEPS = 10
_MAX_NORM = 1.0
_MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainingState:
    """The draft, its AdamW optimizer, and how often each sample went into them.

    Attributes:
        step: optimizer steps taken.
    """

    def __init__(self, plan: Plan) -> None:
        self.draft = new_draft(plan.hidden_size, plan.options.seed)
        self.step = 0
        self._ids = all_sample_ids(plan.options)
        self._index = {sample_id: number for number, sample_id in enumerate(self._ids)}
        self._counts = torch.zeros(len(self._ids))
        self._rate = plan.options.learning_rate
        self._parameters = list(self.draft.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, lr=self._rate, betas=(0.9, 0.95), weight_decay=0.01)
        for parameter in self._parameters:
            moments = {name: torch.zeros_like(parameter) for name in _MOMENTS}
            self._optimizer.state[parameter] = {"step": torch.zeros(()), **moments}

    def gradient(self) -> Tensor:
        """Copy all gradients into one new vector; zeros where nothing was computed."""
        parts = (torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters)
        return torch.cat([part.flatten() for part in parts])

    def clear_gradient(self) -> None:
        self._optimizer.zero_grad()

    def counts_of(self, ids: list[str]) -> Tensor:
        """Return ones for these samples and zeros for the others, as the second part of what `apply` takes."""
        counts = torch.zeros_like(self._counts)
        for sample_id in ids:
            counts[self._index[sample_id]] = 1.0
        return counts

    def has_seen(self, sample_id: str) -> bool:
        """Tell if a sample is trained into this state."""
        return bool(self._counts[self._index[sample_id]])

    def trained_ids(self) -> list[str]:
        """List every sample in this state, as often as it was trained into it."""
        counts = [int(count) for count in self._counts]
        return [sample_id for sample_id, count in zip(self._ids, counts, strict=True) for _ in range(count)]

    def apply(self, summed: Tensor, samples: float) -> None:
        """Take one optimizer step with the summed gradients, and counts, of so many samples."""
        gradient, counts = torch.split(summed, [len(summed) - len(self._counts), len(self._counts)])
        self._counts += counts
        for parameter, part in _pieces(gradient / samples, self._parameters):
            parameter.grad = part.clone()
        torch.nn.utils.clip_grad_norm_(self._parameters, _MAX_NORM)
        self._optimizer.param_groups[0]["lr"] = self._rate * min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        self._optimizer.step()
        self.clear_gradient()
        self.step += 1

    @torch.no_grad()
    def flatten(self) -> Tensor:
        """Copy weights, moments and counts into one vector; the step is not in it."""
        return torch.cat([part.flatten() for part in self._tensors()])

    @torch.no_grad()
    def restore(self, flat: Tensor, step: int) -> None:
        """Take over what flatten gave, in this or another process, at that step."""
        for tensor, part in _pieces(flat, self._tensors()):
            tensor.copy_(part)
        self.step = step
        for parameter in self._parameters:
            self._optimizer.state[parameter]["step"].fill_(step)

    def _tensors(self) -> list[Tensor]:
        moments = [self._optimizer.state[p][name] for name in _MOMENTS for p in self._parameters]
        return [*self._parameters, *moments, self._counts]

    def digest(self) -> str:
        """Return the SHA-256 of the weights, to compare ranks by."""
        weights = torch.cat([p.detach().flatten() for p in self._parameters])
        return hashlib.sha256(weights.numpy().tobytes()).hexdigest()

    def save(self, demo: DemoDirectory) -> None:
        """Replace the checkpoint."""
        content = save({"state": self.flatten()}, metadata={"step": str(self.step)})
        publish(demo.at("checkpoints", _FILE), content)

    def load(self, demo: DemoDirectory) -> int:
        """Take over the last checkpoint; returns its step."""
        with safe_open(demo.at("checkpoints", _FILE), "pt") as file:
            self.restore(file.get_tensor("state"), int(file.metadata()["step"]))
        return self.step


def _pieces(flat: Tensor, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut a flat vector into pieces in the shapes of these tensors, each beside its own."""
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        yield tensor, part.view_as(tensor)
