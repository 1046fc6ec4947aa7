"""A ref that failed waits for its time before it comes again, and a queue's settings change while it is used."""

from __future__ import annotations

import errno
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, InvalidArgumentError, QueueConfigError, QueueReplacedError, SampleRef
from fsqueue.engine import expire
from fsqueue.engine.renewing import Renewer
from fsqueue.engine.settings import LONGEST_DELAY_S, Retry
from fsqueue.format import names
from fsqueue.operate.check import check_queue, repair
from fsqueue.operate.requeue import requeue
from tests.support import (
    Child,
    FakeClock,
    Queue,
    Tap,
    assert_clean,
    backdate,
    content,
    ids,
    lease_and_obey,
    names_in,
    numbered,
    open_tapped,
    refs,
    two_handles,
    wait_until,
)


def failed(queue: Queue, *sample_ids: str, delay_s: float | None = 30.0) -> None:
    queue.put(refs(*sample_ids))
    assert queue.fail(queue.get(len(sample_ids)), "no features yet", retryable=True, delay_s=delay_s) == []


def test_a_ref_that_failed_comes_again_once_its_time_is_up(path: Path) -> None:
    """Not before, by nobody, and then at the tail, with its attempt counted; meanwhile it shows in leased/."""
    clock = FakeClock()
    queue, other = two_handles(path, clock, lease_timeout_s=None)
    failed(queue, "late")
    (name,) = names_in(path, "leased")
    assert name.startswith("late@retry.0.000000+") and name.endswith("w1030000.json")
    other.put(refs("first", "second"))
    clock.advance(29.9)
    assert ids(other.get(1)) == ["first"] and other.in_flight() == 2
    assert queue.put(refs("late")) == (0, 1), "it is in the queue"
    clock.advance(0.2)
    assert ids(queue.get(5)) == ["second", "late"]
    assert content(path / "leased" / names_in(path, "leased")[1])["_fsqueue"]["attempts"] == 1
    assert_clean(path)


@pytest.mark.parametrize("again", [True, False])
def test_a_late_ack_ends_a_ref_that_waits(path: Path, again: bool) -> None:
    """As it ends one that is pending again, for the lease that failed; an explicit failure for good does, too."""
    clock = FakeClock()
    queue, other = two_handles(path, clock)
    failed(queue, "a", "b", delay_s=3_600.0)
    if again:
        assert queue.ack(refs("a"), step=3) == []
        assert queue.fail(refs("b"), "for good", retryable=False) == []
        assert names_in(path, "done") == ["a@3.json"] and names_in(path, "failed") == ["b.json"]
    else:
        other.put(refs("c"))
        assert other.ack(other.get(1)) == other.release(refs("a")) == []
        assert queue.release(refs("b")) == [] and queue.states(["b"]) == {"b": "leased"}, "it was given back before"
    assert_clean(path)


def test_a_late_ack_ends_no_later_life_that_waits(path: Path) -> None:
    """The ref was requeued since, leased by another handle, and failed there."""
    clock = FakeClock()
    queue, other = two_handles(path, clock)
    queue.put(refs("a"))
    mine = queue.get(1)
    queue.fail(mine, "broken", retryable=False)
    assert [each.moved for each in requeue(str(path), ["a"])] == [True]
    other.fail(other.get(1), "not yet", retryable=True, delay_s=3_600.0)
    queue.ack(mine)
    assert queue.counts() == (0, 1, 0, 0)


@pytest.mark.parametrize(
    "given", [{"retry_backoff": 3.0}, {"retry_jitter": 0.5}, {"retry_backoff": 3.0, "create": False}]
)
def test_how_a_wait_grows_means_nothing_without_one(path: Path, given: Any) -> None:
    with pytest.raises(QueueConfigError, match="retry_delay_s"):
        FileSampleRefQueue(path, **given)
    assert not path.exists()


def test_what_a_killed_configure_or_pause_leaves_is_removed_by_a_repair(path: Path, queue: Queue) -> None:
    """Once it is old: before that, somebody may be about to rename it."""
    names_there = [".fsqueue.json.4711.0123456789ab", ".paused.json.4711.0123456789ab"]
    for name in names_there:
        (path / name).write_bytes(b"{}")
    assert repair(path) == [] and all((path / name).exists() for name in names_there)
    for name in names_there:
        backdate(path / name, 7_200.0)
    assert sorted(each.kind for each in check_queue(path, notes=True)) == ["leftover", "leftover"]
    repair(path)
    assert not any((path / name).exists() for name in names_there)
    assert_clean(path)


def test_nobody_holds_a_ref_that_waits(path: Path) -> None:
    """The lease timeout, its owner's heartbeat, death and close have no part in it."""
    clock = FakeClock()
    queue, other = two_handles(path, clock, lease_timeout_s=5.0)
    failed(queue, "a", "b")
    assert queue.release_all() == 0 and queue.renew(refs("a")) == ["a"]
    queue.close()
    clock.advance(20.0)
    assert other.reclaim() == 0 and other.get(5) == []
    clock.advance(11.0)
    other.reclaim()
    assert names_in(path, "pending") == ["a.json", "b.json"] and names_in(path, "leased") == []
    for name in names_in(path, "pending"):
        history = [event["event"] for event in content(path / "pending" / name)["_fsqueue"]["history"]]
        assert history == ["failed"], "its waiting is no lease that expired"


def test_a_stream_is_not_drained_while_a_ref_waits(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        with queue.producer("p"):
            failed(queue, "a", delay_s=0.2)
        assert not queue.drained()
        assert ids(queue.get(1, 30.0)) == ["a"], "a get that waits is woken"
        queue.ack(refs("a"))
        wait_until(queue.drained, "the end")


def test_it_survives_the_kill_of_whoever_failed_it(path: Path) -> None:
    """A process that is killed right after: the ref still waits for its time, on this host too, and comes then."""
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("a"))
        with Child(fail_and_wait, path) as child:
            assert child.receive() == []
            child.kill()
        assert queue.get(1) == [] and queue.reclaim() == 0
        assert ids(queue.get(1, 30.0)) == ["a"]


def fail_and_wait(pipe: Any, path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        pipe.send(queue.fail(queue.get(1), "later", True, delay_s=2.0))
        pipe.recv()


def test_an_ack_by_id_ends_it_and_an_operator_brings_it_back(path: Path) -> None:
    clock = FakeClock()
    queue, other = two_handles(path, clock)
    failed(queue, "a", "b")
    assert other.ack(refs("a")) == [] and names_in(path, "done") == ["a.json"]
    from tests.support.program import run

    assert run("release", path, "--owner", "retry").stdout == "b\n"
    assert names_in(path, "pending") == ["b.json"]
    assert_clean(path)


def test_what_people_see_of_it(path: Path) -> None:
    """In status and ls, which say so, and in `ls` of the directory."""
    from tests.support.program import run

    with FileSampleRefQueue(path, durable=False) as queue:
        failed(queue, "a", "b", delay_s=3000.0)
        queue.put(refs("c"))
        queue.get(1)
        status = run("status", path).stdout
        assert "wait to be tried again" in status and json.loads(run("status", path, "--json").stdout)["delayed"] == 2
        assert [owner["leases"] for owner in json.loads(run("status", path, "--json").stdout)["owners"]] == [1]
        listed = run("ls", path, "--state", "leased", "--long").stdout
        assert listed.count("comes again in 5") == 2 or listed.count("comes again in 49") == 2, listed


def test_what_programs_read_of_the_settings_has_always_the_same_keys(path: Path) -> None:
    from tests.support.program import run

    FileSampleRefQueue(path).close()
    before = json.loads(run("config", path, "--json").stdout)
    after = json.loads(run("config", path, "--lease-timeout", "1m", "--retry-delay", "5s", "--json").stdout)
    assert before.keys() == after.keys() and before["retry"].keys() == after["retry"].keys()
    assert (before["lease_timeout_s"], after["lease_timeout_s"], after["retry"]["first_s"]) == (None, 60.0, 5.0)


def test_idle_consumers_pay_nothing_for_refs_that_wait(path: Path) -> None:
    """Known once, they are looked at when their time comes: hundreds cost a waiting get no operation more."""

    def operations(waiting: int) -> int:
        tap = Tap()
        queue = open_tapped(tap, path.with_name(f"q{waiting}"), durable=False)
        failed(queue, *ids(numbered(waiting)), delay_s=3600.0)
        queue.get(1)
        now = tap.ops.monotonic()
        tap.ops.monotonic = lambda: now  # so that no round is due in the one run, and none in the other
        tap.counts.clear()
        for _ in range(5):
            queue.get(1)
        return tap.counts.total()

    assert operations(300) <= operations(1) + 2


def test_the_queue_s_own_waits_grow(path: Path) -> None:
    """By the settings that it was made with, which another handle goes by; an explicit delay takes their place."""
    clock = FakeClock()
    queue, other = two_handles(path, clock, retry_delay_s=10.0, retry_backoff=3.0, retry_jitter=0.0)
    assert json.loads((path / "fsqueue.json").read_bytes())["retry"] == {"first_s": 10.0, "backoff": 3.0, "jitter": 0.0}
    for wait_s in (10, 30, 90):
        failed(other, "a", delay_s=None)
        lease = names.parse_leased(names_in(path, "leased")[0])
        assert lease is not None and lease.due == pytest.approx(clock.now + wait_s, abs=0.002)
        clock.advance(wait_s + 0.1)
        queue.reclaim()
    failed(queue, "a", delay_s=0.0)
    assert names_in(path, "pending") == ["a.json"]


def test_waits_are_bounded_and_come_apart() -> None:
    retry = Retry(first_s=2.0, backoff=2.0, jitter=0.5)
    assert [retry.delay_s(attempts, 0.0) for attempts in (0, 1, 2, 3)] == [2.0, 2.0, 4.0, 8.0]
    assert retry.delay_s(1, 1.0) == 3.0 and retry.delay_s(10_000, 1.0) == LONGEST_DELAY_S
    assert Retry().delay_s(5, 1.0) == 0.0
    assert Retry(first_s=1.0, backoff=1e300).delay_s(3, 1.0) == LONGEST_DELAY_S, "beyond all floats"


@pytest.mark.parametrize("value", [-1, "3", float("nan"), LONGEST_DELAY_S + 1, True])
def test_a_delay_that_can_mean_nothing(path: Path, queue: Queue, value: Any) -> None:
    queue.put(refs("a"))
    with pytest.raises(InvalidArgumentError, match="delay_s"):
        queue.fail(queue.get(1), "x", True, delay_s=value)
    assert queue.in_flight() == 1


def test_the_longest_ids_and_owners_wait_as_well(path: Path) -> None:
    """The name of a ref that waits is no longer than that of a lease."""
    with FileSampleRefQueue(path, owner="o" * 64, durable=False) as queue:
        failed(queue, "i" * 160, "é" * 300, delay_s=0.2)
        assert len(names_in(path, "leased")) == 2
        wait_until(lambda: queue.reclaim() == 0 and queue.depth() == 2, "both")


def test_names_that_wait_are_parsed() -> None:
    lease = names.parse_leased("a@retry.0.000000+1f00ab12w1700000000123.json")
    assert lease is not None and lease.due == 1_700_000_000.123 and not lease.is_held
    plain = names.parse_leased("a@n.1.0a1b2c+1f.json")
    assert plain is not None and plain.due is None and plain.is_held


def test_a_longer_timeout_is_heeded_before_any_lease_ends(path: Path) -> None:
    """A handle that was opened under a shorter one reads the settings anew before it takes anything away."""
    clock = FakeClock()
    queue, other = two_handles(path, clock, lease_timeout_s=60.0)
    queue.put(refs("a"))
    queue.get(1)
    assert queue.configure(lease_timeout_s=600.0).lease_timeout_s == 600.0
    clock.advance(100.0)
    assert other.reclaim() == 0 and other.lease_timeout_s == 600.0
    clock.advance(501.0)
    assert other.reclaim() == 1
    assert_clean(path)


def test_a_shorter_timeout_leaves_time_to_hear_of_it(path: Path) -> None:
    """What was leased under the former one may rely on it for as long again; afterwards the new one holds."""
    clock = FakeClock()
    queue, other = two_handles(path, clock, lease_timeout_s=600.0)
    queue.put(refs("a", "b"))
    queue.get(1)
    other.configure(lease_timeout_s=10.0)
    clock.advance(500.0)
    assert other.reclaim() == 0
    clock.advance(101.0)
    assert other.reclaim() == 1
    assert len(queue.get(1)) == 1
    clock.advance(10.1)
    assert other.reclaim() == 1


def test_a_second_change_leaves_the_first_one_s_time(path: Path) -> None:
    """A lease of before both may rely on its own timeout still, though the one in between was shorter."""
    clock = FakeClock()
    queue, other = two_handles(path, clock, lease_timeout_s=600.0)
    queue.put(refs("a"))
    queue.get(1)
    for timeout_s in (10.0, 20.0):
        other.configure(lease_timeout_s=timeout_s)
        clock.advance(1.0)
    clock.advance(500.0)
    assert other.reclaim() == 0
    clock.advance(101.0)
    assert other.reclaim() == 1


def test_a_queue_without_an_id_stays_the_same_one(path: Path, queue: Queue) -> None:
    """One that was made without a queue_id is told by what never changes, also by a copy of before a change."""
    settings = json.loads((path / "fsqueue.json").read_bytes())
    del settings["queue_id"]
    (path / "fsqueue.json").write_text(json.dumps(settings))
    with FileSampleRefQueue(path, durable=False) as old:
        copied = pickle.dumps(old)
        old.configure(lease_timeout_s=60.0)
        with pickle.loads(copied) as copy:
            assert copy.lease_timeout_s == 60.0
    settings["created_at"] += 1.0
    (path / "fsqueue.json").write_text(json.dumps(settings))
    with pytest.raises(QueueReplacedError):
        pickle.loads(copied)


@pytest.mark.parametrize(
    "damage", [{"lease_timeout_s": 0.0}, {"retry": {"first_s": -1.0}}, {"format": 99}, {"lock": 7}]
)
def test_settings_that_were_damaged_by_hand_are_not_taken_up(path: Path, queue: Queue, damage: dict[str, Any]) -> None:
    """What was read before holds, for gets and for whoever renews."""
    settings = json.loads((path / "fsqueue.json").read_bytes())
    (path / "fsqueue.json").write_text(json.dumps(settings | damage))
    assert not queue.handle.layout.reread()
    assert queue.lease_timeout_s is None


def test_other_retries_than_the_queue_s_are_told_in_the_caller_s_words(path: Path) -> None:
    FileSampleRefQueue(path, retry_delay_s=5.0).close()
    with pytest.raises(
        QueueConfigError, match=r"created with retry_delay_s=5\.0.*asks for 6\.0: leave retry_delay_s out"
    ):
        FileSampleRefQueue(path, retry_delay_s=6.0)


def test_leases_that_never_ended_can_be_made_to(path: Path) -> None:
    clock = FakeClock()
    queue, other = two_handles(path, clock, lease_timeout_s=None)
    queue.put(refs("a"))
    queue.get(1)
    other.configure(lease_timeout_s=5.0)
    clock.advance(61.0)
    assert other.reclaim() == 1 and queue.ack(refs("a")) == ["a"]
    assert other.configure(lease_timeout_s=None).lease_timeout_s is None


def test_others_hear_of_a_change_by_themselves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expire, "SETTINGS_S", 0.0)
    queue = FileSampleRefQueue(path, durable=False)
    with FileSampleRefQueue(path, durable=False) as other:
        queue.configure(lease_timeout_s=60.0, retry_delay_s=5.0)
        other.reclaim()
        assert other.lease_timeout_s == 60.0 and other.settings.retry.first_s == 5.0
    with (
        FileSampleRefQueue(path, lease_timeout_s=60.0) as third,
        pytest.raises(QueueConfigError, match="fsqueue config"),
    ):
        FileSampleRefQueue(path, lease_timeout_s=61.0)
    assert third.settings == queue.settings
    queue.close()


@pytest.mark.parametrize(
    "change",
    [
        {"lease_timeout_s": 0.0},
        {"lease_timeout_s": "x"},
        {"retry_delay_s": -1.0},
        {"retry_backoff": 0.5},
        {"retry_jitter": "a"},
    ],
)
def test_a_change_that_can_mean_nothing_changes_nothing(path: Path, queue: Queue, change: dict[str, Any]) -> None:
    before = (path / "fsqueue.json").read_bytes()
    with pytest.raises((QueueConfigError, InvalidArgumentError)):
        queue.configure(**change)
    assert (path / "fsqueue.json").read_bytes() == before


def test_a_timeout_too_short_for_a_living_heart_is_refused(path: Path) -> None:
    FileSampleRefQueue(path, lease_timeout_s=60.0, durable=False).close()
    options = {"heartbeat_s": 20.0, "durable": False}
    with Child(lease_and_obey, path, 1, options) as child, FileSampleRefQueue(path, durable=False) as queue:
        child.receive()
        queue.put(refs("a"))
        child.send("get")
        assert child.receive() == ["a"]
        with pytest.raises(QueueConfigError, match="beats every 20 s"):
            queue.configure(lease_timeout_s=30.0)
        assert queue.configure(lease_timeout_s=45.0).lease_timeout_s == 45.0
        child.kill()
        assert queue.configure(lease_timeout_s=30.0).lease_timeout_s == 30.0


def test_a_heart_that_has_not_begun_to_beat_keeps_pace(path: Path) -> None:
    """A handle without a record cannot be asked: it beats twice in the new timeout once it leases."""
    with (
        FileSampleRefQueue(path, lease_timeout_s=60.0, durable=False, heartbeat_s=30.0) as slow,
        FileSampleRefQueue(path, durable=False) as queue,
    ):
        queue.put(refs("a"))
        queue.configure(lease_timeout_s=1.0)
        assert len(slow.get(1)) == 1
        assert content(path / "owners" / f"{slow.owner}.json")["heartbeat_s"] == 0.5 and slow.handle.awake.gap_s == 0.25


def test_changes_at_the_same_time_both_hold(path: Path) -> None:
    handles = [FileSampleRefQueue(path, durable=False) for _ in range(2)]
    changes: list[Callable[[], Any]] = [
        lambda: handles[0].configure(lease_timeout_s=77.0),
        lambda: handles[1].configure(retry_delay_s=7.0),
    ]
    threads = [threading.Thread(target=change) for change in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with FileSampleRefQueue(path) as queue:
        assert (queue.lease_timeout_s, queue.settings.retry.first_s) == (77.0, 7.0)
    for handle in handles:
        handle.close()


def test_a_renewer_goes_by_a_timeout_that_becomes_shorter(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was to renew in an hour, or never, does so in time."""
    from fsqueue.engine import renewing

    monkeypatch.setattr(renewing, "_LOOK_S", 0.01)
    renewed = threading.Event()
    with FileSampleRefQueue(path, durable=False) as queue, FileSampleRefQueue(path, durable=False) as other:
        queue.put(refs("a"))
        batch = queue.get(1)
        renewer: Renewer[SampleRef] = Renewer(queue, lambda: renewed.set() or batch)  # type: ignore[func-returns-value]
        renewer.start()
        other.configure(lease_timeout_s=0.4)
        assert renewed.wait(60.0)
        renewer.stop()


def test_a_renewer_renews_where_the_settings_cannot_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount that is out of reach is reached anew by a renewal, which comes when it is due, and not in a hurry."""
    from fsqueue.engine import renewing

    monkeypatch.setattr(renewing, "_LOOK_S", 0.01)
    renewals: list[float] = []
    with FileSampleRefQueue(path, durable=False, lease_timeout_s=0.4) as queue:
        queue.put(refs("a"))
        batch = queue.get(1)

        def out_of_reach() -> bool:
            raise OSError(errno.ESTALE, "stale")

        monkeypatch.setattr(queue.handle.layout, "reread", out_of_reach)
        renewer: Renewer[SampleRef] = Renewer(queue, lambda: renewals.append(0.0) or batch)  # type: ignore[func-returns-value]
        renewer.start()
        wait_until(lambda: len(renewals) >= 2, "two renewals")
        renewer.stop()
