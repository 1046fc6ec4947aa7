"""The contract between handles: two over one path stand for two processes."""

from __future__ import annotations

import threading
from typing import Any

from tests.support import ids
from tests.support.implementations import LEASE_S, Implementation, make_ref, make_refs, numbered


def test_another_handle_sees_a_put_at_once(shared_queue: Implementation) -> None:
    """A handle counts and leases in its very next call what another has put, also right after an empty get."""
    producer, consumer = shared_queue.open(), shared_queue.open()
    for round_number in range(3):
        assert consumer.get(1) == []
        producer.put(make_refs(f"s{round_number}"))
        assert consumer.depth() == 1
        assert ids(consumer.get(1)) == [f"s{round_number}"]
        assert (producer.depth(), producer.in_flight()) == (0, round_number + 1)


def test_a_lease_excludes_other_handles(shared_queue: Implementation) -> None:
    """Two handles never lease the same ref, and together they get all in FIFO order."""
    left, right = shared_queue.open(), shared_queue.open()
    left.put(numbered(10))
    found = [ids((left, right)[i % 2].get(1)) for i in range(12)]
    assert [sample_id for batch in found for sample_id in batch] == ids(numbered(10))


def test_put_is_idempotent_between_handles(shared_queue: Implementation) -> None:
    """An id that one handle has pending or leased is skipped by another handle's put."""
    left, right = shared_queue.open(), shared_queue.open()
    left.put(make_refs("a", "b"))
    assert ids(left.get(1)) == ["a"]
    right.put(make_refs("b", "a", "c"))
    assert (right.depth(), right.in_flight()) == (2, 1)
    assert ids(right.get(5)) == ["b", "c"]


def test_ack_by_a_handle_that_never_leased(shared_queue: Implementation) -> None:
    """A restarted controller settles by id what another handle leased, and nothing is reported as lost."""
    trainer, controller = shared_queue.open(), shared_queue.open()
    trainer.put(numbered(2))
    trainer.get(2)
    assert not controller.ack(make_refs("s000", "s001"))
    assert (trainer.depth(), trainer.in_flight()) == (0, 0)
    shared_queue.clock.advance(2 * LEASE_S)
    assert trainer.get(2) == []


def test_ack_of_a_pending_ref(shared_queue: Implementation) -> None:
    """A ref that a ledger knows as trained is settled though it is pending again."""
    left, right = shared_queue.open(), shared_queue.open()
    left.put(numbered(2))
    left.fail(left.get(1), "flaky", retryable=True)
    assert not right.ack(make_refs("s000"))
    assert ids(left.get(2)) == ["s001"]


def test_fail_by_a_handle_that_never_leased(shared_queue: Implementation) -> None:
    """Another handle's fail settles a lease by id, retryable or not."""
    trainer, controller = shared_queue.open(), shared_queue.open()
    trainer.put(numbered(2))
    trainer.get(2)
    controller.fail(make_refs("s000"), "flaky", retryable=True)
    controller.fail(make_refs("s001"), "broken", retryable=False)
    assert (trainer.depth(), trainer.in_flight()) == (1, 0)
    assert ids(trainer.get(2)) == ["s000"]


def test_a_new_handle_finds_everything(shared_queue: Implementation) -> None:
    """Closing all handles and opening another one keeps pending refs, leases and order."""
    first = shared_queue.open()
    first.put(numbered(4))
    leased = first.get(1)
    first.close()
    second = shared_queue.open()
    assert (second.depth(), second.in_flight()) == (3, 1)
    second.ack(leased)
    assert ids(second.get(4)) == ["s001", "s002", "s003"]


def test_another_handle_reclaims(shared_queue: Implementation) -> None:
    """A lease that expires comes back through whichever handle gets next."""
    lost, other = shared_queue.open(), shared_queue.open()
    lost.put(numbered(2))
    lost.get(2)
    assert other.get(2) == []
    shared_queue.clock.advance(LEASE_S + 1)
    assert sorted(ids(other.get(2))) == ["s000", "s001"]
    assert lost.get(2) == []


def test_racing_handles_share_the_refs(shared_queue: Implementation) -> None:
    """Handles that put, get and ack at once lease every ref exactly once between them."""
    count, each = 4, 60
    queues = [shared_queue.open() for _ in range(count)]
    barrier = threading.Barrier(count)
    found: list[list[str]] = [[] for _ in range(count)]
    errors: list[BaseException] = []

    def work(index: int, queue: Any) -> None:
        try:
            barrier.wait()
            for number in range(each):
                queue.put([make_ref(f"t{index}-{number}")])
                leased = queue.get(2)
                found[index] += ids(leased)
                queue.ack(leased)
            while leased := queue.get(7):
                found[index] += ids(leased)
                queue.ack(leased)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i, queue)) for i, queue in enumerate(queues)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    delivered = [sample_id for part in found for sample_id in part] + ids(queues[0].get(1000))
    assert sorted(delivered) == sorted(f"t{i}-{n}" for i in range(count) for n in range(each))
