"""States from an SGLang server, in its replies.

A reply's states are JSON numbers: their type is lost, and given back here. After a hit in the radix cache only the rest
of the prompt has rows, and of a prompt in chunks only the last chunk: rows are counted, and too few are refused.

Source: SGLang 0.5.23, POST /generate with return_hidden_states
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fsqueue.features.tensorfile import dtype_name
from fsqueue.sources.contract import HIDDEN_STATES, NORMED, TOKEN_IDS, Captured, CapturedTensors, Prompt
from fsqueue.sources.errors import PromptRefusedError, SourceSetupError
from fsqueue.sources.served import ServedSource

_DTYPES = {dtype_name(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)}


class SglangSource(ServedSource):
    """An SGLang server that was started with --enable-return-hidden-states.

    By itself it gives what the output head reads, "normed". With auxiliary layers it gives those instead, one beside
    the other: name them, in its order.

    Args:
        dtype: the type that the server computes in; None: as it says itself.
        hidden_size: the model's, so that a wrong number of layers is noticed.
        weight_version: None: as each reply says.

    The other arguments are those of `ServedSource`.
    """

    kind = "sglang"

    def __init__(
        self,
        endpoint: str,
        *,
        layers: Iterable[str | int] = (NORMED,),
        dtype: str | None = None,
        hidden_size: int | None = None,
        weight_version: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(endpoint, layers=layers, weight_version=weight_version, **options)
        self._dtype_name = dtype
        self._hidden_size = hidden_size
        self._asking_dtype = threading.Lock()
        if dtype is not None and dtype not in _DTYPES:
            raise SourceSetupError(self.name, None, f"dtype is {dtype!r}, expected one of {', '.join(_DTYPES)}")

    def weight_version(self) -> str | None:
        return self._given_version

    def _ask(self, prompt: Prompt) -> Captured:
        dtype = _DTYPES[self._dtype()]
        ids = prompt.token_ids if prompt.token_ids is not None else self._tokens(prompt)
        body = {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0.0},
            "return_hidden_states": True,
            "extra_key": secrets.token_hex(8),  # a namespace of its own in the radix cache, so that nothing hits
        }
        reply = self._server.post("/generate", body)
        meta = reply.get("meta_info") if isinstance(reply, dict) else None
        if not isinstance(meta, dict):
            raise self._unfit(prompt, "its reply has no meta_info: is this the URL of an SGLang server?")
        rows = self._rows(prompt, meta, len(ids))
        states = self._restored(prompt, rows, dtype)
        version = self._given_version or str(meta.get("weight_version") or "unknown")
        tensors = {TOKEN_IDS: torch.tensor(ids, dtype=torch.int64), HIDDEN_STATES: states}
        return CapturedTensors(prompt, self.name, tuple(ids), self.layers, dtype_name(dtype), version, tensors)

    def _dtype(self) -> str:
        with self._asking_dtype:
            if self._dtype_name is None:
                said = self._server.get("/get_server_info")
                found = said.get("dtype") if isinstance(said, dict) else None
                found = {"half": "float16", "float": "float32"}.get(str(found), found)
                if found not in _DTYPES:
                    raise SourceSetupError(
                        self.name,
                        None,
                        f"it says that its dtype is {found!r}: its replies do not tell, so name the type that the "
                        f"model computes in (dtype=), one of {', '.join(_DTYPES)}",
                    )
                self._dtype_name = str(found)
            return self._dtype_name

    def _tokens(self, prompt: Prompt) -> tuple[int, ...]:
        reply = self._server.post("/tokenize", {"prompt": prompt.text})
        tokens = reply.get("tokens") if isinstance(reply, dict) else None
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise self._unfit(prompt, "/tokenize gave no list of token ids: give prompts as token_ids")
        if not tokens:
            raise PromptRefusedError(self.name, prompt.prompt_id, "it has no tokens: leave this prompt out")
        return tuple(tokens)

    def _rows(self, prompt: Prompt, meta: dict[str, Any], tokens: int) -> list[list[float]]:
        """Return the prompt's rows, as many as it has tokens."""
        states = meta.get("hidden_states")
        if not states:
            raise self._unfit(
                prompt, "its reply has no hidden_states: start the server with --enable-return-hidden-states"
            )
        seen, cached = meta.get("prompt_tokens"), meta.get("cached_tokens") or 0
        if seen != tokens:
            raise self._unfit(
                prompt, f"it read {seen} tokens of the prompt's {tokens}: see what shortens prompts there"
            )
        rows = states[0] if isinstance(states, list) else None
        if not isinstance(rows, list) or not rows or not isinstance(rows[0], list):
            raise self._unfit(
                prompt, "its hidden_states begin with no list of rows, one a token: this source knows SGLang 0.5.23"
            )
        if cached:
            raise self._unfit(
                prompt,
                f"{cached} of the prompt's {tokens} tokens came from the radix cache and have no rows: start the "
                "server with --disable-radix-cache (this one does not go by extra_key)",
            )
        if len(rows) != tokens:
            raise self._unfit(
                prompt,
                f"it gave {len(rows)} rows for {tokens} tokens, as of a prefill in chunks, of which only the last "
                f"comes back: start the server with --chunked-prefill-size -1, or {tokens} at least",
            )
        return rows

    def _restored(self, prompt: Prompt, rows: list[list[float]], dtype: torch.dtype) -> Tensor:
        """Return [tokens, layers, hidden], in the type in which the server had them."""
        try:
            wide = torch.tensor(rows, dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise self._unfit(prompt, f"its rows differ in length, or hold what is no number ({error})") from None
        states = wide.to(dtype)
        if not torch.equal(states.double(), wide):
            raise self._unfit(
                prompt,
                f"its states do not fit into {dtype_name(dtype)}, so it computes in another type: name that (dtype=)",
            )
        layers, width = len(self.layers), wide.shape[1]
        if width % layers or (self._hidden_size is not None and width != layers * self._hidden_size):
            wanted = f"{layers} x {self._hidden_size}" if self._hidden_size else f"a multiple of {layers}"
            raise self._unfit(
                prompt,
                f"its rows have {width} numbers, expected {wanted}, for the layers {','.join(self.layers)}: name "
                "those of its --return-aux-hidden-state-layer-ids, in their order, or 'normed' where it has none",
            )
        return states.view(len(rows), layers, width // layers)

    def _unfit(self, prompt: Prompt, problem: str) -> SourceSetupError:
        return SourceSetupError(self.name, prompt.prompt_id, problem)
