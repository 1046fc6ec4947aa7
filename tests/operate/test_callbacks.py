"""The caller's functions raise what they raise: an OSError of theirs is none of the queue's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fsqueue.operate as operate
from fsqueue.engine.rewind import rewind
from fsqueue.operate.check import check_queue, repair
from fsqueue.operate.report import report
from tests.support import Queue, refs


def refuse(*_: Any) -> Any:
    raise FileNotFoundError(2, "the caller's own", "/nowhere/at/all")


CALLS: dict[str, Callable[[Path, Queue], object]] = {
    "discard each": lambda path, queue: operate.discard(path, "x", older_than_s=0, each=refuse),
    "discard where": lambda path, queue: operate.discard(path, "x", older_than_s=0, where=refuse),
    "discard progress": lambda path, queue: operate.discard(path, "x", older_than_s=0, progress=refuse),
    "purge each": lambda path, queue: operate.purge(path, "failed", 0, each=refuse),
    "purge dry": lambda path, queue: operate.purge(path, "failed", 0, each=refuse, dry_run=True),
    "purge progress": lambda path, queue: operate.purge(path, "failed", 0, progress=refuse),
    "requeue each": lambda path, queue: operate.requeue(path, ["dead"], each=refuse),
    "requeue_failed where": lambda path, queue: operate.requeue_failed(path, where=refuse),
    "requeue_failed progress": lambda path, queue: operate.requeue_failed(path, progress=refuse),
    "dead_letters where": lambda path, queue: list(operate.dead_letters(path, where=refuse)),
    "release each": lambda path, queue: operate.release(path, queue.owner, force=True, each=refuse),
    "release progress": lambda path, queue: operate.release(path, queue.owner, force=True, progress=refuse),
    "pack progress": lambda path, queue: operate.pack(path, 0, progress=refuse),
    "report progress": lambda path, queue: report(path, refuse),
    "check progress": lambda path, queue: check_queue(path, progress=refuse),
    "repair each": lambda path, queue: repair(path, each=refuse),
    "rewind each": lambda path, queue: _rewound(queue, each=refuse),
    "rewind progress": lambda path, queue: _rewound(queue, progress=refuse),
}


def _rewound(queue: Queue, **said: Any) -> object:
    with queue._reaching("rewinding"):
        return rewind(queue.handle, queue.engine.reclaimer, 1, True, **said)


@pytest.mark.parametrize("call", CALLS)
def test_an_error_of_the_callers_function_comes_out_as_it_was_raised(path: Path, queue: Queue, call: str) -> None:
    queue.put(refs("dead", "done", "held", "left"))
    queue.fail(queue.get(1), "no", retryable=False)
    queue.ack(queue.get(1), step=5)
    queue.get(1)
    (path / "tmp" / "left-over").write_text("")
    (path / "failed" / "junk.json").write_text("{")
    with pytest.raises(FileNotFoundError) as raised:
        CALLS[call](path, queue)
    assert type(raised.value) is FileNotFoundError and raised.value.filename == "/nowhere/at/all"
