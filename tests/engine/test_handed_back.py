"""A lease that was taken over for its time, and handed back once its owner had called it lost, is nobody's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from tests.support import Queue, assert_clean, names_in, ref


def look(queue: Queue, held: list[object]) -> list[str]:
    return queue.renew(held)  # type: ignore[arg-type]


def ack(queue: Queue, held: list[object]) -> list[str]:
    return queue.ack(held)  # type: ignore[arg-type]


@pytest.mark.parametrize("miss", [look, ack])
def test_a_lease_that_comes_back_after_its_owner_has_missed_it_is_given_back(
    tmp_path: Path, miss: Callable[[Queue, list[object]], list[str]]
) -> None:
    """Its owner beats, so that it would never expire; and its owner works on it no more."""
    path = tmp_path / "q"
    with (
        FileSampleRefQueue(path, durable=False, lease_timeout_s=60, heartbeat_s=5) as owner,
        FileSampleRefQueue(path, durable=False) as other,
    ):
        owner.put([ref("x")])
        held = list(owner.get(1))
        (name,) = names_in(path, "leased")
        (path / "leased" / name).rename(path / "leased" / f"x@{other.owner}+1t.json")
        assert miss(owner, list(held)) == ["x"]
        (path / "leased" / f"x@{other.owner}+1t.json").rename(path / "leased" / name)
        assert other.reclaim() == 0
        assert owner.reclaim() == 1
        assert names_in(path, "pending") == ["x.json"]
        assert owner.ack(held) == ["x"] and owner.counts() == (1, 0, 0, 0)
        assert other.ack(other.get(1)) == []
    assert_clean(path)
