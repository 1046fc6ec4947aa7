"""Renames that say 0 and do nothing, names that answer though they are gone, and losers who are told odd errors."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError
from fsqueue.format import names
from fsqueue.operate import operator
from fsqueue.operate.check import check_queue
from fsqueue.operate.check.mend import mend_all
from fsqueue.operate.requeue import requeue, requeue_failed
from tests.support import (
    FakeClock,
    Queue,
    assert_clean,
    content,
    ids,
    lease_name,
    names_in,
    numbered,
    refs,
)
from tests.support.lying import LOSER_ERRNOS, LyingClient

KINDS = ("fuse.lying", "nfs4")
WAIT_S = 20.0


@pytest.fixture(params=KINDS)
def clients(request: pytest.FixtureRequest) -> tuple[LyingClient, LyingClient]:
    """Two clients, on NFS and on a filesystem that nobody knows."""
    return LyingClient(request.param), LyingClient(request.param)


def opened(path: Path, clients: tuple[LyingClient, LyingClient], **arguments: Any) -> tuple[Queue, Queue, FakeClock]:
    clock = FakeClock()
    given: dict[str, Any] = {"lease_timeout_s": 60.0, "clock": clock, "durable": False, "heartbeat_s": None}
    first, second = (client.open_queue(path, **(given | arguments)) for client in clients)
    return first, second, clock


def attempts(path: Path, file: str) -> int:
    book = content(path / file)["_fsqueue"]
    return int(book.get("attempts", 0) + book.get("expiries", 0))


def lied(client: LyingClient) -> bool:
    """Tell if the client has swallowed a rename, as it should have; on NFS it may not."""
    return client.swallowed > 0 or client.kind == "nfs4"


def test_a_lease_that_is_reclaimed_where_its_ref_was_put(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """What one client put, another leased and the first reclaims comes back at once, with one expiry counted."""
    first, second, clock = opened(path, clients)
    first.put(refs("a"))
    assert ids(second.get(1)) == ["a"]
    clock.advance(61.0)
    assert first.reclaim() == 1
    assert lied(clients[0])
    assert ids(first.get(1, WAIT_S)) == ["a"]
    assert attempts(path, f"leased/{lease_name(path, 'a')}") == 1
    assert second.ack(refs("a")) == ["a"]
    assert first.ack(refs("a")) == []
    assert tuple(first.counts()) == (0, 0, 1, 0)
    assert_clean(path)


def test_another_client_moves_on_what_the_first_cannot(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """A ref that waits under its leased name gets its name in pending/ by the next client that looks."""
    first, second, clock = opened(path, clients)
    first.put(refs("a"))
    second.get(1)
    clock.advance(61.0)
    first.reclaim()
    first.put(refs("a"))
    assert len(names_in(path, "pending") + names_in(path, "leased")) == 1, "a put sees it wherever it waits"
    with FileSampleRefQueue(path, durable=False) as third:
        assert ids(third.get(2, WAIT_S)) == ["a"]
        assert third.ack(refs("a")) == []
    assert_clean(path)


def test_a_ref_on_its_way_back_is_nobodys_lease(path: Path) -> None:
    """It is not adopted, holds up no rewind, is claimed in its partition, and outlives its owner without an attempt."""
    clients = LyingClient(), LyingClient()
    first, second, clock = opened(path, clients)
    first.put(refs("a"))
    second.get(1)
    clock.advance(61.0)
    first.reclaim()
    (waiting,) = names_in(path, "leased")
    lease = names.parse_leased(waiting)
    assert lease is not None and lease.is_returned
    assert first.adopt(refs("a")) == ["a"]
    assert second.rewind(after_step=0) == []
    first.close()
    assert names_in(path, "leased") == [waiting]
    assert second.reclaim() == 0
    assert names_in(path, "pending") == ["a.json"]
    assert ids(second.get(1, partition=(0, 1))) == ["a"]
    assert attempts(path, f"leased/{lease_name(path, 'a')}") == 1


def test_giving_back_what_was_taken_over(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """A release and a failure of another owner's lease get through where this client put the ref."""
    first, second, _ = opened(path, clients, max_attempts=5)
    first.put(refs("a", "b"))
    second.get(2)
    assert first.release(refs("a")) == []
    assert first.fail(refs("b"), "broken", retryable=True) == []
    assert lied(clients[0])
    assert sorted(ids(first.get(2, WAIT_S))) == ["a", "b"]
    first.ack(refs("a", "b"))
    assert_clean(path)


def test_done_again_under_the_same_step(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """A ref that another client rewound is done once more, also under the very name that this client remembers."""
    first, second, _ = opened(path, clients)
    first.put(refs("a", "b"))
    for _ in range(3):
        assert sorted(ids(first.get(2, WAIT_S))) == ["a", "b"]
        assert first.ack(refs("a", "b"), step=5) == []
        assert tuple(second.counts()) == (0, 0, 2, 0)
        assert sorted(second.rewind(after_step=4)) == ["a", "b"]
    assert lied(clients[0])
    assert len(first.get(2, WAIT_S)) == 2
    first.ack(refs("a", "b"), step=5)
    assert sorted(first.rewind(after_step=4)) == ["a", "b"], "also by the client that could not give them their names"
    assert sorted(drained(second)) == ["a", "b"]
    assert_clean(path)


def test_done_again_after_a_move_by_hand(path: Path) -> None:
    """A ref that was moved from done/ to pending/ by hand, elsewhere, is done where this handle acked it before."""
    clients = LyingClient("nfs4"), LyingClient("nfs4")
    first, _, _ = opened(path, clients)
    first.put(refs("a"))
    first.ack(first.get(1, WAIT_S))
    os.rename(path / "done/a.json", path / "pending/a.json")
    assert ids(first.get(1, WAIT_S)) == ["a"]
    assert first.ack(refs("a")) == []
    assert tuple(first.counts()) == (0, 0, 1, 0)


def test_packing_what_could_not_get_its_name(path: Path) -> None:
    """Packing, purging and unpacking end, lose nothing, and give names where they can."""
    clients = LyingClient(), LyingClient()
    first, second, clock = opened(path, clients)
    first.put(refs("a", "b"))
    for _ in range(2):
        assert len(first.get(2, WAIT_S)) == 2
        first.ack(refs("a", "b"), step=5)
        second.rewind(after_step=4)
    assert len(first.get(2, WAIT_S)) == 2
    first.ack(refs("a", "b"), step=5)
    assert all(".into-" in name for name in names_in(path, "done"))
    clock.advance(100.0)
    assert first.pack(older_than_s=1.0).refs == 0
    assert first.counts().done == 2
    assert second.pack(older_than_s=1.0).refs == 2
    assert first.counts().done == second.counts().done == 2
    assert sorted(first.rewind(after_step=4)) == ["a", "b"]
    assert sorted(drained(second)) == ["a", "b"]
    assert_clean(path)


def test_a_packing_that_another_client_ends(path: Path) -> None:
    """Done files that a packer left aside stay done where the client that ends it remembers their names."""
    clients = LyingClient(), LyingClient()
    first, second, clock = opened(path, clients)
    first.put(refs("a", "b"))
    assert len(first.get(2, WAIT_S)) == 2
    first.ack(refs("a", "b"))
    for stem in ("a", "b"):
        os.rename(path / f"done/{stem}.json", path / f"done/{stem}.json.into-0123456789ab")
    clock.advance(100.0)
    assert first.pack(older_than_s=1.0).refs == 0
    assert first.counts().done == 2, "a name that is only remembered is no later life"
    assert second.pack(older_than_s=1.0).refs == 2
    assert_clean(path)


def test_a_dead_letter_that_was_one_before(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """A ref that another client requeued is buried again, and requeued by its id."""
    first, second, _ = opened(path, clients)
    first.put(refs("a", "x" * 160, "é" * 200))
    for _ in range(2):
        first.fail(first.get(3, WAIT_S), "broken", retryable=False)
        assert tuple(first.counts()) == (0, 0, 0, 3)
        with clients[1].here():
            assert [each.moved for each in requeue_failed(str(path))] == [True] * 3
    first.fail(first.get(3, WAIT_S), "broken", retryable=False)
    assert lied(clients[0])
    with clients[1].here():
        assert [each.moved for each in requeue(str(path), ["a", "x" * 160, "é" * 200])] == [True] * 3
    assert len(drained(second)) == 3
    assert_clean(path)


def test_requeued_where_it_was_put(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """requeue and an operator's release bring a ref back though their client remembers it in pending/."""
    first, second, _ = opened(path, clients)
    first.put(refs("a", "b"))
    second.fail(second.get(1), "broken", retryable=False)
    second.get(1)
    with clients[0].here():
        assert [each.moved for each in requeue(str(path), ["a"])] == [True]
        assert [each.moved for each in operator.release(str(path), second.owner, force=True)] == [True]
    assert lied(clients[0])
    assert sorted(drained(first)) == ["a", "b"]
    assert_clean(path)


def test_moved_by_hand_under_its_leased_name(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """A lease that was moved into pending/ as it is, is claimed as it is where it cannot get its proper name."""
    first, second, _ = opened(path, clients)
    first.put(refs("a"))
    second.get(1)
    subprocess.run(["mv", f"leased/{lease_name(path, 'a')}", "pending/"], cwd=path, check=True, timeout=60)
    assert ids(first.get(1, WAIT_S)) == ["a"]
    assert first.ack(refs("a")) == []
    assert_clean(path)


def test_repair_drops_no_copy_that_is_only_remembered(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """A misnamed ref whose right name this client remembers is mended, not taken for a second copy."""
    first, _, _ = opened(path, clients)
    first.put(refs("a"))
    os.rename(path / "pending/a.json", path / "pending/b.json")
    with clients[0].here():
        mended = mend_all(str(path), list(check_queue(str(path))))
    assert [each.done for each in mended] == [True], mended
    assert drained(first) == ["a"]
    assert_clean(path)


def test_a_put_is_not_skipped_for_a_remembered_name(path: Path, clients: tuple[LyingClient, LyingClient]) -> None:
    """An id that another client has acked may be put again at once."""
    first, second, _ = opened(path, clients)
    first.put(refs("a"))
    second.ack(second.get(1))
    first.put(refs("a"))
    assert drained(second) == ["a"]


@pytest.mark.parametrize("loser", LOSER_ERRNOS, ids=lambda code: errno.errorcode[code])
@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_race_is_no_error(path: Path, kind: str, loser: int) -> None:
    """Whatever the loser is told, get returns what else there is, and settling says that the lease was lost."""
    clients = LyingClient(kind, loser), LyingClient(kind, loser)
    first, second, clock = opened(path, clients, max_attempts=9)
    first.put(refs("a", "b"))

    def steal(call: str, args: tuple[Any, ...]) -> None:
        if call == "rename" and args[0] == "a.json":
            clients[0].before = lambda *_: None
            os.rename(path / "pending/a.json", path / f"leased/a@{second.owner}+77.json")

    clients[0].before = steal
    assert ids(first.get(2, WAIT_S)) == ["b"]
    for settle in settlements(first):
        clock.advance(61.0)
        second.reclaim()
        assert first.get(2, WAIT_S)
        held = sorted(file.partition("@")[0] for file in names_in(path, "leased") if f"@{first.owner}" in file)
        for file in names_in(path, "leased"):
            stolen = names.leased_file(file.partition("@")[0], second.owner, f"{clock.now:.0f}")
            os.rename(path / "leased" / file, path / "leased" / stolen)
        assert sorted(settle(refs(*held))) == held
        restamp(path, clock)
    assert len(names_in(path, "leased") + names_in(path, "pending")) == 2


def restamp(path: Path, clock: FakeClock) -> None:
    """Give files that were written to, through a remembered name, the time that this test goes by."""
    for file in (path / "leased").iterdir():
        if file.stat().st_mtime > 1e6:
            os.utime(file, (clock.now, clock.now))


def settlements(queue: Queue) -> list[Callable[[Any], list[str]]]:
    return [
        queue.ack,
        queue.release,
        queue.renew,
        lambda some: queue.fail(some, "broken", retryable=True),
        lambda some: queue.fail(some, "broken", retryable=False),
    ]


@pytest.mark.parametrize("code", [errno.EIO, errno.EXDEV, errno.EPERM, errno.EEXIST])
def test_a_fault_is_still_an_error(path: Path, clients: tuple[LyingClient, LyingClient], code: int) -> None:
    """Where the file is there and cannot be moved, get and ack say so, and nothing is lost."""
    first, second, _ = opened(path, clients)
    first.put(refs("a"))

    def refuse(call: str, args: tuple[Any, ...]) -> None:
        if call == "rename" and args[0].startswith("a"):
            raise OSError(code, os.strerror(code))

    clients[0].before = refuse
    with pytest.raises(QueueIOError) as caught:
        first.get(1)
    assert caught.value.errno == code
    assert "must lie on one filesystem" not in str(caught.value)
    clients[0].before = lambda *_: None
    assert ids(first.get(1, WAIT_S)) == ["a"]
    clients[0].before = refuse
    with pytest.raises(QueueIOError):
        first.ack(refs("a"))
    clients[0].before = lambda *_: None
    assert first.ack(refs("a")) == []
    assert tuple(second.counts()) == (0, 0, 1, 0)


def test_two_filesystems_are_named(path: Path, tmp_path: Path) -> None:
    """That the directories must lie on one filesystem is said where they do not."""
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second filesystem at hand")
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
    elsewhere = other / f"fsqueue-{os.getpid()}"
    elsewhere.mkdir()
    try:
        (path / "leased").rmdir()
        (path / "leased").symlink_to(elsewhere)
        with FileSampleRefQueue(path) as queue, pytest.raises(QueueIOError, match="must lie on one filesystem"):
            queue.get(1)
    finally:
        for file in elsewhere.iterdir():
            file.unlink()
        elsewhere.rmdir()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_lost_or_doubled_or_stuck(path: Path, kind: str, seed: int) -> None:
    """Three clients do what they like to twelve refs, each told other lies: each ref is acked once, but for rewinds."""
    chance = random.Random(f"{kind} {seed}")
    clients = [LyingClient(kind, chance.choice(LOSER_ERRNOS)) for _ in range(3)]
    clock = FakeClock()
    arguments: dict[str, Any] = {"lease_timeout_s": 60.0, "clock": clock, "durable": False, "heartbeat_s": None}
    queues = [client.open_queue(path, **arguments) for client in clients]
    acked: set[str] = set()
    queues[0].put(numbered(12))
    holding: list[list[Any]] = [[], [], []]

    def one_step(who: int) -> None:
        queue, mine = queues[who], holding[who]
        act = chance.choice(("get", "get", "ack", "fail", "bury", "release", "expire", "requeue", "rewind", "pack"))
        some = mine[: chance.randint(1, 3)]
        if act == "get":
            mine += queue.get(chance.randint(1, 4))
        elif act in ("ack", "fail", "bury", "release"):
            if act == "ack":
                acked.update(set(ids(some)).difference(queue.ack(some, step=7)))
            elif act == "release":
                queue.release(some)
            else:
                queue.fail(some, "broken", retryable=act == "fail")
            del mine[: len(some)]
        elif act == "expire":
            clock.advance(30.0)
            queue.reclaim()
        elif act == "rewind":
            acked.difference_update(queue.rewind(after_step=6, force=True))
        elif act == "pack":
            queue.pack(older_than_s=0.0)
        else:
            with clients[who].here():
                requeue_failed(str(path))
        if chance.random() < 0.05:
            clients[who].forget()

    for _ in range(150):
        one_step(chance.randrange(3))
        restamp(path, clock)
        counts = queues[0].counts()
        assert sum(counts) == 12, f"{counts}: a ref was lost or doubled"
        assert counts.done >= len(acked), f"{counts}: an ack was told to be done, and is not"
    with clients[0].here():
        requeue_failed(str(path))
    clock.advance(61.0)
    left = drained(queues[chance.randrange(3)])
    assert len(left) == len(set(left)) and acked.isdisjoint(left), "a ref was delivered once more"
    assert tuple(queues[0].counts()) == (0, 0, 12, 0)
    assert_clean(path)
    for queue in queues:
        queue.close()


def drained(queue: Queue) -> list[str]:
    """Get and ack until nothing is live; what is on its way back comes with a later look."""
    found: list[str] = []
    while queue.depth() or queue.in_flight():
        batch = queue.get(64, WAIT_S)
        assert batch, f"stuck: {queue.counts()}"
        found += ids(batch)
        queue.ack(batch)
    return found
