"""Reading a queue: what status, entries and show say of files that were made by hand, and what they leave alone."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from fsqueue import FileSampleRefQueue, NotAQueueError
from fsqueue.engine.owners import describe_self
from fsqueue.operate.show import entries, show
from fsqueue.operate.status import Status, status
from tests.support import Child, Tap, lease_and_obey, numbered, ref, refs
from tests.support.other_user import as_nobody, readable_by_all

ELSEWHERE = "node9.4242.0a1b2c"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty queue."""
    FileSampleRefQueue(tmp_path / "q", lease_timeout_s=600.0, run_id="r1", durable=False).close()
    return tmp_path / "q"


def put(path: Path, *sample_ids: str) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs(*sample_ids))


def stamp(file: Path, age_s: float) -> None:
    now = time.time()
    os.utime(file, (now - age_s, now - age_s))


def lease_elsewhere(path: Path, sample_id: str, age_s: float, beat_age_s: float | None = None) -> Path:
    """A lease of a process on another host, with its record."""
    file = path / "leased" / f"{sample_id}@{ELSEWHERE}.json"
    file.write_bytes(msgspec.json.encode(ref(sample_id)))
    stamp(file, age_s)
    record = json.loads(msgspec.json.encode(describe_self(ELSEWHERE, 0.0, None)))
    record |= {
        "host": "node9",
        "pid": 4242,
        "boot_id": "another",
        "heartbeat_s": 5.0 if beat_age_s is not None else None,
    }
    (path / "owners" / f"{ELSEWHERE}.json").write_text(json.dumps(record))
    stamp(path / "owners" / f"{ELSEWHERE}.json", beat_age_s or 0.0)
    return file


def about(found: float | None, expected: float) -> bool:
    return found is not None and expected <= found < expected + 60


def test_status_of_an_empty_queue(path: Path) -> None:
    seen = status(path)
    assert seen == Status(
        queue=str(path),
        at=seen.at,
        run_id="r1",
        lease_timeout_s=600.0,
        lock="flock",
        paused=None,
        counts=(0, 0, 0, 0),  # type: ignore[arg-type]
        delayed=0,
        oldest_pending_id=None,
        oldest_pending_age_s=None,
        oldest_pending_is_estimate=False,
        oldest_lease_age_s=None,
        owners=[],
        stream=None,
    )


def test_status_counts_refs_and_nothing_else(path: Path) -> None:
    put(path, "a", "b")
    for state in ("pending", "leased", "done", "failed"):
        (path / state / ".nfs01").touch()
        (path / state / "notes.txt").touch()
    (path / "done" / "x@7.json").touch()
    (path / "failed" / "y.json").touch()
    assert status(path).counts == (2, 0, 1, 1)


def test_the_oldest_pending_ref_is_the_one_that_comes_next(path: Path) -> None:
    put(path, "z", "a")
    stamp(path / "pending" / "z.json", 100.0)
    stamp(path / "pending" / "a.json", 200.0)
    seen = status(path)
    assert (seen.oldest_pending_id, seen.oldest_pending_is_estimate) == ("z", False)
    assert about(seen.oldest_pending_age_s, 100.0)


def test_the_oldest_pending_ref_is_not_one_that_is_gone(path: Path) -> None:
    put(path, "first", "second")
    (path / "pending" / "first.json").rename(path / "done" / "first.json")
    assert status(path).oldest_pending_id == "second"


@pytest.mark.parametrize("order", [None, b"", b"\0" * 200, b"rubbish\n" * 20])
def test_where_the_order_tells_nothing_the_age_is_an_estimate(path: Path, order: bytes | None) -> None:
    put(path, "a", "b")
    stamp(path / "pending" / "b.json", 300.0)
    (path / "order.lock").unlink()
    if order is not None:
        (path / "order.lock").write_bytes(order)
    seen = status(path)
    assert (seen.oldest_pending_id, seen.oldest_pending_is_estimate) == ("b", True)
    assert about(seen.oldest_pending_age_s, 300.0)


def test_owners_with_their_leases_and_ages(path: Path) -> None:
    lease_elsewhere(path, "a", 120.0, beat_age_s=30.0)
    lease_elsewhere(path, "b", 60.0, beat_age_s=30.0)
    (owner,) = status(path).owners
    assert (owner.owner, owner.host, owner.pid, owner.process) == (ELSEWHERE, "node9", 4242, "unknown")
    assert (owner.leases, owner.heartbeat_s) == (2, 5.0)
    assert about(owner.oldest_lease_age_s, 120.0) and about(owner.heartbeat_age_s, 30.0)
    assert about(status(path).oldest_lease_age_s, 120.0)


def test_an_owner_without_a_record_is_known_by_its_lease(path: Path) -> None:
    lease_elsewhere(path, "a", 1.0)
    (path / "owners" / f"{ELSEWHERE}.json").unlink()
    (owner,) = status(path).owners
    assert (owner.host, owner.pid, owner.process, owner.leases) == (None, 4242, "unknown", 1)


def test_a_process_of_this_host_is_alive_until_it_is_killed(path: Path) -> None:
    put(path, "a")
    with Child(lease_and_obey, path, 1, {"durable": False}) as child:
        child.receive()
        assert [owner.process for owner in status(path).owners] == ["alive"]
        child.kill()
        assert [owner.process for owner in status(path).owners] == ["dead"]


def test_reading_takes_no_lock_and_writes_nothing(path: Path) -> None:
    put(path, "a", "b")
    lease_elsewhere(path, "c", 1.0, beat_age_s=1.0)
    tap = Tap()
    with tap.here():
        status(path)
        entries(path, ["pending", "leased", "done", "failed"], details=True)
        show(path, "a")
    assert not set(tap.counts) & {"write", "pwrite", "ftruncate", "fsync", "rename", "link", "unlink", "mkdir", "utime"}
    assert not set(tap.counts) & {"lock", "unlock"}


def test_status_costs_one_listing_a_directory_and_no_stat_of_what_is_pending(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(numbered(500))
    tap = Tap()
    with tap.here():
        status(path)
    assert tap.counts["listdir"] == 5
    assert tap.counts["stat"] == 2  # of the oldest, and whether the queue is paused


def test_entries_of_pending_come_in_fifo_order_and_strangers_to_the_order_last(path: Path) -> None:
    for name, age_s in (("young", 10.0), ("old", 20.0)):
        (path / "pending" / f"{name}.json").write_bytes(msgspec.json.encode(ref(name)))
        stamp(path / "pending" / f"{name}.json", age_s)
    put(path, "c", "a", "b")
    assert [entry.id for entry in entries(path, ["pending"])] == ["c", "a", "b", "old", "young"]
    assert [entry.id for entry in entries(path, ["pending"], limit=2)] == ["c", "a"]


def test_entries_that_were_requeued_come_last(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("a", "b", "c"))
        queue.fail(queue.get(1), "again", retryable=True)
    assert [entry.id for entry in entries(path, ["pending"])] == ["b", "c", "a"]


def test_entries_of_other_states_come_by_age(path: Path) -> None:
    for name, age_s in (("x", 10.0), ("y", 30.0), ("z@5", 20.0)):
        (path / "done" / f"{name}.json").write_bytes(msgspec.json.encode(ref(name)))
        stamp(path / "done" / f"{name}.json", age_s)
    found = entries(path, ["done"], details=True)
    assert [(entry.id, entry.step) for entry in found] == [("y", None), ("z", 5), ("x", None)]
    assert about(found[0].age_s, 30.0)


def test_entries_of_many_come_as_their_directory_lists_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, those that are packed or on their way into a segment, too."""
    monkeypatch.setattr("fsqueue.engine.listing._SORT_LIMIT", 4)
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(numbered(20))
        queue.ack(queue.get(8))
        queue.pack(older_than_s=0.0)
        queue.ack(queue.get(12))
    (path / "done" / "s00015.json").rename(path / "done" / "s00015.json.into-0123456789ab")
    assert sorted(entry.id for entry in entries(path, ["done"])) == [f"s{number:05d}" for number in range(20)]


@pytest.mark.parametrize(("wanted", "found"), [(ELSEWHERE, 1), ("node9", 1), ("node", 0), ("node9.4242", 0)])
def test_entries_of_one_owner_or_of_a_node(path: Path, wanted: str, found: int) -> None:
    lease_elsewhere(path, "a", 1.0)
    (path / "leased" / "b@node8.1.aaaaaa.json").write_bytes(msgspec.json.encode(ref("b")))
    assert len(entries(path, ["leased"], owner=wanted)) == found


IDS = ["a/b", "../x", ".hidden", "Ünï ✓", "x" * 1000, "line\nfeed", "\x1b[31mred", "a@b", "~", "%41"]


@pytest.mark.parametrize("sample_id", IDS)
def test_ids_are_shown_as_they_were_put_and_not_as_they_are_stored(path: Path, sample_id: str) -> None:
    put(path, sample_id)
    assert [entry.id for entry in entries(path, ["pending"])] == [sample_id]
    (detail,) = show(path, sample_id)
    assert (detail.sample_id, detail.state) == (sample_id, "pending")


def test_show_tells_all_lives_of_an_id(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        for step in (3, 4):
            queue.put(refs("a"))
            queue.ack(queue.get(1), step=step)
        queue.put(refs("a"))
        queue.fail(queue.get(1), "no good", retryable=False)
        queue.put(refs("a"))
        queue.get(1)
        found = show(path, "a")
    assert Counter((detail.state, detail.step) for detail in found) == Counter(
        [("leased", None), ("done", 3), ("done", 4), ("failed", None)]
    )
    letter = next(detail for detail in found if detail.state == "failed")
    assert (letter.reason, letter.attempts, [event.event for event in letter.history]) == ("no good", 1, ["failed"])
    held = next(detail for detail in found if detail.state == "leased")
    assert held.owner is not None and held.owner.process == "alive"
    assert held.ref is not None and held.ref["sample_id"] == "a" and "_fsqueue" not in held.ref


def test_show_of_an_unknown_id_is_empty(path: Path) -> None:
    put(path, "a")
    assert show(path, "nope") == []


def test_show_tells_what_is_wrong_with_a_file(path: Path) -> None:
    (path / "pending" / "a.json").write_bytes(b"{")
    (detail,) = show(path, "a")
    assert (detail.ref, detail.problem) == (None, "holds no JSON object")


def test_show_sees_a_moving_ref_once(path: Path) -> None:
    """The ref is claimed by somebody between the look at pending and the look at leased."""
    put(path, "a")
    tap = Tap()

    def claim(name: str, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if name == "listdir" and tap.counts["listdir"] == 2:
            (path / "pending" / "a.json").rename(path / "leased" / f"a@{ELSEWHERE}.json")

    tap.before = claim
    with tap.here():
        found = show(path, "a")
    assert [detail.state for detail in found] == ["leased"]


def test_links_are_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text('{"sample_id":"a","secret":1}')
    (path / "pending" / "a.json").symlink_to(tmp_path / "secret.json")
    os.mkfifo(path / "done" / "a.json")
    (path / "failed" / "a.json").mkdir()
    assert [detail.ref for detail in show(path, "a") if detail.ref] == []
    entries(path, ["pending", "done", "failed"], details=True)


def test_what_is_no_queue_is_refused_and_left_alone(tmp_path: Path) -> None:
    for look in (lambda: status(tmp_path), lambda: entries(tmp_path, ["pending"]), lambda: show(tmp_path, "a")):
        with pytest.raises(NotAQueueError):
            look()
    assert os.listdir(tmp_path) == []


def test_a_queue_of_another_user_can_be_read(path: Path) -> None:
    put(path, "a", "b")
    lease_elsewhere(path, "c", 5.0, beat_age_s=2.0)
    with readable_by_all(path) as public, Child(as_nobody, _read, public) as child:
        assert child.receive() == ((2, 1, 0, 0), ["a", "b"], ["pending"])


def _read(path: Path) -> tuple[object, ...]:
    listed = [entry.id for entry in entries(path, ["pending"], details=True)]
    return tuple(status(path).counts), listed, [detail.state for detail in show(path, "a")]
