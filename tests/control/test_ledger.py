"""The ledger: its contract over both stores, several handles over one directory, and the files it leaves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import InvalidArgumentError, InvalidRefError, SampleRef, TensorInRefError
from fsqueue.control.errors import LedgerClosedError, LedgerError, LedgerFormatError
from fsqueue.control.ledger import FileMetadataStore, replica
from fsqueue.control.ledger.metadata_store import InMemoryMetadataStore, MetadataStore
from tests.support import Child, InThread, Tap, content, in_fork, numbered, ref, refs
from tests.support.foreign_records import Loose, foreign_ref
from tests.support.foreign_records import SampleRef as ForeignRef

Store = MetadataStore[SampleRef]
File = FileMetadataStore[SampleRef]


def segment(path: Path, kind: str) -> Path:
    """The current segment of one log."""
    return path / str(content(path / f"{kind}.json")["segment"])


def records(path: Path, kind: str) -> list[dict[str, Any]]:
    """A log's records, as any JSON reader sees them."""
    return [json.loads(line) for line in segment(path, kind).read_bytes().splitlines() if line]


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    with_files: Store = File(tmp_path / "ledger") if request.param == "file" else InMemoryMetadataStore()
    yield with_files
    with_files.close()


# -- the contract ---------------------------------------------------------------------------------------------------


def test_an_id_is_committed_once(store: Store) -> None:
    """commit_sample says True the first time and False ever after, and keeps the first ref."""
    assert store.commit_sample(ref("a", num_tokens=1)) is True
    assert store.commit_sample(ref("a", num_tokens=2)) is False
    assert store.committed_count() == 1
    assert store.get_committed("a") == ref("a", num_tokens=1)


def test_a_sample_that_two_nodes_committed_at_once_counts_once(tmp_path: Path) -> None:
    """Two records of one id, as a lock that does not exclude leaves them: the first counts, what follows is there."""
    with File(tmp_path / "ledger") as store:
        store.commit_samples([ref("a", num_tokens=1), ref("b")])
    log = segment(tmp_path / "ledger", "commits")
    with File(tmp_path / "other") as other:
        other.commit_samples([ref("c"), ref("a", num_tokens=2), ref("c")])
        other.commit_samples(refs("d"))
    kept = log.read_bytes().rstrip(b"\n") + b"\n"
    log.write_bytes(kept + segment(tmp_path / "other", "commits").read_bytes())
    with File(tmp_path / "ledger") as store:
        assert store.all_committed_ids() == ["a", "b", "c", "d"]
        assert [store.get_committed(i) for i in "abcd"] == [ref("a", num_tokens=1), *refs("b", "c", "d")]


def test_a_batch_says_for_each_ref_whether_it_is_new(store: Store) -> None:
    """Also where an id comes twice in one batch."""
    store.commit_samples(refs("b"))
    assert store.commit_samples(refs("a", "b", "c", "a")) == [True, False, True, False]
    assert store.commit_samples([]) == []
    assert store.all_committed_ids() == ["b", "a", "c"]


def test_unknown_ids(store: Store) -> None:
    """An id that was never committed is not committed, and has no ref."""
    assert not store.is_committed("a")
    assert store.get_committed("a") is None
    assert store.committed_count() == 0
    assert store.all_committed_ids() == []


def test_nothing_was_acknowledged_yet(store: Store) -> None:
    """The marker of a new ledger."""
    assert store.durable_marker() == {"acked": set(), "global_step": None, "optimizer_durable": False}


def test_an_acknowledgement_is_one_fact(store: Store) -> None:
    """Ids, step and marker are recorded together; a step that is not named stays."""
    store.commit_samples(refs("a", "b", "c"))
    store.record_train_ack(["a"], global_step=7, optimizer_durable=True)
    assert store.durable_marker() == {"acked": {"a"}, "global_step": 7, "optimizer_durable": True}
    store.record_train_ack(["b"], global_step=None, optimizer_durable=False)
    assert store.durable_marker() == {"acked": {"a", "b"}, "global_step": 7, "optimizer_durable": False}
    assert store.acked_steps(["a", "b", "c", "x"]) == {"a": 7, "b": None}
    assert store.progress() == (2, 7)


def test_ids_are_acknowledged_before_they_are_committed(store: Store) -> None:
    """The ledger records what it is told; the commit that follows finds the sample acknowledged."""
    store.record_train_ack(["a"], global_step=1, optimizer_durable=True)
    assert store.durable_marker()["acked"] == {"a"}
    assert store.commit_sample(ref("a", estimated_bytes=5)) is True
    assert store.acked_steps(["a"]) == {"a": 1}
    assert store.backlog() == (0, 0)


def test_the_backlog_counts_refs_and_bytes(store: Store) -> None:
    """Samples that are committed and not acknowledged count, by estimated_bytes."""
    store.commit_samples([ref("a", estimated_bytes=10), ref("b", estimated_bytes=100), ref("c")])
    assert store.backlog() == (3, 110)
    store.record_train_ack(["a"], global_step=1, optimizer_durable=False)
    store.record_train_ack(["a"], global_step=2, optimizer_durable=False)
    assert store.backlog() == (2, 100)


def test_acknowledgements_after_a_checkpoint_are_taken_back(store: Store) -> None:
    """Those of later steps only; the first step that acknowledged an id counts; a second call finds nothing."""
    store.commit_samples(refs("a", "b", "c", "d"))
    store.record_train_ack(["d"], global_step=None, optimizer_durable=False)
    for step, sample_id in ((3, "c"), (2, "b"), (1, "a"), (9, "a")):
        store.record_train_ack([sample_id], global_step=step, optimizer_durable=True)
    assert store.forget_acks(after_step=1) == ["b", "c"]
    assert store.forget_acks(after_step=1) == []
    assert store.acked_steps(["a", "b", "c", "d"]) == {"a": 1, "d": None}
    assert store.progress() == (2, 1)
    store.record_train_ack(["b"], global_step=2, optimizer_durable=True)
    assert store.acked_steps(["b"]) == {"b": 2}


# -- files ----------------------------------------------------------------------------------------------------------


def test_everything_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    """Refs equal, in commit order, with acknowledgements and marker."""
    awkward = [ref("a/b", metadata={"x": [1, None]}), ref("ü" * 300), ref('"refs":[', estimated_bytes=3), ref("\n")]
    with File(tmp_path / "ledger") as store:
        store.commit_samples(awkward)
        store.commit_sample(ref("last"))
        store.record_train_ack(["\n", "elsewhere"], global_step=4, optimizer_durable=True)
    with File(tmp_path / "ledger") as again:
        assert [again.get_committed(i) for i in again.all_committed_ids()] == [*awkward, ref("last")]
        assert again.durable_marker() == {"acked": {"\n", "elsewhere"}, "global_step": 4, "optimizer_durable": True}
        assert again.commit_samples(awkward) == [False] * 4


def test_refs_of_another_package(tmp_path: Path) -> None:
    """Nested records, tuples and all, come back equal; also tuples that only the value tells from lists."""
    with FileMetadataStore(tmp_path / "ledger", ref_type=ForeignRef) as store:
        store.commit_samples([foreign_ref("a"), foreign_ref("b", pair=("x", 3))])
        assert store.get_committed("b") == foreign_ref("b", pair=("x", 3))
    with FileMetadataStore(tmp_path / "loose", ref_type=Loose) as loose:
        given = [Loose("a", (1, [2, (3,)])), Loose("b", ' ,"_fsqueue":'), Loose("c", {"k": (1,)})]
        loose.commit_samples(given)
        assert [loose.get_committed(i) for i in "abc"] == given
        assert [type(loose.get_committed("a").value)] == [tuple]  # type: ignore[union-attr]


def test_two_handles_see_each_others_work_at_once(tmp_path: Path) -> None:
    """Commits and acknowledgements, whoever of the two opened first."""
    with File(tmp_path / "ledger") as one, File(tmp_path / "ledger") as two:
        assert one.commit_sample(ref("a")) and not two.commit_sample(ref("a"))
        assert two.commit_sample(ref("b")) and one.is_committed("b")
        assert one.get_committed("b") == ref("b")
        two.record_train_ack(["a"], global_step=2, optimizer_durable=True)
        assert one.durable_marker() == two.durable_marker()
        assert one.backlog() == (1, 0)


def test_what_is_not_JSON_is_refused_and_nothing_of_the_batch_recorded(tmp_path: Path) -> None:
    """The error names the place inside the ref."""
    with File(tmp_path / "ledger") as store:
        with pytest.raises(InvalidRefError, match=r"<root>.metadata\['x'\]"):
            store.commit_samples([ref("a"), ref("b", metadata={"x": float("nan")})])
        array = type("Array", (), {"dtype": 1, "shape": 2, "device": 3})()
        with pytest.raises(TensorInRefError):
            store.commit_sample(ref("a", metadata={"x": array}))
        for wrong in ([None], [7], refs("a"), "abc", b"a", 7):
            with pytest.raises(InvalidArgumentError, match="sample ids"):
                store.record_train_ack(wrong, global_step=1)  # type: ignore[arg-type]
        with pytest.raises(LedgerError, match="global_step of 0 or more"):
            store.record_train_ack(["a"], global_step=-1)
        assert store.committed_count() == 0 and store.progress() == (0, None)


def test_a_transaction_is_one_line_of_JSON(tmp_path: Path) -> None:
    """A batch is one record, with checksum and length first, and jq's view of it is the refs."""
    with File(tmp_path / "ledger") as store:
        store.commit_samples(refs("a", "b"))
        store.record_train_ack(["a"], global_step=3, optimizer_durable=True)
        (commit,) = records(tmp_path / "ledger", "commits")
        assert list(commit)[:2] == ["crc", "len"]
        assert [each["sample_id"] for each in commit["refs"]] == commit["ids"] == ["a", "b"]
        (ack,) = records(tmp_path / "ledger", "acks")
        assert (ack["ids"], ack["global_step"], ack["optimizer_durable"]) == (["a"], 3, True)


@pytest.mark.parametrize("act", ["commit", "ack"])
def test_a_batch_is_one_durability_barrier(tmp_path: Path, act: str) -> None:
    """One write and one fsync, however many samples; neither costs a listing nor an open."""
    tap = Tap()
    with tap.here():
        store = File(tmp_path / "ledger")
    store.commit_sample(ref("first"))
    store.record_train_ack(["first"], global_step=0)
    tap.counts.clear()
    if act == "commit":
        store.commit_samples(numbered(64))
    else:
        store.record_train_ack([f"s{n:05d}" for n in range(64)], global_step=1)
    assert tap.counts == {"lock": 1, "fstat": 1, "pread": 1, "pwrite": 1, "fsync": 1, "unlock": 1}
    store.close()


def test_what_is_known_costs_no_file_operation(tmp_path: Path) -> None:
    """is_committed of a committed id answers from memory."""
    tap = Tap()
    with tap.here(), File(tmp_path / "ledger") as store:
        store.commit_samples(numbered(100))
        tap.counts.clear()
        assert all(store.is_committed(f"s{n:05d}") for n in range(100))
        assert not tap.counts


def test_following_costs_only_what_is_new(tmp_path: Path) -> None:
    """A handle that is up to date reads a fixed few bytes, however long the log is."""
    tap = Tap()
    with File(tmp_path / "ledger", durable=False) as writer:
        writer.commit_samples(numbered(2_000))
        with tap.here():
            reader = File(tmp_path / "ledger")
        read: list[int] = []
        tap.before = lambda name, args, kwargs: read.append(args[1]) if name == "pread" else None
        for n in range(5):
            writer.commit_sample(ref(f"new{n}"))
            assert reader.is_committed(f"new{n}")
        reader.close()
    assert segment(tmp_path / "ledger", "commits").stat().st_size > 500_000
    assert len(read) <= 10


# -- which directories are ledgers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: (path / "fsledger.json").write_text('{"format": 2, "created_at": 0}'), "format 2"),
        (lambda path: (path / "fsledger.json").write_text("{"), "damaged fsledger.json"),
        (lambda path: (path / "notes.txt").write_text("mine"), "notes.txt"),
        (lambda path: (path / "commits-00000000.jsonl").write_text("{}"), "restore it"),
    ],
)
def test_what_is_no_ledger_of_this_format_is_not_touched(
    tmp_path: Path, make: Callable[[Path], Any], says: str
) -> None:
    """An unknown format, a stranger's directory, a ledger that lost its fsledger.json."""
    path = tmp_path / "ledger"
    path.mkdir()
    make(path)
    before = sorted(path.iterdir())
    with pytest.raises(LedgerFormatError, match=says):
        File(path)
    assert sorted(path.iterdir()) == before


def test_a_lost_segment_or_pointer_is_said_not_replaced(tmp_path: Path) -> None:
    """A ledger never begins anew on its own."""
    File(tmp_path / "a").close()
    segment(tmp_path / "a", "commits").unlink()
    with pytest.raises(LedgerFormatError, match="has lost its commits-"):
        File(tmp_path / "a")
    File(tmp_path / "b").close()
    (tmp_path / "b" / "acks.json").unlink()
    with pytest.raises(LedgerFormatError, match=r"has lost its acks\.json"):
        File(tmp_path / "b")


def test_a_file_is_no_ledger(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("")
    with pytest.raises(LedgerFormatError, match="is a file"):
        File(tmp_path / "ledger")


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    """Every call says that it is closed; closing twice is fine."""
    store = File(tmp_path / "deep" / "ledger")
    store.close()
    store.close()
    for call in (store.committed_count, store.durable_marker, lambda: store.commit_samples([])):
        with pytest.raises(LedgerClosedError, match="open another one"):
            call()


# -- several processes and threads ----------------------------------------------------------------------------------


def commit_and_count(pipe: Connection, path: Path, count: int) -> None:
    """A child that commits the same ids as its siblings and says how many were new to the ledger."""
    pipe.send("ready")
    pipe.recv()
    fresh = 0
    with File(path, durable=False) as store:
        for start in range(0, count, 5):
            fresh += sum(store.commit_samples(numbered(count)[start : start + 5]))
            store.record_train_ack([f"s{start:05d}"], global_step=start)
    pipe.send(fresh)


def test_of_several_processes_that_commit_an_id_one_is_told_that_it_is_new(tmp_path: Path) -> None:
    """Four processes create the ledger at once and commit the same ids: each id is new once."""
    children = [Child(commit_and_count, tmp_path / "ledger", 200) for _ in range(4)]
    try:
        assert [child.receive() for child in children] == ["ready"] * 4
        for child in children:
            child.send("go")
        assert sum(child.receive() for child in children) == 200
        assert [child.join() for child in children] == [0] * 4
    finally:
        for child in children:
            child.__exit__()
    with File(tmp_path / "ledger") as store:
        assert sorted(store.all_committed_ids()) == [each.sample_id for each in numbered(200)]
        assert store.progress()[0] == 40
        assert len(records(tmp_path / "ledger", "acks")) == 160


def test_threads_share_a_store(tmp_path: Path) -> None:
    """Every id is new to exactly one thread."""
    with File(tmp_path / "ledger", durable=False) as store:
        gate = threading.Barrier(4)

        def work() -> int:
            gate.wait()
            return sum(store.commit_sample(each) for each in numbered(100))

        assert sum(thread.result() for thread in [InThread(work) for _ in range(4)]) == 100


def test_a_forked_child_goes_on_with_a_lock_of_its_own(tmp_path: Path) -> None:
    """Parent and child each commit, and each sees the other's."""
    store = File(tmp_path / "ledger")
    store.commit_sample(ref("before"))

    def child() -> None:
        assert store.commit_sample(ref("child")) and store.is_committed("before")

    in_fork(child)
    assert store.commit_sample(ref("parent"))
    assert store.all_committed_ids() == ["before", "child", "parent"]
    store.close()


# -- size -----------------------------------------------------------------------------------------------------------


def test_acknowledgements_do_not_let_it_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The acks stay within a small multiple of the ids in them, and say the same as before."""
    monkeypatch.setattr(replica, "COMPACT_FROM_BYTES", 10_000)
    with File(tmp_path / "ledger", durable=False) as store, File(tmp_path / "ledger", durable=False) as other:
        store.commit_samples(numbered(500))
        for n in range(500):
            store.record_train_ack([f"s{n:05d}"], global_step=n // 10, optimizer_durable=True)
        for _ in range(500):
            store.record_train_ack([], global_step=60, optimizer_durable=True)
        assert segment(tmp_path / "ledger", "acks").stat().st_size < 2 * 10_000
        assert len(list((tmp_path / "ledger").glob("acks-*"))) == 1
        assert other.durable_marker() == store.durable_marker()
        assert other.progress() == (500, 60)
        assert other.acked_steps(["s00437"]) == {"s00437": 43}
        assert other.forget_acks(after_step=42) == [f"s{n:05d}" for n in range(430, 500)]
        assert store.progress() == (430, 42)


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_large_ledger_opens_without_reading_its_refs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Opening reads a copy of the index and what is new since; a look into the middle reads one ref."""
    monkeypatch.setattr(replica, "SNAPSHOT_EVERY_BYTES", 1_000_000)
    with File(tmp_path / "ledger", durable=False) as store:
        for start in range(0, count, 10_000):
            store.commit_samples([ref(f"s{n:07d}") for n in range(start, start + 10_000)])
    with File(tmp_path / "ledger", durable=False) as store:
        store.commit_sample(ref("new"))
    tap = Tap()
    read: list[int] = []
    tap.before = lambda name, args, kwargs: read.append(args[1]) if name == "pread" else None
    started = time.process_time()
    with tap.here(), File(tmp_path / "ledger", durable=False) as store:
        print(f"opening {count} committed ids took {time.process_time() - started:.2f} s of CPU time")
        assert len(read) <= 10
        read.clear()
        assert store.is_committed(f"s{count - 1:07d}") and store.is_committed("new") and not read
        assert store.get_committed(f"s{count // 2:07d}") == ref(f"s{count // 2:07d}")
        assert store.committed_count() == count + 1
        assert sum(read) < 10_000


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "other segment", "log rewritten", "directory"])
def test_a_copy_of_the_index_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    """Torn, flipped, out of date, or of another log: it is not believed, and the log is read instead."""
    monkeypatch.setattr(replica, "SNAPSHOT_EVERY_BYTES", 1)
    path = tmp_path / "ledger"
    with File(path, durable=False) as store:
        store.commit_samples(refs("a", "b"))
        store.commit_sample(ref("c"))
    monkeypatch.setattr(replica, "SNAPSHOT_EVERY_BYTES", 1 << 40)
    index, log = path / "commits.index", segment(path, "commits")
    data, expected = index.read_bytes(), ["a", "b", "c"]
    if harm == "cut":
        index.write_bytes(data[:-5])
    elif harm == "flip":
        index.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif harm == "empty":
        index.write_bytes(b"")
    elif harm == "other segment":
        index.write_bytes(data.replace(log.name.encode(), b"commits-00000000.jsonl"))
    elif harm == "log rewritten":
        kept = log.read_bytes().splitlines(keepends=True)[:1]
        log.write_bytes(b"".join(kept))
        with File(path, durable=False) as store:
            store.commit_sample(ref("d"))
        expected = ["a", "b", "d"]
    else:
        index.unlink()
        index.mkdir()
    with File(path, durable=False) as store:
        assert store.all_committed_ids() == expected
        assert [store.get_committed(i) for i in expected] == refs(*expected)


@pytest.mark.parametrize("step", [2**63, -1, 1.5, "7"])
def test_a_step_that_is_none_is_refused_before_it_is_written(tmp_path: Path, step: Any) -> None:
    """Neither an acknowledgement nor a rewind to such a step reaches the log, which opens again."""
    with FileMetadataStore[SampleRef](tmp_path / "ledger", durable=False) as store:
        store.commit_samples(refs("a", "b"))
        with pytest.raises(LedgerError, match="global_step"):
            store.record_train_ack(["a"], global_step=step, optimizer_durable=False)
        with pytest.raises(LedgerError, match="after_step"):
            store.forget_acks(after_step=step)
    with FileMetadataStore[SampleRef](tmp_path / "ledger", durable=False) as store:
        assert store.durable_marker()["acked"] == set() and store.committed_count() == 2
