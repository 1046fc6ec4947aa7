"""What a process counts of its own doing, and how Prometheus reads it."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from fsqueue import FileSampleRefQueue, QueueClosedError
from fsqueue.engine.counters import Counters
from fsqueue.operate.process import ProcessMetrics, process_counters
from tests.support import Child, in_fork, lease_and_obey, numbered, refs


@pytest.fixture
def queue(tmp_path: Path) -> Any:
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=60.0, durable=False) as queue:
        yield queue


def counted(queue: Any) -> dict[Any, float]:
    return {what: number for what, number in process_counters(queue).items() if number}


def test_each_call_counts_what_it_did(queue: Any) -> None:
    queue.put([*numbered(10), *refs("n-00001")])
    queue.put(numbered(2))
    held = queue.get(6)
    queue.ack(held[:2])
    queue.fail(held[2:3], "again", retryable=True)
    queue.fail(held[3:4], "no good", retryable=False)
    queue.release(held[4:])
    found = counted(queue)
    assert found.pop("put") in (10, 11) and found.pop("skipped") == 2
    assert found == {"leased": 6, "acked": 2, "failed": 2, "dead": 1, "released": 2}


def test_what_a_dead_process_held_is_counted_as_reclaimed_and_a_late_settler_s_as_lost(queue: Any) -> None:
    queue.put(refs("a", "b"))
    with Child(lease_and_obey, queue.path, 1, {"durable": False}) as child:
        child.receive()
        child.kill()
    assert queue.reclaim() == 1
    (mine,) = queue.get(1)
    for lease in os.listdir(os.path.join(queue.path, "leased")):
        os.unlink(os.path.join(queue.path, "leased", lease))
    assert queue.ack([mine]) == [mine.sample_id]
    found = counted(queue)
    assert (found["reclaimed"], found["lost"]) == (1, 1) and "acked" not in found


def test_a_lock_that_others_hold_is_counted_with_the_time_it_took(queue: Any, tmp_path: Path) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False) as other:
        before = counted(queue).get("lock_waits", 0)
        inside = threading.Event()

        def hold() -> None:
            with other.handle.order_file.surely:
                inside.set()
                time.sleep(0.2)

        holder = threading.Thread(target=hold)
        holder.start()
        assert inside.wait(60)
        queue.put(refs("a"))
        holder.join()
        found = counted(queue)
        assert found["lock_waits"] == before + 1 and found["lock_wait_s"] > 0
        assert "lock_not_had" not in found


def test_threads_lose_no_count() -> None:
    counters = Counters()

    def count() -> None:
        for _ in range(10_000):
            counters.add("acked")

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert counters.read()["acked"] <= 80_000
    for thread in threads:
        thread.join()
    assert counters.read()["acked"] == 80_000


def test_a_child_counts_for_itself(queue: Any) -> None:
    queue.put(refs("a", "b"))

    def child() -> None:
        assert counted(queue) == {}
        queue.get(1)
        assert counted(queue) == {"leased": 1}

    in_fork(child)
    assert counted(queue) == {"put": 2}


def test_a_collector_keeps_no_queue_object_alive(tmp_path: Path) -> None:
    queue = FileSampleRefQueue(tmp_path / "q", durable=False)
    queue.put(refs("a"))
    alive, metrics = weakref.ref(queue), ProcessMetrics(queue)
    del queue
    gc.collect()
    assert alive() is None
    samples = [sample for family in metrics.collect() for sample in family.samples]
    assert max(sample.value for sample in samples) == 1


def test_prometheus_reads_it_and_counters_never_go_back(tmp_path: Path) -> None:
    registry, metrics = CollectorRegistry(), ProcessMetrics()
    registry.register(metrics)
    path = str(tmp_path / "q")

    def scraped() -> dict[str, float]:
        text = generate_latest(registry).decode()  # type: ignore[no-untyped-call]
        families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        samples = [sample for family in families for sample in family.samples]
        assert all(sample.labels["queue"] == path for sample in samples)
        labelled = {
            " ".join([sample.name, *(v for k, v in sample.labels.items() if k != "queue")]): sample.value
            for sample in samples
        }
        return {name: value for name, value in labelled.items() if value}

    with FileSampleRefQueue(path, durable=False) as first:
        metrics.add(first)
        first.put(refs("a", "b"))
        first.ack(first.get(1))
    with FileSampleRefQueue(path, durable=False) as second:
        metrics.add(second)
        assert "fsqueue_process_settled_refs_total acked" in scraped()
        second.ack(second.get(1))
        assert scraped() == {
            "fsqueue_process_put_refs_total added": 2,
            "fsqueue_process_leased_refs_total": 2,
            "fsqueue_process_settled_refs_total acked": 2,
        }
    assert scraped()["fsqueue_process_leased_refs_total"] == 2
    with pytest.raises(QueueClosedError):
        process_counters(first)
