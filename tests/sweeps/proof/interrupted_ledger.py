"""The calls of a ledger that the sweep interrupts, and what must hold after each of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fsqueue import SampleRef
from fsqueue.control.ledger import FileMetadataStore
from tests.support import InThread, ids, numbered
from tests.sweeps.proof.lines import Tripwire, hang_is_an_error, is_lockable

Ledger = FileMetadataStore[SampleRef]

BATCH = numbered(3)
FIRST = ids(BATCH)[:1]

LEDGER_CALLS: dict[str, Callable[[Ledger], Any]] = {
    "commit": lambda ledger: ledger.commit_samples(BATCH),
    "ack": lambda ledger: ledger.record_train_ack(FIRST, global_step=3),
    "forget acks": lambda ledger: ledger.forget_acks(after_step=2),
    "compact": lambda ledger: ledger.compact(),
    "close": lambda ledger: ledger.close(),
}


def prepared(path: Path) -> Ledger:
    ledger: Ledger = FileMetadataStore(path, durable=False, lock_timeout_s=5.0)
    ledger.commit_samples(BATCH[:2])
    ledger.record_train_ack(ids(BATCH)[1:2], global_step=2)
    return ledger


def interrupt_ledger(path: Path, name: str, at: int, error: type[BaseException] = KeyboardInterrupt) -> str | None:
    """Interrupt a call at a line and check what must hold then; return the line, None where the call ended before."""
    ledger, wire = prepared(path), Tripwire(at, error)
    try:
        wire.run(lambda: LEDGER_CALLS[name](ledger))
    except error as caught:
        if wire.where is None or wire.where not in str(caught):
            raise
    where = wire.where or "its end"
    with hang_is_an_error(where):
        try:
            _check(path, name, ledger)
        except BaseException as problem:
            raise AssertionError(f"interrupted at {where}") from problem
    shutil.rmtree(path)
    return wire.where


def _check(path: Path, name: str, ledger: Ledger) -> None:
    for log in path.glob("*.jsonl"):
        assert is_lockable(log), f"{log.name} is locked"
    if name == "close":
        ledger.close()
        ledger = FileMetadataStore(path, durable=False)
    assert InThread(lambda: ledger.progress()[0]).result() in (1, 2), "acknowledged by nobody, or lost"
    ledger.commit_samples(BATCH)
    assert ledger.commit_samples(BATCH) == [False] * len(BATCH)
    assert ledger.get_committed("s00002") == BATCH[2]
    ledger.record_train_ack(FIRST, global_step=3)
    written = [json.loads(line.rstrip("\n"))["ids"] for line in _records(path, "commits")]
    assert sorted(i for some in written for i in some) == ids(BATCH), "committed twice, or lost"
    steps = ledger.acked_steps(ids(BATCH))
    ledger.close()
    with FileMetadataStore[SampleRef](path) as other:
        assert other.all_committed_ids() == ids(BATCH)
        assert other.acked_steps(ids(BATCH)) == steps == {"s00000": 3, "s00001": 2}


def _records(path: Path, kind: str) -> list[str]:
    (log,) = path.glob(f"{kind}-*.jsonl")
    return [line for line in log.read_text().split("\n") if line.strip()]
