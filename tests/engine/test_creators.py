"""Several processes make a directory at once: one that was stopped meanwhile finds what the others have made of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileMetadataStore, FileSampleRefQueue, NotAQueueError
from fsqueue.control.errors import LedgerFormatError
from fsqueue.features import FeatureStoreError, SharedDirFeatureStore
from tests.support import Tap, refs
from tests.support.features import publish


def work_in_queue(queue: FileSampleRefQueue[Any]) -> None:
    with queue.producer("rollout-0"):
        queue.put(refs("a"))


def open_queue(path: Path) -> FileSampleRefQueue[Any]:
    return FileSampleRefQueue(path, durable=False)


def open_store(path: Path) -> SharedDirFeatureStore:
    return SharedDirFeatureStore(path, durable=False)


def open_ledger(path: Path) -> FileMetadataStore[Any]:
    return FileMetadataStore(path, durable=False)


@pytest.mark.parametrize(
    "make, work, calls",
    [
        (open_queue, work_in_queue, ("listdir", "mkdir", "open")),
        (open_store, lambda store: publish(store, 1), ("listdir", "mkdir", "open")),
        (open_ledger, lambda ledger: ledger.commit_samples(refs("a")), ("listdir",)),
    ],
    ids=["queue", "store", "ledger"],
)
def test_a_creator_that_is_stopped_goes_on_in_what_another_has_made(
    tmp_path: Path, make: Callable[[Path], Any], work: Callable[[Any], object], calls: tuple[str, ...]
) -> None:
    """Before whichever look of its it was stopped, and whatever the other one has put there since."""

    def is_stopped_before(number: int) -> bool:
        path, tap, met = tmp_path / str(number), Tap(), [0]

        def let_another_work(name: str, args: Any, kwargs: Any) -> None:
            met[0] += name in calls
            if met[0] == number + 1 and name in calls:
                with make(path) as other:
                    work(other)

        tap.before = let_another_work
        with tap.here(), make(path):
            tap.before = None
        return met[0] > number

    number = 0
    while is_stopped_before(number):
        number += 1
    assert number > 0


@pytest.mark.parametrize(
    "make, error",
    [(open_queue, NotAQueueError), (open_store, FeatureStoreError), (open_ledger, LedgerFormatError)],
)
def test_what_nobody_has_made_is_still_refused(
    tmp_path: Path, make: Callable[[Path], Any], error: type[Exception]
) -> None:
    (tmp_path / "stranger").write_text("x")
    with pytest.raises(error, match="stranger"):
        make(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["stranger"]
