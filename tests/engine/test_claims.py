"""Each lease has an identity: a settlement touches the life of the ref, and the claim on it, that it belongs to."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.engine.held import Claim, Held
from fsqueue.operate.operator import release
from fsqueue.operate.requeue import requeue
from tests.support import (
    Child,
    FakeClock,
    Queue,
    Tap,
    assert_clean,
    backdate,
    content,
    folder_of,
    holders_in,
    ids,
    lease_and_obey,
    lease_name,
    names_in,
    open_tapped,
    ref,
    refs,
    two_handles,
)

ENDS: dict[str, Callable[[Queue, list[SampleRef]], list[str]]] = {
    "ack": lambda queue, late: queue.ack(late, step=1),
    "fail": lambda queue, late: queue.fail(late, "late", retryable=True),
    "fail for good": lambda queue, late: queue.fail(late, "late", retryable=False),
    "release": lambda queue, late: queue.release(late),
    "renew": lambda queue, late: queue.renew(late),
}


def second_life(path: Path, clock: FakeClock) -> tuple[Queue, Queue, list[SampleRef]]:
    """A has lost its lease on s, B has acknowledged it, and s was put again by B."""
    a, b = two_handles(path, clock)
    a.put(refs("s"))
    late = a.get(1)
    clock.now += 61.0
    b.ack(b.get(1), step=1)
    b.put([ref("s", feature_store_uri="file:///second")])
    return a, b, late


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("anew", [False, True], ids=["the ref", "one built anew"])
def test_a_late_end_leaves_the_next_life_alone(path: Path, end: str, anew: bool) -> None:
    """A ref that was put again is delivered with its new content, whatever a lease on its earlier life comes to."""
    a, b, late = second_life(path, FakeClock())
    assert ENDS[end](a, refs("s") if anew else late) == ["s"]
    assert names_in(path, "pending") == ["s.json"] and names_in(path, "failed") == []
    assert [each.feature_store_uri for each in b.get(1)] == ["file:///second"]


def test_a_late_ack_by_id_leaves_the_next_life_alone(path: Path) -> None:
    """A handle that never leased a ref does not end one that was put and not delivered yet."""
    clock = FakeClock()
    _, b, _ = second_life(path, clock)
    with FileSampleRefQueue(path, clock=clock) as restarted:
        assert restarted.ack(refs("s")) == []
    assert ids(b.get(1)) == ["s"]


def test_the_putter_s_own_late_ack_leaves_the_next_life_alone(path: Path) -> None:
    """A handle that lost its lease, and put the id again itself, does not end that with what it got before."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(refs("s"))
    late = a.get(1)
    clock.now += 61.0
    b.ack(b.get(1))
    a.put(refs("s"))
    assert a.ack(late) == ["s"]
    assert ids(b.get(1)) == ["s"]
    assert a.ack(late) == ["s"] and b.ack(refs("s")) == []


def test_a_late_fail_for_good_leaves_the_next_life_alone(path: Path) -> None:
    """A ref that its owner gave back, and that was acknowledged and put again by others, is not the owner's to bury."""
    a, b = two_handles(path, FakeClock())
    a.put(refs("s"))
    late = a.get(1)
    a.fail(late, "flaky", retryable=True)
    b.ack(b.get(1))
    b.put(refs("s"))
    assert a.fail(late, "broken", retryable=False) == []
    assert names_in(path, "pending") == ["s.json"] and names_in(path, "failed") == []


@pytest.mark.parametrize("event", ["requeued", "rewound"])
def test_a_late_ack_leaves_alone_what_was_asked_for_once_more(path: Path, event: str) -> None:
    """Requeueing and rewinding begin a new life of a ref: earlier leases do not end it."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(refs("s"))
    late = a.get(1)
    clock.now += 61.0
    b.ack(b.get(1), step=5)
    if event == "rewound":
        assert b.rewind(after_step=4) == ["s"]
    else:
        assert [outcome.moved for outcome in requeue(str(path), ["s"])] == [True]
    assert [found["event"] for found in content(path / "pending" / "s.json")["_fsqueue"]["history"]] == [
        "expired",
        event,
    ]
    assert a.ack(late) == ["s"]
    assert ids(b.get(1)) == ["s"]


@pytest.mark.parametrize("how", ["expired", "failed", "released by an operator", "released by another"])
def test_a_late_ack_ends_the_life_that_it_was_leased_in(path: Path, how: str) -> None:
    """A ref that is back in pending/ goes to done/ where its history tells that this very lease ended."""
    clock = FakeClock()
    a, b = two_handles(path, clock)
    a.put(refs("s"))
    late = a.get(1)
    if how == "expired":
        clock.now += 61.0
        assert b.reclaim() == 1
    elif how == "failed":
        a.fail(late, "flaky", retryable=True)
    elif how == "released by another":
        assert b.release(refs("s")) == []
    else:
        release(str(path), a.owner, force=True)
    (event,) = content(path / "pending" / "s.json")["_fsqueue"]["history"]
    assert event["owner"] == f"{a.owner}+1"
    assert a.ack(late, step=3) == ([] if how == "failed" else ["s"])
    assert names_in(path, "done") == ["s@3.json"] and names_in(path, "pending") == []


def test_a_move_by_hand_leaves_no_history(path: Path) -> None:
    """A ref that somebody moved out of leased/ is delivered again, whatever its former owner says."""
    a, b = two_handles(path, FakeClock())
    a.put(refs("s"))
    late = a.get(1)
    os.rename(path / "leased" / lease_name(path, "s"), path / "pending" / "s.json")
    assert a.ack(late) == ["s"]
    assert ids(b.get(1, 1.0)) == ["s"]


def test_a_ref_that_is_put_anew_between_two_looks_of_a_late_ack(path: Path) -> None:
    """An ack that has seen the history looks again under a lease of its own, and gives another life back."""
    clock, tap = FakeClock(), Tap()
    b = FileSampleRefQueue(path, lease_timeout_s=60.0, clock=clock, durable=False)
    a = open_tapped(tap, path, clock=clock, durable=False)
    a.put(refs("s"))
    late = a.get(1)
    clock.now += 61.0
    assert b.reclaim() == 1
    lives: list[list[str]] = []

    def live_on(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "utime" and args[0] == "s.json" and not lives:
            lives.append(b.ack(b.get(1)))
            b.put(refs("s"))

    tap.before = live_on
    assert a.ack(late) == ["s"] and lives == [[]]
    tap.before = None
    assert ids(b.get(1)) == ["s"]
    b.ack(refs("s"))
    assert_clean(path)


@pytest.mark.parametrize("end", ENDS)
def test_a_late_end_leaves_the_handle_s_own_next_claim_alone(path: Path, end: str) -> None:
    """What one thread got and lost is not what another thread of the same handle got since, though the ids agree."""
    clock = FakeClock()
    queue = FileSampleRefQueue(path, lease_timeout_s=60.0, clock=clock, durable=False)
    queue.put(refs("s"))
    late = queue.get(1)
    clock.now += 61.0
    leased = queue.get(1)
    before = names_in(path, "leased")
    assert ids(leased) == ["s"] and leased[0] is not late[0]
    assert ENDS[end](queue, late) == ["s"]
    assert names_in(path, "leased") == before
    assert queue.renew(leased) == [] and queue.ack(refs("s")) == []
    assert queue.ack(late) == ["s"], "it stays lost"
    assert tuple(queue.counts()) == (0, 0, 1, 0)


def test_no_name_of_a_lease_is_used_twice(path: Path) -> None:
    """Whatever brings a ref into leased/, it comes under a name that was never there before."""
    clock, tap, came = FakeClock(), Tap(), list[str]()

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and folder_of(kwargs["dst_dir_fd"]) == "leased":
            came.append(args[1])

    tap.before = note
    a = open_tapped(tap, path, lease_timeout_s=60.0, clock=clock, durable=False)
    b = open_tapped(tap, path, clock=clock, durable=False)
    with tap.here():
        a.put(refs("s"))
        a.release(a.get(1))
        a.fail(a.get(1), "flaky", retryable=True)
        leased = a.get(1)
        clock.now += 61.0
        assert a.reclaim() == 1 and a.ack(leased) == ["s"]
        a.put(refs("t"))
        a.get(1)
        assert b.release(refs("t")) == []
        b.handle.presence.announce()
        for _ in range(2):
            leased = a.get(1)
            assert a.hand_over(leased, b.owner) == [] and b.adopt(leased) == []
            assert b.hand_over(leased, a.owner) == [] and a.adopt(leased) == []
            a.release(leased)
        a.fail(a.get(1), "broken", retryable=False)
        requeue(str(path), ["t"])
        assert ids(b.get(1)) == ["t"]
    assert len(came) > 12 and len(set(came)) == len(came)


def test_leases_of_the_handle_after_a_hand_over(path: Path) -> None:
    """A lease that was handed over is its new owner's, and the former owner's settlement says that it had ended."""
    a, b = two_handles(path, FakeClock())
    b.handle.presence.announce()
    a.put(refs("s"))
    leased = a.get(1)
    assert a.hand_over(leased, b.owner) == [] and a.hand_over(leased, b.owner) == []
    assert re.fullmatch(rf"s@{re.escape(b.owner)}\+g[0-9a-f]{{8}}\.json", lease_name(path, "s"))
    assert b.adopt(leased) == [] and a.ack(leased) == []
    assert holders_in(path) == [f"s@{b.owner}"]
    assert b.ack(leased) == []


def look_wait_and_die(pipe: Connection, path: Path) -> None:
    """A reclaimer that is killed right after it took over a lease which was renewed since it looked."""
    tap = Tap()

    def wait(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and str(args[0]).startswith("s@"):
            pipe.send("looked")
            pipe.recv()

    def die(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and str(args[0]).startswith("s@"):
            os.kill(os.getpid(), signal.SIGKILL)

    tap.before, tap.after = wait, die
    open_tapped(tap, path).reclaim()


def test_a_killed_reclaimer_does_not_give_a_renewed_lease_away(path: Path) -> None:
    """The lease runs on for as long as the renewal says, though its file carries a dead process's name."""
    with FileSampleRefQueue(path, lease_timeout_s=60.0) as queue:
        queue.put(refs("s"))
        leased = queue.get(1)
        backdate(path / "leased" / lease_name(path, "s"), 61.0)
        with Child(look_wait_and_die, path) as reclaimer:
            assert reclaimer.receive() == "looked"
            assert queue.renew(leased) == []
            reclaimer.send("go on")
            assert reclaimer.join() == -signal.SIGKILL
        assert lease_name(path, "s").endswith("t.json")
        with FileSampleRefQueue(path) as other:
            assert other.reclaim() == 0 and other.get(1) == []
        backdate(path / "leased" / lease_name(path, "s"), 61.0)
        with FileSampleRefQueue(path) as other:
            assert other.reclaim() == 1
            assert ids(other.get(1)) == ["s"]
            other.ack(refs("s"))
    assert_clean(path)


def test_a_lease_without_a_claim_is_a_lease(path: Path) -> None:
    """A name that somebody made by hand, without a claim, expires, is settled by id and moves back like any other."""
    a, b = two_handles(path, FakeClock())
    a.put(refs("s", "t"))
    for name in ("s", "t"):
        os.rename(path / "pending" / f"{name}.json", path / "leased" / f"{name}@node.7.abcdef.json")
    assert b.ack(refs("s")) == [] and names_in(path, "done") == ["s.json"]
    os.utime(path / "leased" / "t@node.7.abcdef.json", (0, 0))
    assert b.reclaim() == 1
    assert content(path / "pending" / "t.json")["_fsqueue"]["history"][0]["owner"] == "node.7.abcdef"


def test_a_process_s_history_names_its_claims(path: Path) -> None:
    """Each event that ends a lease names the owner with the claim."""
    with FileSampleRefQueue(path, durable=False) as queue, Child(lease_and_obey, path, 1, {}) as child:
        owner, _ = child.receive()
        queue.put(refs("s"))
        child.send("get")
        assert child.receive() == ["s"]
        assert queue.fail(refs("s"), "by another", retryable=True) == []
        (event,) = content(path / "pending" / "s.json")["_fsqueue"]["history"]
        assert event["owner"].startswith(f"{owner}+")


def test_earlier_claims_are_remembered_while_their_objects_live() -> None:
    """The objects that were handed out tell claims apart; when they are gone, so is what was kept for them."""
    held, kept, others = Held(), [ref("s") for _ in range(3)], [ref("x") for _ in range(1_000)]
    for number, each in enumerate(kept):
        claim = Claim("s", f"s@o.1.abcdef+{number}.json")
        held.add(claim)
        claim.hand_out(each)
        held.end(claim, "lost")
    assert [found.name for each in kept if (found := held.find("s", each))] == [
        f"s@o.1.abcdef+{number}.json" for number in range(3)
    ]
    latest = held.find("s", ref("s"))
    assert latest is not None and latest.name.endswith("+2.json")
    for number, each in enumerate(others):
        held.add(claim := Claim(f"x{number}", f"x{number}@o.1.abcdef+0.json"))
        claim.hand_out(each)
        held.add(Claim(f"x{number}", f"x{number}@o.1.abcdef+1.json"))
    assert len(held._earlier) == 1_001
    del each, kept
    others.clear()
    gc.collect()
    for number in range(1_001):
        held.add(claim := Claim(f"y{number}", f"y{number}@o.1.abcdef+0.json"))
        claim.hand_out(others)
        claim.hand_out(fresh := ref("y"))
        held.add(Claim(f"y{number}", f"y{number}@o.1.abcdef+1.json"))
        others.append(fresh)
    assert len(held._earlier) == 1_001, "what nobody can come back with is forgotten"


def test_a_class_without_weak_references_goes_by_id() -> None:
    """An object that cannot be referred to weakly stands for the latest claim."""
    held, handed = Held(), (1, 2)
    for number in range(2):
        held.add(claim := Claim("s", f"s@o.1.abcdef+{number}.json"))
        claim.hand_out(handed)
    assert held.find("s", handed) is claim
