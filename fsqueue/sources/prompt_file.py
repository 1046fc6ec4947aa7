"""Read prompts from JSON Lines: each line is checked, and says with which id it comes again the next time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from fsqueue.errors import InvalidRefError
from fsqueue.format.names import stem_of
from fsqueue.records import dp_partition
from fsqueue.sources.contract import Prompt


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    id: str | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None
    metadata: dict[str, Any] = {}


class BadLine(NamedTuple):
    """Say why a line holds no prompt."""

    number: int
    problem: str


class PromptFile:
    """A JSON Lines file: an object a line, with `text` or `token_ids`, and perhaps `id` and `metadata`.

    A prompt without an id takes one from its content, so that the file may be reordered, and what stands in it twice is
    one prompt. Iterating yields the prompts; bad lines are left out, `check` tells of them.

    Args:
        part: (index, count): only the prompts of this part, by their ids, so that several runs share a file.
    """

    def __init__(self, path: str | os.PathLike[str], part: tuple[int, int] = (0, 1)) -> None:
        self.path = os.fspath(path)
        self._part = part

    def check(self) -> tuple[int, list[BadLine]]:
        """Read the file; returns how many prompts it holds, and the lines that hold none."""
        seen: dict[str, bytes] = {}
        bad: list[BadLine] = []
        for number, found in self._lines():
            if isinstance(found, BadLine):
                bad.append(found)
                continue
            content = _digest(found)
            if seen.setdefault(found.prompt_id, content) != content:
                bad.append(BadLine(number, f"the id {found.prompt_id!r} is that of another prompt above"))
        return sum(self._is_mine(prompt_id) for prompt_id in seen), bad

    def __iter__(self) -> Iterator[Prompt]:
        seen: set[str] = set()
        for _, found in self._lines():
            if isinstance(found, Prompt) and found.prompt_id not in seen and self._is_mine(found.prompt_id):
                seen.add(found.prompt_id)
                yield found

    def _is_mine(self, prompt_id: str) -> bool:
        index, count = self._part
        return dp_partition(prompt_id, count) == index

    def _lines(self) -> Iterator[tuple[int, Prompt | BadLine]]:
        decode = msgspec.json.Decoder(_Line).decode
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _prompt(number, line, decode)


def _prompt(number: int, line: bytes, decode: Any) -> Prompt | BadLine:
    try:
        found: _Line = decode(line)
        if (found.text is None) == (found.token_ids is None):
            return BadLine(number, "expected either text or token_ids")
        prompt = Prompt(found.id or "", found.text, found.token_ids, found.metadata)
        prompt_id = found.id if found.id is not None else f"p-{_digest(prompt).hex()[:24]}"
        stem_of(prompt_id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidRefError) as error:
        return BadLine(number, str(error))
    return Prompt(prompt_id, found.text, found.token_ids, found.metadata)


def _digest(prompt: Prompt) -> bytes:
    return hashlib.sha256(msgspec.json.encode((prompt.text, prompt.token_ids))).digest()
