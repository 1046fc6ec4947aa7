"""Prompt files: what is in them, with which ids, and what is wrong with them, line by line."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from fsqueue.errors import InvalidArgumentError
from fsqueue.sources import Prompt
from fsqueue.sources.contract import layer_names
from fsqueue.sources.prompt_file import BadLine, PromptFile


def written(path: Path, *lines: Any) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def test_prompts_have_ids_that_stay(tmp_path: Path) -> None:
    """An id of its own, or one of the content, wherever it stands; what stands twice is one prompt."""
    lines: list[Any] = [
        {"id": "a", "text": "x"},
        {"text": "y"},
        {"token_ids": [1, 2], "metadata": {"n": 1}},
        {"text": "y"},
    ]
    file = PromptFile(written(tmp_path / "p.jsonl", *lines, ""))
    found = list(file)
    assert [(prompt.text, prompt.token_ids, prompt.metadata) for prompt in found] == [
        ("x", None, {}),
        ("y", None, {}),
        (None, (1, 2), {"n": 1}),
    ]
    assert file.check() == (3, []) and found[0].prompt_id == "a"
    again = list(PromptFile(written(tmp_path / "q.jsonl", *reversed(lines))))
    assert {prompt.prompt_id for prompt in again} == {prompt.prompt_id for prompt in found}


def test_parts_share_a_file(tmp_path: Path) -> None:
    """Every prompt is in one part, wherever it stands."""
    path = written(tmp_path / "p.jsonl", *({"text": f"t{number}"} for number in range(50)))
    parts = [[prompt.prompt_id for prompt in PromptFile(path, (index, 3))] for index in range(3)]
    assert sorted(chain(*parts)) == sorted(prompt.prompt_id for prompt in PromptFile(path))
    assert [PromptFile(path, (index, 3)).check()[0] for index in range(3)] == [len(part) for part in parts]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ({"id": "b"}, "either text or token_ids"),
        ({"text": "x", "token_ids": [1]}, "either text or token_ids"),
        ({"text": "x", "prompt": "y"}, "unknown field `prompt`"),
        ({"text": 1}, "Expected `str"),
        ({"token_ids": ["a"]}, "Expected `int`"),
        ({"id": "", "text": "x"}, "non-empty"),
        ({"id": "a", "text": "other"}, "the id 'a' is that of another prompt above"),
    ],
    ids=str,
)
def test_bad_lines_are_told(tmp_path: Path, line: Any, problem: str) -> None:
    count, bad = PromptFile(written(tmp_path / "p.jsonl", {"id": "a", "text": "x"}, line)).check()
    (found,) = bad
    assert isinstance(found, BadLine) and found.number == 2 and problem in found.problem and count == 1


def test_arguments_that_cannot_be_meant() -> None:
    with pytest.raises(InvalidArgumentError, match="either text or token_ids"):
        Prompt("a")
    with pytest.raises(InvalidArgumentError, match="either text or token_ids"):
        Prompt("a", "x", (1,))
    assert layer_names(" 2,16, last ") == ("2", "16", "last") == layer_names([2, 16, "last"])
    for wrong in ("", "2,2", "two", "-1", [1.5]):
        with pytest.raises(InvalidArgumentError, match="layers expected layers, each once"):
            layer_names(wrong)  # type: ignore[arg-type]
