"""What a put on NFS looks for, and when."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.support import Tap, ids, names_in, open_tapped, refs


def test_refs_that_came_in_while_a_put_hung_are_skipped(path: Path) -> None:
    """Where a rename of a put takes for longer than a second, what it looked for before is looked for again."""
    tap, now = Tap(), [1_000.0]
    tap.ops.filesystem_type = lambda path: "nfs4"
    tap.ops.monotonic = lambda: now[0]
    queue = open_tapped(tap, path, durable=False, io_threads=1)
    queue.put(refs("x"))
    there = b'{"sample_id":"b","run_id":"by hand"}\n'

    def hang(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if name == "rename" and args[1] == "a.json":
            now[0] += 20.0
            (path / "pending" / "b.json").write_bytes(there)

    tap.after = hang
    queue.put(refs("a", "b", "c"))
    tap.after = None
    assert names_in(path, "pending") == ["a.json", "b.json", "c.json", "x.json"]
    assert (path / "pending" / "b.json").read_bytes() == there
    queue.close()


def test_one_ref_is_looked_for_once_under_the_lock(path: Path) -> None:
    """A durable put of one or two refs writes before it looks, and skips what is pending or leased all the same."""
    tap = Tap()
    tap.ops.filesystem_type = lambda path: "nfs4"
    real = tap.ops.open
    tap.ops.open = lambda path, flags, *rest, **named: real(path, flags & ~os.O_DIRECT, *rest, **named)
    queue = open_tapped(tap, path, durable=True, io_threads=1)
    queue.put(refs("a", "b"))
    assert ids(queue.get(1)) == ["a"]
    tap.counts.clear()
    queue.put(refs("c"))
    assert tap.counts["access"] == 1
    before = {state: names_in(path, state) for state in ("pending", "leased", "tmp")}
    queue.put(refs("a", "b"))
    assert {state: names_in(path, state) for state in ("pending", "leased", "tmp")} == before
    queue.close()
