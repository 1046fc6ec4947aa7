"""Answers of a shared mount that prove nothing: errors of what was done, stale handles, old listings, unread files."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError
from fsqueue.disk.fileops import FileOps, using, wrapped
from fsqueue.engine.get import UnreadableRefWarning
from tests.support import Queue, assert_clean, content, ids, lease_name, names_in, numbered, refs

Answer = Callable[..., Any]


class Mount:
    """A mount whose answers a test chooses; its processes sleep in no time.

    Attributes:
        answers: by the operation: called with the real one and its arguments.
        ahead_s: how far the monotonic clock is ahead.
    """

    def __init__(self, kind: str = "fuse.unheard-of") -> None:
        self.answers: dict[str, Answer] = {}
        self.ahead_s = 0.0
        self.ops = wrapped(FileOps(), self._around)
        self.ops.filesystem_type = lambda path: kind
        self.ops.monotonic = lambda: time.monotonic() + self.ahead_s
        self.ops.sleep = self._sleep

    def _sleep(self, seconds: float) -> None:
        self.ahead_s += seconds

    def _around(self, name: str, call: Answer, *args: Any, **kwargs: Any) -> Any:
        answer = self.answers.get(name)
        return answer(call, *args, **kwargs) if answer else call(*args, **kwargs)

    def open_queue(self, path: Path, **arguments: Any) -> Queue:
        with using(self.ops):
            return FileSampleRefQueue(path, **{"durable": False, "heartbeat_s": None, **arguments})

    def tells_no_ctime(self) -> None:
        """As sshfs: whole seconds, and a ctime that no rename sets."""

        def cut(call: Answer, *args: Any, **kwargs: Any) -> os.stat_result:
            return os.stat_result((*call(*args, **kwargs)[:9], 0))

        self.answers |= {"stat": cut, "fstat": cut}

    @contextmanager
    def renames_that_are_done(self, begins: str, then: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Renames of these names are done, or what then does, and report that there is no such file."""

        def answer(call: Answer, name: str, new_name: str, **kwargs: Any) -> None:
            if not name.startswith(begins):
                call(name, new_name, **kwargs)
                return
            if "rename" in self.answers:
                del self.answers["rename"]
                call(name, new_name, **kwargs)
                then()
            raise FileNotFoundError(errno.ENOENT, "told so", name)

        self.answers["rename"] = answer
        yield
        assert "rename" not in self.answers, "nothing was renamed"


@pytest.fixture
def mount() -> Mount:
    return Mount()


# Done, and reported as not done


def test_a_put_that_was_done_and_reported_as_failed(path: Path, mount: Mount) -> None:
    """It returns where its ref is pending, though neither an error nor a ctime tells that it came."""
    queue = mount.open_queue(path)
    mount.tells_no_ctime()
    with mount.renames_that_are_done(queue.owner):
        queue.put(refs("a"))
    assert names_in(path, "pending") == ["a.json"] and names_in(path, "tmp") == []


def test_a_put_whose_ref_was_done_before_it_heard_of_it(path: Path, mount: Mount) -> None:
    """Whoever leased it has stamped it since it was written."""

    def acked_elsewhere() -> None:
        os.utime(path / "pending/a.json")
        os.rename(path / "pending/a.json", path / "done/a.json")

    queue = mount.open_queue(path)
    mount.tells_no_ctime()
    with mount.renames_that_are_done(queue.owner, acked_elsewhere):
        queue.put(refs("a"))
    assert names_in(path, "done") == ["a.json"]


def test_a_put_whose_file_somebody_removed(path: Path, mount: Mount) -> None:
    """It raises, also where an earlier life of the ref is done: that one's stamp is older."""
    queue = mount.open_queue(path)
    queue.put(refs("a"))
    queue.ack(queue.get(1))
    os.utime(path / "done/a.json", (1e9, 1e9))
    mount.tells_no_ctime()

    def remove(call: Answer, name: str, new_name: str, **kwargs: Any) -> None:
        if name.startswith(queue.owner):
            (path / "tmp" / name).unlink(missing_ok=True)
        call(name, new_name, **kwargs)

    mount.answers["rename"] = remove
    with pytest.raises(QueueIOError, match="somebody removed it"):
        queue.put(refs("a"))


@pytest.mark.parametrize("settle", ["ack", "release", "bury"])
def test_a_settlement_that_was_done_and_reported_as_failed(path: Path, mount: Mount, settle: str) -> None:
    """It is no lost lease: the file bears this handle's own stamp."""
    queue = mount.open_queue(path)
    queue.put(refs("a"))
    held = queue.get(1)
    mount.tells_no_ctime()
    with mount.renames_that_are_done("a@"):
        lost = {
            "ack": lambda: queue.ack(held),
            "release": lambda: queue.release(held),
            "bury": lambda: queue.fail(held, "broken", retryable=False),
        }[settle]()
    assert lost == []
    assert names_in(path, {"ack": "done", "release": "pending", "bury": "failed"}[settle]) == ["a.json"]


def test_another_owner_who_acked_the_ref_under_the_same_name(path: Path, mount: Mount) -> None:
    """He stamped it when this handle's lease was over: the late ack is told that it is lost."""
    queue = mount.open_queue(path, lease_timeout_s=60.0)
    queue.put(refs("a"))
    held = queue.get(1)
    mount.tells_no_ctime()
    later = time.time() + 61.0
    os.rename(path / "leased" / lease_name(path, "a"), path / "done/a.json")
    os.utime(path / "done/a.json", (later, later))
    assert queue.ack(held) == ["a"]


@pytest.mark.parametrize("kind", ["fuse.encfs", "fuse.unheard-of"])
def test_another_owner_who_took_the_ref_over_and_acked_it_within_the_second(path: Path, kind: str) -> None:
    """His stamps are cut to the same second as this handle's own; what he wrote into the file tells that it is his."""
    mount = Mount(kind)
    queue, other = mount.open_queue(path), mount.open_queue(path)
    queue.put(refs("a"))
    held = queue.get(1)
    other.fail(refs("a"), "taken over", retryable=True)
    assert other.ack(other.get(1)) == []
    whole = int(os.stat(path / "done/a.json").st_mtime)
    os.utime(path / "done/a.json", (whole, whole))
    assert queue.ack(held) == ["a"]


def test_another_life_of_the_same_name_that_comes_at_the_same_moment(path: Path) -> None:
    """A done file that got its name back just now is not the one that this ack was to move."""
    mount = Mount("nfs4")
    queue = mount.open_queue(path)
    queue.put(refs("a"))
    held = queue.get(1)

    def unpack(call: Answer, name: str, new_name: str, **kwargs: Any) -> None:
        if name.startswith("a@") and "rename" in mount.answers:
            del mount.answers["rename"]
            (path / "tmp/aside").write_bytes((path / "leased" / name).read_bytes())
            os.utime(path / "tmp/aside", (1e9, 1e9))
            os.rename(path / "leased" / name, path / "pending/a.json")
            os.rename(path / "tmp/aside", path / "done/a@5.json")
        call(name, new_name, **kwargs)

    mount.answers["rename"] = unpack
    assert queue.ack(held, step=5) == ["a"]
    assert names_in(path, "pending") == ["a.json"], "it is delivered again"


# Stale handles


def test_a_ref_whose_handle_is_stale_for_a_moment_is_read_all_the_same(path: Path, mount: Mount) -> None:
    """It counts as no failure of the ref, of which the last one would bury it."""
    queue = mount.open_queue(path)
    queue.put(refs("a"))
    moments = ["the first"]

    def stale(call: Answer, name: str, *args: Any, **kwargs: Any) -> int:
        if name.startswith("a@") and moments:
            moments.clear()
            raise OSError(errno.ESTALE, "stale", name)
        return int(call(name, *args, **kwargs))

    mount.answers["open"] = stale
    assert ids(queue.get(1)) == ["a"]


def test_stale_handles_do_not_end_a_lease(path: Path, mount: Mount) -> None:
    """An ESTALE of the file proves nothing while a listing shows it: fail says so, and the lease goes on."""
    queue = mount.open_queue(path)
    queue.put(refs("a"))
    held = queue.get(1)

    def stale(call: Answer, name: str, *args: Any, **kwargs: Any) -> int:
        if name.startswith("a@"):
            raise OSError(errno.ESTALE, "stale", name)
        return int(call(name, *args, **kwargs))

    mount.answers["open"] = stale
    with pytest.raises(QueueIOError) as caught:
        queue.fail(held, "broken", retryable=True)
    assert caught.value.errno == errno.ESTALE
    mount.answers.clear()
    assert queue.ack(held) == []


@pytest.mark.parametrize("told", [errno.ESTALE, errno.EBADF, errno.EIO])
def test_who_loses_a_race_while_a_directorys_handle_is_stale(path: Path, mount: Mount, told: int) -> None:
    """It is looked at once more: a lost race is no error, whatever the loser is told."""
    queue = mount.open_queue(path)
    stale = [2]

    def lose(call: Answer, name: str, **kwargs: Any) -> None:
        raise OSError(told, "lost", name)

    def churn(call: Answer, name: str, *args: Any, **kwargs: Any) -> int:
        if name == "done" and stale[0]:
            stale[0] -= 1
            raise OSError(errno.ESTALE, "stale", name)
        return int(call(name, *args, **kwargs))

    mount.answers |= {"unlink": lose, "open": churn}
    assert not queue.handle.moves.remove(queue.handle.layout.done, "a.json.into-0123456789ab")
    assert stale == [0]


# Listings


def test_no_lease_changes_its_owner_while_a_put_lists_leases(path: Path) -> None:
    """A listing that a name changes in may miss it; a put that misses a lease queues the ref twice."""
    mount = Mount("nfs4")
    first, second = mount.open_queue(path, lease_timeout_s=60.0), mount.open_queue(path, lease_timeout_s=60.0)
    moved: list[str] = []

    def watch(call: Answer, name: str, new_name: str, **kwargs: Any) -> None:
        if "@" in name and "@" in new_name:
            with (path / "order.lock").open() as order, pytest.raises(BlockingIOError):
                fcntl.flock(order, fcntl.LOCK_EX | fcntl.LOCK_NB)
            moved.append(name)
        call(name, new_name, **kwargs)

    first.put(refs("a", "b", "c"))
    assert len(first.get(3)) == 3
    mount.answers["rename"] = watch
    second.put(refs("d"))
    second.get(1)  # announces it
    assert first.hand_over(refs("a"), second.owner) == []
    assert second.fail(refs("b"), "broken", retryable=True) == []
    long_ago = time.time() - 61.0
    os.utime(path / "leased" / lease_name(path, "c"), (long_ago, long_ago))
    mount.ahead_s += 100.0
    second.reclaim()
    mount.ahead_s += 5.0
    assert names_in(path, "pending") == ["b.json", "c.json"] or second.reclaim() == 1
    assert len(moved) == 4, moved


def goes_on_showing(mount: Mount, path: Path, name: str) -> list[int]:
    """Let listings of done/ show a name for 20 s that is gone; the list holds how often they were asked for."""
    done, looks = os.stat(path / "done").st_ino, [0]

    def old(call: Answer, fd: int) -> list[str]:
        if os.fstat(fd).st_ino != done:
            return list(call(fd))
        looks[0] += 1
        assert looks[0] < 500, "it asks again and again"
        return [*call(fd), *([name] if mount.ahead_s < 20.0 else [])]

    mount.answers["listdir"] = old
    return looks


def test_a_rewind_waits_where_listings_are_old(path: Path, mount: Mount) -> None:
    """It does not ask without a pause for what an old listing shows."""
    queue = mount.open_queue(path)
    queue.put(refs("a", "b"))
    queue.ack(queue.get(2), step=5)
    os.rename(path / "done/b@5.json", path / "failed/b.json")
    looks = goes_on_showing(mount, path, "b@5.json")
    assert queue.rewind(after_step=4) == ["a"]
    assert looks[0] < 100


def test_a_rewind_waits_where_a_segment_is_listed_that_is_gone(path: Path, mount: Mount) -> None:
    """So it is with segments of packed refs."""
    queue = mount.open_queue(path)
    queue.put(refs("a", "b"))
    queue.ack(queue.get(2), step=5)
    looks = goes_on_showing(mount, path, "packed-0123456789ab-3.jsonl")
    assert sorted(queue.rewind(after_step=4)) == ["a", "b"]
    assert looks[0] < 100


def test_a_ref_that_was_not_where_the_order_said_is_named_again(path: Path, mount: Mount) -> None:
    """A second later, not with the sweep of every minute: its name was remembered as missing, for instance."""
    queue = mount.open_queue(path)
    queue.put(numbered(20))

    def miss(call: Answer, name: str, **kwargs: Any) -> None:
        if name == "s00000.json":
            raise FileNotFoundError(errno.ENOENT, "remembered as missing", name)
        call(name, **kwargs)

    mount.answers["utime"] = miss
    assert ids(queue.get(1)) == ["s00001"]
    mount.answers.clear()
    mount.ahead_s += 1.1
    assert ids(queue.get(1)) == ["s00002"]
    assert (path / "order.lock").read_bytes().endswith(b"\ns00000 ....\n")
    assert "s00000" in ids(queue.get(20))


# Files that cannot be read


def unreadable(mount: Mount, *stems: str) -> None:
    """Reading these refs' files fails."""
    bad: set[int] = set()

    def opened(call: Answer, name: str, *args: Any, **kwargs: Any) -> int:
        fd = int(call(name, *args, **kwargs))
        bad.discard(fd)
        if name.startswith(stems):
            bad.add(fd)
        return fd

    def read(call: Answer, fd: int, count: int) -> bytes:
        if fd in bad:
            raise OSError(errno.EIO, "Input/output error")
        return bytes(call(fd, count))

    mount.answers |= {"open": opened, "read": read}


def test_a_ref_that_cannot_be_read_ends_in_failed(path: Path, mount: Mount) -> None:
    """After its attempts, as it is, while the others are delivered; get raises only where there is nothing else."""
    queue = mount.open_queue(path)
    queue.put(refs("bad"))
    before = (path / "pending/bad.json").read_bytes()
    unreadable(mount, "bad")
    raised = 0
    with pytest.warns(UnreadableRefWarning, match="bad could not be read"):
        for number in range(20):
            queue.put(refs(f"good{number}"))
            mount.ahead_s += 1.0
            try:
                queue.ack(queue.get(2))
            except QueueIOError as error:
                assert error.errno == errno.EIO
                raised += 1
    assert raised == 0, "there was always another one"
    assert names_in(path, "failed") == ["bad.json"]
    assert (path / "failed/bad.json").read_bytes() == before
    assert len(names_in(path, "done")) == 20


def test_the_only_ref_that_cannot_be_read_ends_in_failed(path: Path, mount: Mount) -> None:
    """Get raises, for as long as an outage may take; then it is done with it."""
    queue = mount.open_queue(path)
    queue.put(refs("bad"))
    unreadable(mount, "bad")
    raised = 0
    with pytest.warns(UnreadableRefWarning):
        for _ in range(90):
            mount.ahead_s += 1.0
            try:
                assert queue.get(2) == []
                assert names_in(path, "pending") == []
            except QueueIOError:
                raised += 1
    assert 20 <= raised <= 60
    assert names_in(path, "failed") == ["bad.json"]


def test_an_outage_buries_nothing(path: Path, mount: Mount) -> None:
    """Where no file can be read for a while, that is no ref's fault."""
    queue = mount.open_queue(path)
    queue.put(refs("a", "b", "c"))
    unreadable(mount, "")
    for _ in range(25):
        mount.ahead_s += 1.0
        try:
            assert queue.get(3) == []
        except QueueIOError as error:
            assert error.errno == errno.EIO
    mount.answers.clear()
    found: list[str] = []
    for _ in range(40):
        mount.ahead_s += 1.0
        found += ids(queue.get(3))
    assert sorted(found) == ["a", "b", "c"]


def test_an_expired_lease_that_cannot_be_read_stops_no_get(path: Path, mount: Mount) -> None:
    """What reclaiming it raises costs that ref, and not the others."""
    queue = mount.open_queue(path, lease_timeout_s=60.0)
    queue.put(refs("a", "bad"))
    os.rename(path / "pending/bad.json", path / "leased/bad@gone.1.abcdef+1.json")
    os.utime(path / "leased/bad@gone.1.abcdef+1.json", (1e9, 1e9))
    unreadable(mount, "bad")
    mount.ahead_s += 100.0
    assert queue.get(1) != [] or ids(queue.get(1)) == ["a"]
    mount.answers.clear()
    mount.ahead_s += 100.0
    assert ids(queue.get(2)) == ["bad"]
    queue.ack(refs("a", "bad"))
    assert "expiries" not in content(path / "done/bad.json").get("_fsqueue", {})
    assert_clean(path)


def test_an_ack_that_lost_to_another_where_a_stat_tells_what_was(path: Path, mount: Mount) -> None:
    """Another handle trained the ref meanwhile. A stat of the done file shows the stamp of this lease still, as if
    its own rename had been done; what an open file shows is asked instead."""
    mount.tells_no_ctime()
    queue = mount.open_queue(path, lease_timeout_s=600.0)
    queue.put(refs("a"))
    batch = queue.get(1)
    remembered = os.stat(path / "leased" / lease_name(path, "a"))
    with FileSampleRefQueue(path, durable=False) as other:
        os.rename(path / "leased" / lease_name(path, "a"), path / "pending" / "a.json")
        other.ack(other.get(1))
    later = time.time() + 5000
    os.utime(path / "done" / "a.json", (later, later))

    def stat(call: Answer, name: str, **kwargs: Any) -> os.stat_result:
        found = call(name, **kwargs)
        return remembered if name == "a.json" else found

    mount.answers["stat"] = stat
    assert queue.ack(batch) == ["a"]


def test_an_ack_that_another_handle_s_claim_came_before(path: Path, mount: Mount) -> None:
    """This process was stopped within the rename. When it goes on, the ref was taken over, trained and acknowledged by
    another, which stamped it after this one: that it is done since the rename began is no sign of this one's ack."""
    queue = mount.open_queue(path, lease_timeout_s=600.0)
    queue.put(refs("a"))
    batch = queue.get(1)

    def stopped_within(call: Answer, name: str, new_name: str, **kwargs: Any) -> None:
        del mount.answers["rename"]
        time.sleep(0.2)
        with FileSampleRefQueue(path, durable=False) as other:
            os.rename(path / "leased" / name, path / "pending" / "a.json")
            assert other.ack(other.get(1)) == []
        call(name, new_name, **kwargs)

    mount.answers["rename"] = stopped_within
    assert queue.ack(batch) == ["a"] and names_in(path, "done") == ["a.json"]
