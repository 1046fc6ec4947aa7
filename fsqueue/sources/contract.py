"""The contract of sources: what goes in, what comes out, and what every source holds to. Imports no torch.

However a source has them, the tensors of a prompt have these names:

    token_ids           [tokens]                   int64: the prompt, as the model saw it
    hidden_states       [tokens, layers, hidden]   in the order of the source's layers
    last_hidden_state   [tokens, hidden]           after the final norm, where the source was told to apply it

A layer is named by the number of blocks that its states have passed: "0" are the embeddings, "2" what the third block
reads. "last" is what the last block gives, before the final norm, and "normed" what the output head reads, after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from fsqueue.errors import InvalidArgumentError

if TYPE_CHECKING:
    from torch import Tensor

    from fsqueue.features import SharedDirFeatureStore, StoredFeatures
    from fsqueue.sources.errors import PromptRefusedError

TOKEN_IDS, HIDDEN_STATES, LAST_HIDDEN_STATE = "token_ids", "hidden_states", "last_hidden_state"
LAST, NORMED = "last", "normed"


@dataclass(frozen=True)
class Prompt:
    """One text to run the target over, whole or in tokens.

    Attributes:
        prompt_id: becomes the sample's id, so it has to be the same whenever the run is started again.
        text: what the source's tokenizer gets, as it is: apply a chat template before.
        token_ids: in place of text.
        metadata: goes into the ref.
    """

    prompt_id: str
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.token_ids is None):
            found = {"text": self.text, "token_ids": self.token_ids}
            raise InvalidArgumentError(f"Prompt({self.prompt_id!r})", "either text or token_ids", found)


@dataclass(frozen=True)
class Captured(ABC):
    """The target's states over one prompt.

    Attributes:
        source: its name, for people.
        token_ids: the prompt's, as the model saw it; as many as there are rows.
        layers: the names of the second dimension of hidden_states.
        dtype: the states' type, such as "bfloat16".
        weight_version: which weights gave them, as far as the source knows.
    """

    prompt: Prompt
    source: str
    token_ids: tuple[int, ...]
    layers: tuple[str, ...]
    dtype: str
    weight_version: str

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""

    @abstractmethod
    def store_in(self, store: SharedDirFeatureStore) -> StoredFeatures:
        """Publish the tensors under the prompt's id; what the source kept of them is gone afterwards."""

    @abstractmethod
    def discard(self) -> None:
        """Let go of what the source keeps: nobody will store it."""


@dataclass(frozen=True)
class CapturedTensors(Captured):
    """States that are in memory."""

    by_name: Mapping[str, Tensor] = field(repr=False)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self.by_name)

    def store_in(self, store: SharedDirFeatureStore) -> StoredFeatures:
        return store.put(self.prompt.prompt_id, self.by_name)

    def discard(self) -> None:
        """Do nothing: they go with this object."""


Captures = Generator[Captured, None, None]
OnRefused = Callable[["PromptRefusedError"], None]


class FeatureSource(Protocol):
    """Gives the target's states over prompts."""

    @property
    def name(self) -> str:
        """The source for people, with its endpoint where it has one."""

    @property
    def layers(self) -> tuple[str, ...]: ...

    def weight_version(self) -> str | None:
        """Return which weights the next states will come from; None where only each reply tells.

        Raises:
            SourceError: the source does not say.
        """

    def capture(self, prompts: Iterable[Prompt], *, on_refused: OnRefused | None = None) -> Captures:
        """Yield the states of the prompts, in their order.

        Prompts are taken when there is room for them, so that an iterator that waits holds the source back. Closing the
        iterator ends what is under way.

        Args:
            on_refused: is told of a prompt that cannot be captured, which is then left out; without it that raises.

        Raises:
            PromptRefusedError: this prompt will never be captured.
            SourceSetupError: the source is not set up for this; the text says what to set.
            SourceUnreachableError: it gave no answer, for longer than it was to be waited for.
        """

    def close(self) -> None: ...


def layer_names(layers: Iterable[str | int]) -> tuple[str, ...]:
    """Return layers by their names, checked.

    Raises:
        InvalidArgumentError: there are none, one is named twice, or is no name of a layer.
    """
    if isinstance(layers, str):
        layers = layers.split(",")
    names = tuple(str(layer).strip() for layer in layers)
    unknown = [name for name in names if not (name in (LAST, NORMED) or name.isdecimal())]
    if not names or unknown or len(set(names)) < len(names):
        expected = f"layers, each once: numbers of blocks passed, {LAST!r} or {NORMED!r}"
        raise InvalidArgumentError("layers", expected, unknown[0] if unknown else names)
    return names
