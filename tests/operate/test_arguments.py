"""Arguments that cannot be meant are refused, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fsqueue.operate as operate
from fsqueue import InvalidArgumentError
from tests.support import Queue, refs

BAD_AGES: list[Any] = [float("nan"), -1, "1h", True]
NO_TEXT: list[Any] = [5, b"x", "\udcff"]

CALLS: list[tuple[str, Callable[[Path], object]]] = [
    *((f"discard {age!r}", lambda path, age=age: operate.discard(path, "x", older_than_s=age)) for age in BAD_AGES),
    *((f"purge {age!r}", lambda path, age=age: operate.purge(path, "done", age)) for age in BAD_AGES),
    *((f"letters {age!r}", lambda path, age=age: operate.dead_letters(path, older_than_s=age)) for age in BAD_AGES),
    *((f"failed {age!r}", lambda path, age=age: operate.requeue_failed(path, older_than_s=age)) for age in BAD_AGES),
    *((f"pack {age!r}", lambda path, age=age: operate.pack(path, age)) for age in BAD_AGES if age != -1),
    *((f"discard {it!r}", lambda path, it=it: operate.discard(path, it, older_than_s=0)) for it in NO_TEXT),
    *((f"pause {it!r}", lambda path, it=it: operate.pause(path, it)) for it in NO_TEXT),
    *((f"release {it!r}", lambda path, it=it: operate.release(path, it)) for it in [None, *NO_TEXT]),
    *((f"letters {it!r}", lambda path, it=it: operate.dead_letters(path, reason=it)) for it in NO_TEXT),
    *((f"failed {it!r}", lambda path, it=it: operate.requeue_failed(path, owner=it)) for it in NO_TEXT),
    ("force", lambda path: operate.release(path, "me", force="no")),  # type: ignore[arg-type]
    ("where", lambda path: operate.discard(path, "x", where="draft")),  # type: ignore[arg-type]
    ("one id", lambda path: operate.requeue(path, "done")),
    ("no ids", lambda path: operate.requeue(path, [5])),  # type: ignore[list-item]
    ("count", lambda path: operate.peek(path, "pending", -1)),
    ("limit", lambda path: operate.entries(path, ["pending"], limit=-1)),
]


@pytest.mark.parametrize("call", [call for _, call in CALLS], ids=[name for name, _ in CALLS])
def test_what_cannot_be_meant_is_refused(path: Path, queue: Queue, call: Callable[[Path], object]) -> None:
    queue.put(refs("dead", "done", "left"))
    queue.fail(queue.get(1), "no", retryable=False)
    queue.ack(queue.get(1))
    before = sorted(path.rglob("*"))
    with pytest.raises(InvalidArgumentError):
        call(path)
    assert sorted(path.rglob("*")) == before


def test_a_queue_is_paused_with_a_string(path: Path, queue: Queue) -> None:
    with pytest.raises(InvalidArgumentError):
        queue.pause(b"x")  # type: ignore[arg-type]
    assert not (path / "paused.json").exists()
