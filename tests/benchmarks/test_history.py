"""The checker of histories: each kind of finding by hand-made calls, and what explains a second delivery."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fsqueue import MemorySampleRefQueue, SampleRef
from history.checker import Verdict, check
from history.recording import OVERLAP, Call, Log, Recorded, calls_in, read

LEASE_S = 10.0


def call(kind: str, owner: str, at: float, returned_at: float | None = -1.0, **facts: Any) -> Call:
    """A call on ref x; unless said otherwise it returned a hundredth of a second later."""
    done = at + 0.01 if returned_at == -1.0 else returned_at
    ids = facts.pop("ids", ("x",))
    return Call(kind, owner, ids, at, done, over_at=float("inf") if done is None else done, **facts)


def verdict(*calls: Call, **options: Any) -> Verdict:
    return check(calls, LEASE_S, **options)


def test_a_plain_history_is_clean() -> None:
    """Put, delivered, acknowledged: nothing to report."""
    found = verdict(call("put", "p", 0), call("get", "a", 1), call("ack", "a", 2))
    assert found.problems() == []
    assert (found.puts, found.deliveries, found.acked, found.again.total()) == (1, 1, 1, 0)


def test_a_put_that_nothing_follows_is_lost() -> None:
    """A put returned, and its ref was never seen again."""
    assert verdict(call("put", "p", 0)).lost
    assert not verdict(call("put", "p", 0, None)).problems(), "a put that did not return promises nothing"


def test_a_second_life_is_not_explained_by_the_first() -> None:
    """An acknowledged id was put again; the delivery before does not count for that put."""
    first = (call("put", "p", 0), call("get", "a", 1), call("ack", "a", 2))
    assert verdict(*first, call("put", "p", 3)).lost
    assert not verdict(*first, call("put", "p", 3), call("get", "a", 4), call("ack", "a", 5)).problems()


def test_a_put_of_a_ref_that_is_leased_is_kept_by_its_ack() -> None:
    """The put found its id leased and added nothing; the acknowledgement of that lease is what it led to."""
    assert not verdict(call("put", "p", 0), call("get", "a", 1), call("put", "p", 2), call("ack", "a", 3)).problems()


def test_what_nobody_put_is_unexpected() -> None:
    """A delivery without any put, and one of a ref that was acknowledged before."""
    assert verdict(call("get", "a", 1)).unexpected
    assert verdict(call("put", "p", 0), call("get", "a", 1), call("ack", "a", 2), call("get", "b", 3)).unexpected


def test_who_rewound_a_ref_may_release_it_by_name() -> None:
    """Its own earlier lease is history then, as after a put; else it would have touched another's lease."""
    before = (call("put", "p", 0), call("get", "a", 1), call("ack", "a", 2), call("requeue", "server", 3))
    after = (call("get", "b", 4), call("release", "a", 5), call("get", "c", 6), call("ack", "c", 7))
    assert not verdict(*before, call("rewind", "a", 3), *after).problems()
    assert verdict(*before, *after).double_leases


def test_a_delivery_of_a_put_that_never_returned_is_recovered() -> None:
    """The producer died in put, and its ref was there all the same."""
    found = verdict(call("put", "p", 0, None), call("get", "a", 1), call("ack", "a", 2))
    assert (found.recovered, found.problems()) == (1, [])


def test_two_leases_at_one_instant() -> None:
    """The second owner got the ref while the first one's lease could not have expired."""
    found = verdict(call("put", "p", 0), call("get", "a", 1), call("get", "b", 5))
    assert found.double_leases
    assert found.unexplained


def test_a_second_delivery_after_the_lease_has_expired() -> None:
    """The lease runs from the moment at which the get was invoked."""
    found = verdict(call("put", "p", 0), call("get", "a", 1, 4.0), call("get", "b", 11.5), call("ack", "b", 12))
    assert (found.problems(), dict(found.again)) == ([], {"expired lease": 1})


@pytest.mark.parametrize("kind", ["renew", "beat"])
def test_a_renewed_lease_runs_longer(kind: str) -> None:
    """A renewal that returned before the lease could expire prolongs it; one that did not return does not."""
    history = (call("put", "p", 0), call("get", "a", 1), call("get", "b", 14), call("ack", "b", 15))
    assert verdict(*history, call(kind, "a", 6)).double_leases
    assert not verdict(*history, call(kind, "a", 6, None)).problems()
    assert not verdict(*history, call(kind, "a", 6, lost=("x",))).double_leases


def test_a_lease_is_over_once_its_owner_settles_it() -> None:
    """Given back at 2, delivered to another at 3: no second lease, and nothing to explain."""
    for kind in ("release", "fail"):
        found = verdict(call("put", "p", 0), call("get", "a", 1), call(kind, "a", 2), call("get", "b", 3))
        assert (found.problems(), found.again.total()) == ([], 0)


def test_a_stranger_may_take_a_lease_away() -> None:
    """One that never leased the ref, or put it after it did, settles it by name; one that lost it may not."""
    start = (call("put", "p", 0), call("get", "a", 1))
    assert not verdict(*start, call("release", "s", 2), call("get", "b", 3), call("ack", "b", 4)).problems()
    lost = call("release", "b", 14, lost=("x",))
    again = (call("get", "b", 1.5, 1.6), call("get", "a", 13), call("get", "c", 15))
    assert verdict(call("put", "p", 0), *again, lost).double_leases


def test_a_dead_owner_holds_nothing() -> None:
    """Its death was seen by the others at once."""
    history = (call("put", "p", 0), call("get", "a", 1), call("get", "b", 5), call("ack", "b", 6))
    assert not verdict(*history, call("died", "a", 4, ids=())).problems()


def test_a_lease_that_was_lost_too_early_is_broken() -> None:
    """The owner was told that it had lost a lease that could not have expired."""
    history = (call("put", "p", 0), call("get", "a", 1))
    assert verdict(*history, call("ack", "a", 5, lost=("x",))).broken_leases
    assert not verdict(*history, call("ack", "a", 12, lost=("x",))).broken_leases
    renewed_too_late = call("renew", "a", 12)
    assert not verdict(*history, renewed_too_late, call("ack", "a", 13, lost=("x",))).broken_leases


@pytest.mark.parametrize("kind", ["put", "requeueing"])
def test_a_lock_that_does_not_exclude_explains_two_files(kind: str) -> None:
    """Two calls at once queued the id twice; only where both were in the lock, and only as two files."""
    puts = (call("put", "p", 0, 1.0), call(kind, "q", 0.5, 1.5))
    gets = (call("get", "a", 2, files=(1,)), call("get", "b", 3, files=(2,)))
    acks = (call("ack", "a", 4), call("ack", "b", 4))
    assert verdict(*puts, *gets, *acks).double_leases
    overlap = call(OVERLAP, "server", 0.6, 0.7, ids=())
    found = verdict(*puts, *gets, *acks, overlap)
    assert (found.problems(), dict(found.again)) == ([], {"lock did not exclude": 1})
    assert not verdict(*puts, *gets, *acks, lock_excludes=False).problems()
    one_file = (call("get", "a", 2, files=(1,)), call("get", "b", 3, files=(1,)))
    assert verdict(*puts, *one_file, *acks, overlap).double_leases


def test_recorded_calls_survive_a_kill(tmp_path: Path) -> None:
    """A log is read back as the calls that were made; the last one, cut short, never returned."""
    path = tmp_path / "log"
    log = Log.to_file(path)
    memory: MemorySampleRefQueue[SampleRef]
    with MemorySampleRefQueue(lease_timeout_s=LEASE_S) as memory:
        queue = Recorded(memory, log, owner="a")
        ref = SampleRef("x", "run", None, "file:///f", {}, {}, "eagle3")
        queue.put([ref])
        assert queue.get(1) == [ref]
        queue.renew([ref])
        assert queue.ack([ref]) == []
    log.begin("put", "killed", ["y"])
    with open(path, "ab") as f:
        f.write(b'{"key": "torn')
    calls = read(path)
    assert [(c.kind, c.ids, c.returned_at is not None) for c in calls] == [
        ("put", ("x",), True),
        ("get", ("x",), True),
        ("renew", ("x",), True),
        ("ack", ("x",), True),
        ("put", ("y",), False),
    ]
    assert check(calls, LEASE_S).problems() == []


def test_a_call_that_raised_is_over() -> None:
    """It may have taken effect, but not after the moment at which it raised."""
    lines: list[dict[str, Any]] = []
    log = Log(lines.append, clock=iter(range(9)).__next__)
    log.gave_up(log.begin("put", "p", ["x"]))
    (found,) = calls_in(lines)
    assert (found.returned_at, found.over_at) == (None, 1)


def test_where_puts_cannot_see_what_is_there_only_the_first_of_an_id_counts() -> None:
    """A second put may queue a second file, or none at all; what was put once is lost all the same."""
    first = [call("put", "p", 0), call("get", "a", 1), call("ack", "a", 2)]
    again = [*first, call("put", "p", 3)]
    assert verdict(*again).lost
    assert not verdict(*again, deduplicates=False).problems()
    assert verdict(call("put", "p", 0), call("put", "q", 1), deduplicates=False).lost
    two_files = [
        call("put", "p", 0),
        call("put", "q", 1),
        call("get", "a", 2, files=(1,)),
        call("get", "b", 3, files=(2,)),
    ]
    assert verdict(*two_files).double_leases
    assert not verdict(*two_files, deduplicates=False).problems()


def test_a_lease_may_end_as_much_earlier_as_stamps_are_coarse() -> None:
    """On a mount with whole seconds, whoever hears 0.5 s before its end that it is lost has no cause to complain."""
    calls = [
        call("put", "p", 0),
        call("get", "a", 1),
        call("renew", "a", 10.5, lost=("x",)),
        call("get", "b", 10.6),
        call("ack", "b", 11),
    ]
    assert verdict(*calls).broken_leases
    assert not verdict(*calls, grain_s=1.0).problems()
