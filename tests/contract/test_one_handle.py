"""The contract that every implementation keeps within one handle."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from fsqueue import Put, dp_partition
from tests.support import ids
from tests.support.implementations import LEASE_S, Implementation, make_ref, make_refs, numbered

LONG_S = 30.0


def test_put_then_get_is_fifo(any_queue: Implementation) -> None:
    """Refs come back equal, in the order in which they were put, across batches."""
    queue = any_queue.open()
    refs = numbered(10)
    queue.put(refs[:4])
    queue.put(refs[4:5])
    queue.put(refs[5:])
    assert queue.get(3) + queue.get(100) == refs


def test_get_limits_and_may_return_fewer(any_queue: Implementation) -> None:
    """A get returns at most max_refs, what there is when that is less, and nothing for zero."""
    queue = any_queue.open()
    queue.put(numbered(5))
    assert queue.get(0) == []
    assert len(queue.get(2)) == 2
    assert len(queue.get(10)) == 3


@pytest.mark.parametrize("timeout_s", [None, 0.0])
def test_get_does_not_wait(any_queue: Implementation, timeout_s: float | None) -> None:
    """Neither no timeout nor a timeout of zero waits on an empty queue."""
    queue = any_queue.open(poll_interval_s=LONG_S)
    started = time.monotonic()
    assert queue.get(1, timeout_s) == []
    assert time.monotonic() - started < LONG_S


def test_get_gives_up_after_its_timeout(any_queue: Implementation) -> None:
    """A waiting get on an empty queue returns empty, and not before its timeout."""
    queue = any_queue.open(poll_interval_s=0.01)
    started = time.monotonic()
    assert queue.get(1, timeout_s=0.1) == []
    assert time.monotonic() - started >= 0.1


def test_waiting_get_sees_a_later_put(any_queue: Implementation) -> None:
    """A get that waits returns what another thread puts meanwhile."""
    queue = any_queue.open()
    found: list[Any] = []
    entered = threading.Event()

    def consume() -> None:
        entered.set()
        found.extend(queue.get(1, timeout_s=LONG_S))

    thread = threading.Thread(target=consume)
    thread.start()
    entered.wait()
    queue.put(make_refs("late"))
    thread.join()
    assert ids(found) == ["late"]


def test_leased_refs_are_not_handed_out_again(any_queue: Implementation) -> None:
    """A lease that has not expired is invisible to get."""
    queue = any_queue.open()
    queue.put(numbered(3))
    assert len(queue.get(3)) == 3
    any_queue.clock.advance(LEASE_S - 1)
    assert queue.get(3) == []


def test_depth_and_in_flight(any_queue: Implementation) -> None:
    """depth counts pending refs, in_flight leased ones, and an acked ref is neither."""
    queue = any_queue.open()
    assert (queue.depth(), queue.in_flight()) == (0, 0)
    queue.put(numbered(5))
    assert (queue.depth(), queue.in_flight()) == (5, 0)
    leased = queue.get(3)
    assert (queue.depth(), queue.in_flight()) == (2, 3)
    queue.ack(leased[:1])
    assert (queue.depth(), queue.in_flight()) == (2, 2)


def test_ack_takes_fresh_refs(any_queue: Implementation) -> None:
    """ack goes by sample_id: a ref built anew, with other fields, settles the lease."""
    queue = any_queue.open()
    queue.put(numbered(2))
    queue.get(2)
    queue.ack([make_ref("s001", strategy="other"), make_ref("s000", num_tokens=9)])
    any_queue.clock.advance(2 * LEASE_S)
    assert queue.get(2) == []
    assert (queue.depth(), queue.in_flight()) == (0, 0)


def test_ack_of_an_unknown_id_is_a_no_op(any_queue: Implementation) -> None:
    """Acking what the queue does not know changes nothing and reports nothing as lost."""
    queue = any_queue.open()
    queue.put(numbered(1))
    assert not queue.ack(make_refs("never-put"))
    assert not queue.ack([])
    assert ids(queue.get(2)) == ["s000"]


def test_ack_twice_is_a_no_op(any_queue: Implementation) -> None:
    """A second ack of a settled ref reports nothing as lost."""
    queue = any_queue.open()
    queue.put(numbered(1))
    leased = queue.get(1)
    assert not queue.ack(leased)
    assert not queue.ack(leased)
    assert (queue.depth(), queue.in_flight()) == (0, 0)


def test_put_is_idempotent_while_pending(any_queue: Implementation) -> None:
    """An id that is pending, or twice in one batch, is queued once, as it was first put."""
    queue = any_queue.open()
    queue.put([make_ref("a", strategy="first"), make_ref("a", strategy="second")])
    queue.put([make_ref("a", strategy="third"), make_ref("b")])
    assert [(ref.sample_id, ref.strategy) for ref in queue.get(5)] == [("a", "first"), ("b", "eagle3")]


def test_put_says_how_many_it_added_and_skipped(any_queue: Implementation) -> None:
    """An id that is pending or leased, or that came before in the same call, is skipped; an empty put does nothing."""
    if any_queue.kind not in ("file", "memory"):
        pytest.skip("the contract that controllers know returns nothing")
    queue = any_queue.open()
    assert queue.put(make_refs("a", "b", "a")) == Put(added=2, skipped=1)
    queue.get(1)
    assert queue.put(make_refs("a", "b", "c")) == Put(added=1, skipped=2)
    assert queue.put(iter(make_refs("a"))) == (0, 1) and queue.put([]) == (0, 0)


def test_put_is_idempotent_while_leased(any_queue: Implementation) -> None:
    """An id that is leased is not queued a second time."""
    queue = any_queue.open()
    queue.put(make_refs("a"))
    leased = queue.get(1)
    queue.put(make_refs("a"))
    assert (queue.depth(), queue.in_flight()) == (0, 1)
    queue.ack(leased)
    assert queue.get(1) == []


def test_an_acked_id_may_be_put_again(any_queue: Implementation) -> None:
    """put is idempotent against pending and leased only: what was acked is queued anew and delivered."""
    queue = any_queue.open()
    for _ in range(3):
        queue.put(make_refs("a"))
        leased = queue.get(1)
        assert ids(leased) == ["a"]
        assert not queue.ack(leased)


def test_a_failed_id_may_be_put_again(any_queue: Implementation) -> None:
    """A ref that failed for good may be put again and is delivered."""
    queue = any_queue.open()
    queue.put(make_refs("a"))
    queue.fail(queue.get(1), "broken", retryable=False)
    queue.put(make_refs("a"))
    assert ids(queue.get(1)) == ["a"]


def test_partition_key_is_ignored(any_queue: Implementation) -> None:
    """partition_key is accepted by put and get, and changes nothing."""
    queue = any_queue.open()
    queue.put(numbered(2), partition_key="left")
    assert ids(queue.get(2, partition_key="right")) == ["s000", "s001"]


@pytest.mark.parametrize("count", [2, 3])
def test_partitions_are_disjoint_and_complete(any_queue: Implementation, count: int) -> None:
    """Each partition yields its own ids in FIFO order, and together they yield all."""
    queue = any_queue.open()
    refs = numbered(40)
    queue.put(refs)
    for index in range(count):
        expected = [ref.sample_id for ref in refs if dp_partition(ref.sample_id, count) == index]
        found = ids(queue.get(3, partition=(index, count))) + ids(queue.get(40, partition=(index, count)))
        assert found == expected
    assert queue.depth() == 0


def test_the_only_partition_is_everything(any_queue: Implementation) -> None:
    """partition=(0, 1) leases like an unpartitioned get."""
    queue = any_queue.open()
    queue.put(numbered(4))
    assert ids(queue.get(4, partition=(0, 1))) == ids(numbered(4))


def test_a_partitioned_get_does_not_wait_while_anything_is_pending(any_queue: Implementation) -> None:
    """A partitioned get returns empty at once if only other partitions' refs are pending."""
    queue = any_queue.open(poll_interval_s=LONG_S)
    mine = next(i for i in range(10) if dp_partition(f"s{i:03d}", 2) == 0)
    queue.put([make_ref(f"s{mine:03d}")])
    started = time.monotonic()
    assert queue.get(1, timeout_s=LONG_S, partition=(1, 2)) == []
    assert time.monotonic() - started < LONG_S
    assert len(queue.get(1, timeout_s=LONG_S, partition=(0, 2))) == 1


def test_partitioned_and_plain_gets_mix(any_queue: Implementation) -> None:
    """Refs that partitioned gets passed over are neither lost nor handed out twice."""
    queue = any_queue.open()
    queue.put(numbered(30))
    found = ids(queue.get(4, partition=(0, 3))) + ids(queue.get(4)) + ids(queue.get(30, partition=(1, 3)))
    queue.put(make_refs("x", "y"))
    found += ids(queue.get(2, partition=(2, 3))) + ids(queue.get(100))
    assert sorted(found) == sorted([*ids(numbered(30)), "x", "y"])


def test_retryable_fail_goes_to_the_tail(any_queue: Implementation) -> None:
    """A ref that failed retryably is delivered again, after what was pending already."""
    queue = any_queue.open()
    queue.put(numbered(3))
    queue.fail(queue.get(1), "flaky", retryable=True)
    assert (queue.depth(), queue.in_flight()) == (3, 0)
    assert ids(queue.get(3)) == ["s001", "s002", "s000"]


def test_ack_after_a_retryable_fail(any_queue: Implementation) -> None:
    """A handle that gave a ref back and then learns that it was trained settles it where it is pending."""
    queue = any_queue.open()
    queue.put(numbered(2))
    leased = queue.get(1)
    queue.fail(leased, "flaky", retryable=True)
    assert not queue.ack(leased)
    assert ids(queue.get(2)) == ["s001"]


def test_final_fail_is_gone(any_queue: Implementation) -> None:
    """A ref that failed for good is neither pending nor leased, and does not come back."""
    queue = any_queue.open()
    queue.put(numbered(2))
    queue.fail([make_ref(ref.sample_id) for ref in queue.get(1)], "broken", retryable=False)
    assert (queue.depth(), queue.in_flight()) == (1, 0)
    any_queue.clock.advance(2 * LEASE_S)
    assert ids(queue.get(2)) == ["s001"]


@pytest.mark.parametrize("retryable", [True, False])
def test_fail_of_an_unknown_id_is_a_no_op(any_queue: Implementation, retryable: bool) -> None:
    """Failing what the queue does not know changes nothing."""
    queue = any_queue.open()
    queue.put(numbered(1))
    queue.fail(make_refs("never-put"), "why", retryable=retryable)
    queue.fail([], "why", retryable=retryable)
    assert ids(queue.get(5)) == ["s000"]


def test_an_expired_lease_is_reclaimed_inside_get(any_queue: Implementation) -> None:
    """As soon as the clock has passed the lease timeout, the same handle's next get delivers the ref again."""
    queue = any_queue.open()
    queue.put(numbered(2))
    assert len(queue.get(2)) == 2
    any_queue.clock.advance(LEASE_S - 0.5)
    assert queue.get(2) == []
    any_queue.clock.advance(1.0)
    assert sorted(ids(queue.get(2))) == ["s000", "s001"]


def test_a_lease_starts_when_it_is_taken(any_queue: Implementation) -> None:
    """A ref that was pending for longer than the timeout is not expired the instant that it is leased."""
    queue = any_queue.open()
    queue.put(numbered(1))
    any_queue.clock.advance(10 * LEASE_S)
    assert len(queue.get(1)) == 1
    assert queue.get(1) == []
    assert queue.in_flight() == 1


def test_without_a_lease_timeout_nothing_expires(any_queue: Implementation) -> None:
    """lease_timeout_s=None keeps leases for good."""
    queue = any_queue.open(lease_timeout_s=None)
    queue.put(numbered(1))
    queue.get(1)
    any_queue.clock.advance(1e8)
    assert queue.get(1) == []
    assert queue.in_flight() == 1


def test_an_empty_queue_is_truthy(any_queue: Implementation) -> None:
    """``queue or default`` keeps an empty queue: there is no __len__ and no __bool__."""
    queue = any_queue.open()
    assert queue
    assert not hasattr(queue, "__len__")
    assert not hasattr(queue, "__bool__")


def test_putting_nothing(any_queue: Implementation) -> None:
    """An empty batch is accepted and changes nothing."""
    queue = any_queue.open()
    queue.put([])
    assert queue.depth() == 0
