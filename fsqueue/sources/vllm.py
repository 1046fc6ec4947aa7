"""States from a vLLM server that was started to extract them: its connector writes files, and they become features.

One prompt a request: for a batch the server names one file. Each request has an id of this source, which the server
makes part of the file's name; so what a killed run left behind can be told from what others write there.
"""

from __future__ import annotations

import os
import secrets
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fsqueue.features import SharedDirFeatureStore, StoredFeatures
from fsqueue.features.tensorfile import TensorHeader
from fsqueue.format.names import owner_name
from fsqueue.sources.contract import HIDDEN_STATES, LAST, LAST_HIDDEN_STATE, TOKEN_IDS, Captured, Prompt
from fsqueue.sources.endpoint import UnansweredError
from fsqueue.sources.errors import SourceSetupError
from fsqueue.sources.final_norm import FinalNorm
from fsqueue.sources.handover import Handover, NotHandedOverError, UntrustedPathError, Written
from fsqueue.sources.served import ServedSource

_SETTLE_S = 5.0


@dataclass(frozen=True)
class CapturedFile(Captured):
    """States in a file of the connector's directory, where nobody writes any more."""

    handover: Handover
    file_name: str
    final_norm: FinalNorm | None

    def tensors(self) -> dict[str, Tensor]:
        tensors = self.handover.load(self.file_name)
        if self.final_norm is not None:
            last = tensors[HIDDEN_STATES][:, self.layers.index(LAST)]
            tensors[LAST_HIDDEN_STATE] = self.final_norm(last)
        return tensors

    def store_in(self, store: SharedDirFeatureStore) -> StoredFeatures:
        """Publish the tensors: the file itself is adopted, unless the final norm has to be applied first."""
        if self.final_norm is not None:
            stored = store.put(self.prompt.prompt_id, self.tensors())
            self.handover.remove(self.file_name)
            return stored
        stored = store.adopt_file(self.prompt.prompt_id, self.handover.path_of(self.file_name))
        self.handover.remove_lock(self.file_name)
        return stored

    def discard(self) -> None:
        self.handover.remove(self.file_name)


class VllmSource(ServedSource):
    """A vLLM server with the `extract_hidden_states` method and its connector.

    Its last layer (`num_hidden_layers`) is called "last" here: it is before the final norm.

    Args:
        directory: the connector's `shared_storage_path`, as it is mounted here.
        server_directory: what the server calls it, where that is another path.
        model: the model's name at the server; None: the only one that it serves.
        weight_version: which weights it serves; None: the model's name.
        final_norm: also gives `last_hidden_state`; then files are written anew, and not adopted.
        label: which run's files these are: what an earlier life of it left is removed, so no other may use it at the
            same time. None: nothing is removed.
        settle_s: how long to look for a file that is missing or torn though nobody writes it.

    The other arguments are those of `ServedSource`.

    Raises:
        SourceSetupError: the directory is not there.
    """

    kind = "vllm"

    def __init__(
        self,
        endpoint: str,
        directory: str | os.PathLike[str],
        *,
        layers: Iterable[str | int],
        model: str | None = None,
        server_directory: str | None = None,
        weight_version: str | None = None,
        final_norm: FinalNorm | None = None,
        label: str | None = None,
        settle_s: float = _SETTLE_S,
        **options: Any,
    ) -> None:
        super().__init__(endpoint, layers=layers, weight_version=weight_version, **options)
        self._handover = Handover(directory, server_directory)
        self._final_norm = final_norm
        self._settle_s = settle_s
        mark = f"fsqueue.{owner_name(label or '')}."
        self._life = f"{mark}{secrets.token_hex(4)}."
        self._model = model
        self._asking_model = threading.Lock()
        self._handed_over: set[str] = set()
        if final_norm is not None and LAST not in self.layers:
            raise SourceSetupError(self.name, None, f"the final norm needs the layer {LAST!r}: capture it too")
        try:
            self._handover.sweep(mark if label else self._life)
        except OSError as error:
            raise SourceSetupError(
                self.name,
                None,
                f"the connector's directory {self._handover.directory} cannot be read ({error}): "
                "name the server's shared_storage_path, and mount it here",
            ) from None

    def weight_version(self) -> str | None:
        return self._given_version or self.answered(self._model_name)

    def _model_name(self) -> str:
        with self._asking_model:
            if self._model is None:
                reply = self._server.get("/v1/models")
                names = [each.get("id") for each in _items(reply)]
                if len(names) != 1 or not isinstance(names[0], str):
                    raise SourceSetupError(
                        self.name, None, f"it serves the models {names}: say which one is the target (model=)"
                    )
                self._model = names[0]
            return self._model

    def _ask(self, prompt: Prompt) -> Captured:
        model = self._model_name()
        asked = list(prompt.token_ids) if prompt.token_ids is not None else prompt.text
        body = {"model": model, "prompt": asked, "max_tokens": 1, "temperature": 0.0}
        reply = self._server.post("/v1/completions", body, {"X-Request-Id": f"{self._life}{secrets.token_hex(8)}"})
        name = self._named(prompt, reply)
        try:
            written = self._handover.take(name, within_s=self._timeout_s, settle_s=self._settle_s)
        except NotHandedOverError as error:
            self._handover.remove(name)
            raise UnansweredError(str(error)) from None
        try:
            return self._captured(prompt, name, written, self._given_version or model)
        except BaseException:
            self._handover.remove(name)
            raise

    def _named(self, prompt: Prompt, reply: Any) -> str:
        transfer = reply.get("kv_transfer_params") if isinstance(reply, dict) else None
        path = transfer.get("hidden_states_path") if isinstance(transfer, dict) else None
        if path is None:
            raise self._unfit(
                prompt,
                "its reply names no hidden_states_path: start it with the speculative method extract_hidden_states and "
                "a connector that writes hidden states",
            )
        try:
            return self._handover.name_of(path)
        except UntrustedPathError as error:
            raise self._unfit(
                prompt,
                f"{error}: give the server's shared_storage_path as it is called there (server_directory), and the "
                "same directory as it is mounted here",
            ) from None

    def _captured(self, prompt: Prompt, name: str, written: Written, version: str) -> CapturedFile:
        specs = written.header.specs()
        states, tokens = specs.get(HIDDEN_STATES), specs.get(TOKEN_IDS)
        if states is None or tokens is None or len(states.shape) != 3 or len(tokens.shape) != 1:
            found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs.values()) or "nothing"
            raise self._unfit(
                prompt,
                f"{name} holds {found}, expected {HIDDEN_STATES} [tokens, layers, hidden] and {TOKEN_IDS} [tokens]: "
                "this source knows the connector of vLLM 0.32",
            )
        if states.shape[1] != len(self.layers):
            raise self._unfit(
                prompt,
                f"it captures {states.shape[1]} layers, and {len(self.layers)} are named ({','.join(self.layers)}): "
                "name those of its eagle_aux_hidden_state_layer_ids, in their order",
            )
        ids = _ids(written.header, written.token_ids)
        if states.shape[0] != len(ids) or (prompt.token_ids is not None and ids != prompt.token_ids):
            expected = len(prompt.token_ids) if prompt.token_ids is not None else len(ids)
            raise self._unfit(
                prompt,
                f"{name} holds {states.shape[0]} rows and {len(ids)} token ids, expected those of the prompt's "
                f"{expected} tokens: the server changes prompts (a truncation, a template?), or is another version",
            )
        self._handed_over.add(name)
        return CapturedFile(
            prompt, self.name, ids, self.layers, states.dtype, version, self._handover, name, self._final_norm
        )

    def close(self) -> None:
        """End what is under way, and remove what the server wrote for replies that never came."""
        super().close()
        with suppress(OSError):
            self._handover.sweep(self._life, but=self._handed_over)

    def _unfit(self, prompt: Prompt, problem: str) -> SourceSetupError:
        return SourceSetupError(self.name, prompt.prompt_id, problem)


def _items(reply: Any) -> list[dict[str, Any]]:
    data = reply.get("data") if isinstance(reply, dict) else None
    return [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []


def _ids(header: TensorHeader, data: bytes) -> tuple[int, ...]:
    """Read token ids, which are 64 or 32 bits wide."""
    kind = {"I64": "q", "I32": "i"}.get(header.entries[TOKEN_IDS].dtype, "")
    return struct.unpack(f"<{len(data) // struct.calcsize(kind)}{kind}", data) if kind else ()
