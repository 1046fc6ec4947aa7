"""What is pending or leased, for producers that count what became of their refs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from tests.support import Queue, Tap, folder_of, ids, names_in, numbered, open_tapped, refs


def test_settled_refs_are_not_looked_at(path: Path) -> None:
    """Asking lists pending/ and leased/, however many refs are done or failed."""
    tap, listed = Tap(), []
    with open_tapped(tap, path, durable=False) as queue:
        queue.put(numbered(200))
        queue.ack(queue.get(200))
        queue.put(refs("mine"))
        tap.before = lambda name, args, _: listed.append(folder_of(args[0])) if name == "listdir" else None
        assert queue.unsettled(["mine", "s00007"]) == ["mine"]
        assert listed == ["pending", "leased", "pending", "leased", "pending"]


def test_what_has_not_changed_is_not_listed_again(path: Path) -> None:
    """Once both directories have stood still for longer than their stamps are coarse, asking costs a look at each."""
    tap, now = Tap(), [1000.0]
    tap.ops.monotonic = lambda: now[0]
    with open_tapped(tap, path, durable=False) as queue:
        queue.put(refs("a", "b"))
        queue.get(1)
        for _ in range(3):
            assert queue.unsettled(["a", "b"]) == ["a", "b"]
            now[0] += 3.0
        tap.counts.clear()
        assert queue.unsettled(["a", "b"]) == ["a", "b"]
        assert tap.counts["listdir"] == 0
        queue.ack(refs("a"))
        assert queue.unsettled(["a", "b"]) == ["b"]


@pytest.mark.parametrize("hops", [1, 2, 3])
def test_a_ref_that_hops_between_two_looks_is_not_settled(path: Path, hops: int) -> None:
    """It leaves each directory just before that is listed, several times in a row."""
    tap = Tap()
    with open_tapped(tap, path, durable=False) as queue, FileSampleRefQueue(path, durable=False) as other:
        other.put(refs("a"))
        other.get(1)
        left = [hops]

        def hop(name: str, args: tuple[int], _: object) -> None:
            if name == "listdir" and left[0] and names_in(path, folder_of(args[0])):
                left[0] -= 1
                move_on(other)

        tap.before = hop
        assert queue.unsettled(["a"]) == ["a"]


def move_on(queue: Queue) -> None:
    """Give back the one ref that is leased, or lease it where it is pending."""
    if not queue.get(1):
        queue.release(refs("a"))


def test_ids_of_any_kind(path: Path) -> None:
    """Long ones, which no file name holds, and odd ones; each is named once, in the order of the question."""
    odd = ["z" * 300, "a/b@c+d", "ümlaut", "."]
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs(*odd))
        queue.ack(queue.get(1))
        assert queue.unsettled([*reversed(odd), *odd]) == list(reversed(odd[1:]))
        assert queue.unsettled([]) == []
        assert ids(queue.get(9)) == odd[1:]
