"""The ledger's bad days: torn tails, damage, full disks, failed fsyncs, deaths at every file operation, held locks."""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import LockTimeoutError, QueueIOError, SampleRef, StaleLockWarning
from fsqueue.control.errors import LedgerDamagedError, LedgerError, LedgerLockedError, LedgerLockUnsupportedError
from fsqueue.control.ledger import FileMetadataStore, flock, replica
from fsqueue.disk.fileops import FileOps, using, wrapped
from tests.support import GUARD_S, Child, InThread, Tap, content, numbered, ref, refs, wait_until
from tests.support.dying import died
from tests.support.stale import Stale, settled
from tests.sweeps.proof import tally
from tests.sweeps.proof.apart import Apart

File = FileMetadataStore[SampleRef]


def segment(path: Path, kind: str) -> Path:
    return path / str(content(path / f"{kind}.json")["segment"])


def state(store: File) -> tuple[list[str], Any]:
    return store.all_committed_ids(), store.durable_marker()


def end_of(path: Path) -> int:
    """Return where the last record of a segment ends."""
    return len(path.read_bytes().rstrip(b"\n")) + 1


# -- tails ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["commits", "acks"])
@pytest.mark.parametrize("rest", [b"", b"\0" * 300, b"\n" * 300, b"\xff{}" * 100], ids=["cut", "NUL", "LF", "noise"])
def test_a_tail_torn_at_any_byte_is_cut_and_never_misread(tmp_path: Path, kind: str, rest: bytes) -> None:
    """The ledger holds exactly the records before, whatever is left of the last one and whatever follows it."""
    path = tmp_path / "ledger"
    with File(path, durable=False) as store:
        store.commit_samples(refs("a", "b"))
        store.record_train_ack(["a"], global_step=1, optimizer_durable=True)
        before, start = state(store), end_of(segment(path, kind))
        if kind == "commits":
            store.commit_samples(refs("c", "d"))
        else:
            store.record_train_ack(["b"], global_step=2, optimizer_durable=False)
        after, whole = state(store), segment(path, kind).read_bytes()
    assert after != before
    for end in range(start, len(whole) - 1 if rest.startswith(b"\n") else len(whole)):
        segment(path, kind).write_bytes(whole[:end] + rest)
        with File(path, durable=False) as torn:
            assert state(torn) == before
    with File(path, durable=False) as again:
        assert again.commit_sample(ref("e"))
        again.record_train_ack(["e"], global_step=3)
    with File(path, durable=False) as once_more:
        assert once_more.all_committed_ids() == ["a", "b", "e"]
        assert once_more.durable_marker()["acked"] == {"a", "e"}


def test_every_flipped_byte_of_the_last_record_is_noticed(tmp_path: Path) -> None:
    """The checksum covers the length and all of the content."""
    path = tmp_path / "ledger"
    with File(path, durable=False) as store:
        store.commit_sample(ref("a"))
        start = end_of(segment(path, "commits"))
        store.commit_sample(ref("b"))
    whole = segment(path, "commits").read_bytes()
    for at in range(start, len(whole)):
        segment(path, "commits").write_bytes(whole[:at] + bytes([whole[at] ^ 0x01]) + whole[at + 1 :])
        with File(path, durable=False) as flipped:
            assert flipped.all_committed_ids() == ["a"]


@pytest.mark.parametrize("at", [0, 20, 40, 200])
def test_damage_in_the_middle_is_refused(tmp_path: Path, at: int) -> None:
    """Transactions after the damage are not thrown away, and not believed to be all there is: an error says where."""
    path = tmp_path / "ledger"
    with File(path) as store:
        store.commit_sample(ref("a"))
        start = end_of(segment(path, "commits"))
        store.commit_samples(refs("b"))
        store.commit_samples(refs("c"))
    whole = bytearray(segment(path, "commits").read_bytes())
    whole[start + at] ^= 0xFF
    segment(path, "commits").write_bytes(whole)
    with pytest.raises(LedgerDamagedError, match=f"at byte {start}") as caught:
        File(path)
    assert (caught.value.offset, pickle.loads(pickle.dumps(caught.value)).offset) == (start, start)
    assert segment(path, "commits").read_bytes() == whole


def test_a_handle_that_is_open_meets_a_torn_tail(tmp_path: Path) -> None:
    """It goes on from the last whole record, and so do the others."""
    path = tmp_path / "ledger"
    with File(path) as one, File(path) as two:
        one.commit_sample(ref("a"))
        with open(segment(path, "commits"), "r+b") as file:
            file.seek(end_of(segment(path, "commits")))
            file.write(b'{"crc":"0badc0de","len":"00001000","ids":["torn"')
        assert two.all_committed_ids() == ["a"]
        assert two.commit_sample(ref("b")) and one.commit_sample(ref("c"))
        assert two.all_committed_ids() == ["a", "b", "c"]


# -- errors of the filesystem ---------------------------------------------------------------------------------------


Fail = Callable[[str, tuple[Any, ...]], int | None]


class Faulty:
    """Makes chosen calls fail: fail(name, args) returns the errno, or None to let the call through."""

    def __init__(self) -> None:
        self.fail: Fail = lambda name, args: None
        self.seen: list[tuple[str, tuple[Any, ...]]] = []
        self.ops = wrapped(FileOps(), self._around)

    def _around(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.seen.append((name, args))
        code = self.fail(name, args)
        if code is None:
            return call(*args, **kwargs)
        if name == "pwrite":
            call(args[0], args[1][: len(args[1]) // 2], args[2])
        raise OSError(code, os.strerror(code))

    def open(self, path: Path, **arguments: Any) -> File:
        with using(self.ops):
            return File(path, **arguments)


def fail_in(operation: str, codes: Iterator[int]) -> Fail:
    """Fail an operation with the next of the codes, while there are any."""
    return lambda name, args: next(codes, None) if name == operation else None


def fail_at(number: int, numbers: Iterator[int], code: int) -> Fail:
    """Give each operation the next of the numbers, and fail the one that gets this number."""
    return lambda name, args: code if next(numbers) == number else None


@pytest.fixture
def faulty() -> Faulty:
    return Faulty()


def act(store: File, kind: str, sample_id: str) -> None:
    if kind == "commits":
        store.commit_samples([ref(sample_id)])
    else:
        store.record_train_ack([sample_id], global_step=5, optimizer_durable=True)


@pytest.mark.parametrize("kind", ["commits", "acks"])
@pytest.mark.parametrize("truncates", [True, False])
def test_a_disk_that_is_full_in_the_middle_of_a_record(
    tmp_path: Path, faulty: Faulty, kind: str, truncates: bool
) -> None:
    """A clear error, nothing recorded, and the next one works once there is room; also where cutting back fails."""
    store = faulty.open(tmp_path / "ledger")
    act(store, kind, "a")
    before = state(store)
    failing = ("pwrite",) if truncates else ("pwrite", "ftruncate")
    faulty.fail = lambda name, args: errno.ENOSPC if name in failing else None
    with pytest.raises(QueueIOError, match=r"writing ledger .*ENOSPC.*free space") as caught:
        act(store, kind, "b")
    assert caught.value.errno == errno.ENOSPC
    faulty.fail = lambda name, args: None
    with File(tmp_path / "ledger") as other:
        assert state(store) == state(other) == before
    act(store, kind, "c")
    with File(tmp_path / "ledger") as other:
        assert state(other) == state(store) != before
    store.close()


def test_room_for_the_record_but_not_for_the_spare(tmp_path: Path, faulty: Faulty) -> None:
    """The line feeds written ahead are a luxury: the transaction goes through without them."""
    store = faulty.open(tmp_path / "ledger")
    faulty.fail = lambda name, args: errno.ENOSPC if name == "pwrite" and len(args[1]) > 10_000 else None
    store.commit_sample(ref("a"))
    assert segment(tmp_path / "ledger", "commits").stat().st_size < 1_000
    with File(tmp_path / "ledger") as other:
        assert other.all_committed_ids() == ["a"]
    store.close()


@pytest.mark.parametrize("kind", ["commits", "acks"])
def test_after_a_failed_fsync_the_transaction_goes_into_a_new_segment(
    tmp_path: Path, faulty: Faulty, kind: str
) -> None:
    """The caller sees success, the old file is never fsynced again, others follow, no other segment is left."""
    path = tmp_path / "ledger"
    store, other = faulty.open(path), File(path)
    act(store, kind, "a")
    old = segment(path, kind)
    old_inode = old.stat().st_ino
    failed: list[int] = []

    def fail(name: str, args: tuple[Any, ...]) -> int | None:
        if name != "fsync" or os.fstat(args[0]).st_ino != old_inode:
            return None
        failed.append(args[0])
        return errno.EIO

    faulty.fail = fail
    act(store, kind, "b")
    act(store, kind, "c")
    assert len(failed) == 1
    assert segment(path, kind) != old and not old.exists()
    assert state(other) == state(store)
    act(other, kind, "d")
    assert state(store) == state(other)
    with File(path) as again:
        assert state(again) == state(other)
        assert again.get_committed("b") == (ref("b") if kind == "commits" else None)
    other.close()
    store.close()


@pytest.mark.parametrize("also", ["create", "rename", "pwrite", "dir"])
def test_where_no_new_segment_can_be_written_either(tmp_path: Path, faulty: Faulty, also: str) -> None:
    """The error is said, nothing is lost that was recorded before, and the old file is not fsynced later either."""
    path = tmp_path / "ledger"
    store = faulty.open(path)
    store.commit_sample(ref("a"))
    inode = segment(path, "commits").stat().st_ino
    fsyncs: list[int] = []

    def fail(name: str, args: tuple[Any, ...]) -> int | None:
        if name == "fsync" and os.fstat(args[0]).st_ino == inode:
            fsyncs.append(args[0])
            return errno.EIO
        if name == "open" and also == "create" and args[1] & os.O_CREAT:
            return errno.ENOSPC
        if name == "pwrite" and fsyncs and also == "pwrite":
            return errno.ENOSPC
        if name == "fsync" and also == "dir" and os.path.isdir(f"/proc/self/fd/{args[0]}"):
            return errno.EIO
        return errno.EIO if name == "rename" and also == "rename" else None

    faulty.fail = fail
    with pytest.raises(QueueIOError):
        store.commit_sample(ref("b"))
    faulty.fail = lambda name, args: errno.EIO if name == "fsync" and os.fstat(args[0]).st_ino == inode else None
    assert store.commit_sample(ref("c"))
    assert len(fsyncs) == 1
    with File(path) as other:
        assert other.all_committed_ids() == store.all_committed_ids()
        assert [i for i in other.all_committed_ids() if i != "b"] == ["a", "c"]
        assert other.get_committed("c") == ref("c")
    store.close()


def test_a_record_that_its_writer_did_not_live_to_sync_is_synced_before_it_is_relied_on(
    tmp_path: Path, faulty: Faulty
) -> None:
    """A duplicate is only called one once it is durable, and so is a marker."""
    path = tmp_path / "ledger"
    with File(path, durable=False) as killed_before_fsync:
        store = faulty.open(path)
        killed_before_fsync.commit_sample(ref("a"))
        killed_before_fsync.record_train_ack(["a"], global_step=1)
    for call in (lambda: store.commit_sample(ref("a")), store.durable_marker):
        for expected in (1, 0):
            faulty.seen.clear()
            call()
            assert [name for name, _ in faulty.seen].count("fsync") == expected
    store.close()


def test_a_segment_that_the_server_no_longer_knows_is_opened_again(tmp_path: Path, faulty: Faulty) -> None:
    """Reading a ref, looking for news and appending all go on after it."""
    with File(tmp_path / "ledger") as other:
        store = faulty.open(tmp_path / "ledger")
        store.commit_samples(refs("a", "b"))
        for name in ("pread", "fstat", "lock"):
            once = iter([errno.ESTALE])
            faulty.fail = fail_in(name, once)
            assert store.get_committed("b") == ref("b")
            assert store.commit_sample(ref(name))
            assert next(once, None) is None
        assert other.all_committed_ids() == store.all_committed_ids() == ["a", "b", "pread", "fstat", "lock"]
        store.close()


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ENOTCONN])
@pytest.mark.parametrize("first", ["commit", "ack", "read", "look"])
def test_a_ledger_with_stale_descriptors_is_opened_by_its_path_again(tmp_path: Path, code: int, first: str) -> None:
    """Whichever call comes first finds it out; the one after it works, as a new process's would."""
    stale = Stale()
    with using(stale.ops):
        store = File(tmp_path / "ledger")
    store.commit_samples(refs("a", "b"))
    stale.errno = code
    calls: dict[str, Callable[[], Any]] = {
        "commit": lambda: store.commit_samples(refs("c")),
        "ack": lambda: store.record_train_ack(["a"], global_step=3),
        "read": lambda: store.get_committed("b"),
        "look": store.committed_count,
    }
    settled(calls[first])
    for call in calls.values():
        call()
    stale.errno = 0
    assert state(store) == (["a", "b", "c"], store.durable_marker())
    assert store.acked_steps(["a"]) == {"a": 3}
    store.close()


@pytest.mark.parametrize("there", ["another", "nothing", "an empty directory"])
def test_stale_descriptors_are_not_traded_for_another_ledger(tmp_path: Path, there: str) -> None:
    """Where the mount is not back yet, nothing is made in its place; another ledger is told from the former."""
    stale, path = Stale(), tmp_path / "ledger"
    with using(stale.ops):
        store = File(path)
    store.commit_samples(refs("a"))
    os.rename(path, tmp_path / "unmounted")
    if there == "another":
        File(path).close()
    elif there != "nothing":
        path.mkdir()
    stale.errno = errno.ESTALE
    with pytest.raises(QueueIOError):
        store.commit_samples(refs("b"))
    expected = {"another": LedgerError, "nothing": QueueIOError, "an empty directory": LedgerError}[there]
    for _ in range(2):
        with pytest.raises(expected):
            store.commit_samples(refs("b"))
    assert there == "another" or not path.exists() or os.listdir(path) == []
    if path.exists():
        shutil.rmtree(path)
    os.rename(tmp_path / "unmounted", path)
    assert store.commit_samples(refs("b")) == [True] and store.all_committed_ids() == ["a", "b"]
    store.close()


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.ESTALE])
@pytest.mark.parametrize("kind", ["commits", "acks", "compact"])
def test_any_file_operation_may_fail_once(tmp_path: Path, kind: str, code: int) -> None:
    """The call succeeds or says what failed; afterwards this handle and others agree, go on, and wait for no lock."""
    for number in itertools.count():
        path, faulty = tmp_path / f"ledger{number}", Faulty()
        store = faulty.open(path, lock_timeout_s=GUARD_S)
        store.commit_sample(ref("a"))
        store.record_train_ack(["a"], global_step=1)
        counter = itertools.count()
        faulty.fail = fail_at(number, counter, code)
        told = False
        try:
            store.compact() if kind == "compact" else act(store, kind, "b")
        except QueueIOError as error:
            told = True
            assert error.errno == code and str(path) in str(error)
        ended = next(counter) <= number
        faulty.fail = lambda name, args: None
        with File(path, lock_timeout_s=1.0) as other:
            assert state(other) == state(store)
            both = [*other.all_committed_ids(), *other.durable_marker()["acked"]]
            assert told or kind == "compact" or "b" in both
            assert store.commit_sample(ref("c")) and other.commit_sample(ref("d"))
            store.record_train_ack(["c"], global_step=2)
            other.record_train_ack(["d"], global_step=3)
            assert state(other) == state(store)
        with File(path) as later:
            assert state(later) == state(store)
        store.close()
        if ended:
            return


# -- deaths ---------------------------------------------------------------------------------------------------------


def create(path: Path) -> None:
    File(path).close()


def commit(path: Path) -> None:
    File(path).commit_samples(refs("b", "c"))


def ack(path: Path) -> None:
    File(path).record_train_ack(["a"], global_step=2, optimizer_durable=True)


def compact(path: Path) -> None:
    File(path).compact()


def forget(path: Path) -> None:
    File(path).forget_acks(after_step=0)


def die_everywhere(tmp_path: Path, work: Callable[[Path], None], after: bool) -> None:
    outcomes: set[str] = set()
    for number in itertools.count():
        path = tmp_path / "ledger"
        if work is not create:
            with File(path, durable=False) as store:
                store.commit_sample(ref("a"))
                store.record_train_ack(["x"], global_step=1)
        witness = File(path) if work is not create else None
        ended = not died(work, path, number, after)
        with File(path) as later:
            found = state(later)
            if witness is not None:
                assert state(witness) == found
                witness.record_train_ack(["w"], global_step=None)
                witness.commit_sample(ref("w"))
                witness.close()
            later.commit_sample(ref("l"))
            assert later.all_committed_ids() == [*found[0], *(["w"] if witness else []), "l"]
            assert later.durable_marker()["acked"] == found[1]["acked"] | ({"w"} if witness else set())
        outcomes.add(repr(found))
        shutil.rmtree(path)
        if ended:
            break
        tally.count("crash points in the ledger: transactions lost or torn 0")
    assert len(outcomes) == (1 if work in (create, compact) else 2), outcomes


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("work", [create, commit, ack, compact, forget])
def test_dying_at_any_file_operation_leaves_all_of_a_transaction_or_nothing(
    tmp_path: Path, apart: Apart, work: Callable[[Path], None], after: bool
) -> None:
    """A handle that was open all the while and one that comes later agree, and both go on."""
    apart(die_everywhere, tmp_path, work, after)


def stop_in_append(pipe: Connection, path: Path) -> None:
    """A child that stops for good, holding the lock, half way through writing a record."""
    tap = Tap()
    with tap.here():
        store = File(path)

    def stop(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "pwrite":
            os.pwrite(args[0], args[1][:100], args[2])
            pipe.send("stopped")
            pipe.recv()

    tap.before = stop
    store.commit_sample(ref("torn"))


def test_a_writer_killed_half_way_does_not_hold_the_others_up(tmp_path: Path) -> None:
    """While it lives they wait; its lock dies with it, and its record was never written."""
    path = tmp_path / "ledger"
    with Child(stop_in_append, path) as child, File(path) as store:
        assert child.receive() == "stopped"
        waiting = InThread(lambda: store.commit_sample(ref("a")))
        wait_until(lambda: waiting.thread.is_alive(), "the commit")
        child.kill()
        assert waiting.result() is True
        assert store.all_committed_ids() == ["a"]


# -- the lock -------------------------------------------------------------------------------------------------------


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A ledger whose commits another open file has locked."""
    from filelock import lock_descriptor

    path = tmp_path / "ledger"
    with File(path) as store:
        store.commit_samples(numbered(3))
    fd = os.open(segment(path, "commits"), os.O_RDWR)
    assert lock_descriptor(fd, blocking=False)
    yield path
    os.close(fd)


def test_without_the_lock_nothing_is_written(tmp_path: Path) -> None:
    """The error names the file and the time, and is a LockTimeoutError; acknowledgements need another lock."""
    from filelock import lock_descriptor

    path = tmp_path / "ledger"
    with File(path, lock_timeout_s=0.05) as store:
        store.commit_sample(ref("a"))
        fd = os.open(segment(path, "commits"), os.O_RDWR)
        assert lock_descriptor(fd, blocking=False)
        before = segment(path, "commits").read_bytes()
        with pytest.raises(LedgerLockedError, match=r"commits-\w+\.jsonl was held .* without it") as caught:
            store.commit_sample(ref("b"))
        assert isinstance(caught.value, LockTimeoutError)
        assert pickle.loads(pickle.dumps(caught.value)).waited_s == caught.value.waited_s
        store.record_train_ack(["a"], global_step=1)
        assert segment(path, "commits").read_bytes() == before
        os.close(fd)
        assert store.commit_sample(ref("b"))


def test_a_lock_that_a_dead_node_may_hold_is_waited_for_and_said(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning tells what is being waited for."""
    monkeypatch.setattr(flock, "WARN_AFTER_S", 0.01)
    with pytest.warns(StaleLockWarning, match=r"commits-.* waiting for up to 0 s"), pytest.raises(LedgerLockedError):
        File(held, lock_timeout_s=0.2)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_a_mount_without_flock_is_refused(tmp_path: Path, faulty: Faulty, code: int) -> None:
    """The error says what to mount; there is no ledger without a lock."""
    faulty.fail = lambda name, args: code if name == "lock" else None
    with pytest.raises(LedgerLockUnsupportedError, match="a ledger needs flock; mount Lustre with -o flock") as caught:
        faulty.open(tmp_path / "ledger")
    assert caught.value.errno == code
    assert str(tmp_path / "ledger" / "create.lock") in str(caught.value)
    assert not (tmp_path / "ledger" / "fsledger.json").exists()
    File(tmp_path / "ledger").close()
    with pytest.raises(LedgerLockUnsupportedError, match=r"acks-|commits-"):
        faulty.open(tmp_path / "ledger")


def test_compaction_keeps_what_a_limit_would_lose(tmp_path: Path) -> None:
    """More ids than one record takes, with and without steps, in segments that replace each other."""
    with File(tmp_path / "ledger", durable=False) as store:
        many = [f"s{n:05d}" for n in range(2 * replica.IDS_A_RECORD + 5)]
        store.record_train_ack(many, global_step=3, optimizer_durable=True)
        store.record_train_ack(["x", "y"], global_step=None, optimizer_durable=True)
        before = store.durable_marker()
        for _ in range(3):
            store.compact()
        assert store.durable_marker() == before
        with File(tmp_path / "ledger") as other:
            assert other.durable_marker() == before
            assert other.acked_steps(["x", many[-1]]) == {"x": None, many[-1]: 3}
