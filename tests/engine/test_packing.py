"""Packed done refs: found by everything that finds done files, moved by nothing twice, and one inode for many."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from fsqueue import FileSampleRefQueue, SampleRef, operate
from fsqueue.cli.main import cli
from fsqueue.disk.fileops import FileOps, using
from fsqueue.engine import lock
from fsqueue.engine.packing import pack as packing
from fsqueue.format import packed
from fsqueue.format.codec import Codec
from fsqueue.format.packed import Line, encode_line, whole_lines
from fsqueue.operate.check import check_queue, repair
from fsqueue.operate.requeue import requeue
from fsqueue.operate.show import entries, show
from tests.support import (
    GUARD_S,
    Child,
    Queue,
    Tap,
    assert_clean,
    drain,
    ids,
    names_in,
    numbered,
    open_tapped,
    ref,
    refs,
)

LONG_AGO_S = 1_000_000_000
FIXED = 19  # of a queue that holds nothing: its directories, settings, order and reserve
HOUR_S = 3600.0
HISTORY = (
    b'\n,"_fsqueue":{"attempts":1,"history":[{"event":"failed","at":1.5,"owner":"n.1.abcdef","reason":"x\\ny"}]}}\n'
)
DATA = Codec(SampleRef).encode(ref("s"))


def acked(queue: Queue, some: list[SampleRef], step: int | None = None) -> None:
    """Put, lease and acknowledge refs."""
    queue.put(some)
    assert ids(queue.get(len(some))) == ids(some)
    queue.ack(some, step=step)


def segments_in(path: Path) -> list[Path]:
    return sorted(path / "done" / name for name in names_in(path, "done") if name.startswith("packed-"))


def refs_in(segment: Path) -> int:
    return int(segment.name.removesuffix(".jsonl").split("-")[2])


def everything(path: Path) -> dict[str, list[str]]:
    """Id to the states that it is in, read as FORMAT.md says, by no code of the queue's; nothing may be half done."""
    found: dict[str, list[str]] = {}
    for state in ("pending", "leased", "done", "failed"):
        for name in names_in(path, state):
            if name.startswith("packed-"):
                texts = (path / state / name).read_text().splitlines()
                assert len(texts) == refs_in(path / state / name)
                held = [json.loads(text)["ref"] for text in texts]
            else:
                assert name.endswith(".json"), f"{state}/{name} was left behind"
                held = [json.loads((path / state / name).read_bytes())]
            for each in held:
                found.setdefault(each["sample_id"], []).append(state)
    return found


# --- what is packed is done ---


def test_a_rewind_brings_back_several_segments_by_one_revision_in_the_order_of_steps(
    path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ref comes with its event, stamped now; what was acked before the step stays packed."""
    monkeypatch.setattr(packing, "SEGMENT_REFS", 2)
    for step in range(1, 8):
        acked(queue, refs(f"a{step}", f"b{step}"), step=step)
    queue.pack(older_than_s=0.0)
    assert len(segments_in(path)) == 7
    commits: list[str] = []
    tap = Tap()
    tap.before = lambda name, args, _: (
        commits.append(args[1]) if name == "rename" and args[1][:7] == "packed-" else None
    )
    with tap.here(), FileSampleRefQueue(path, durable=False) as other:
        assert other.rewind(after_step=2) == [f"{name}{step}" for step in range(3, 8) for name in "ab"]
    assert len(commits) == 1
    assert sum(map(refs_in, segments_in(path))) == 4
    (came,) = show(path, "a5")
    assert (came.state, [event.event for event in came.history]) == ("pending", ["rewound"])
    assert came.age_s < GUARD_S
    assert ids(queue.get(20)) == [f"{name}{step}" for step in range(3, 8) for name in "ab"]
    assert_clean(path)


def test_a_rewind_leaves_a_packed_ref_that_is_live_in_its_segment(path: Path, queue: Queue) -> None:
    acked(queue, refs("again", "once"), step=3)
    queue.pack(older_than_s=0.0)
    queue.put(refs("again"))
    assert queue.rewind(after_step=2) == ["once"]
    (segment,) = segments_in(path)
    assert (names_in(path, "done"), refs_in(segment)) == ([segment.name], 1)
    assert everything(path) == {"again": ["pending", "done"], "once": ["pending"]}


def test_a_rewind_without_a_lock_looks_again_before_a_packed_ref_is_pending(path: Path) -> None:
    """Where nothing excludes a put, its ref may be leased as soon as the rewind has looked for it."""
    tap = Tap()
    with (
        open_tapped(tap, path, lock="none", durable=False) as queue,
        FileSampleRefQueue[SampleRef](path, lock="none", durable=False) as other,
    ):
        acked(queue, refs("a"), step=3)
        queue.pack(older_than_s=0.0)

        def put(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
            if name == "rename" and str(args[0]).startswith("a@3.json.from-"):
                tap.before = None
                other.put(refs("a"))
                assert ids(other.get(1)) == ["a"]

        tap.before = put
        assert queue.rewind(after_step=2, force=True) == [] and tap.before is None
        assert everything(path) == {"a": ["leased", "done"]}


def test_of_two_lives_under_one_name_a_rewind_brings_back_the_later_one(path: Path, queue: Queue) -> None:
    """One is packed, and has a file of its own besides; the other one's stamp is the newer."""
    acked(queue, [ref("s", metadata={"life": 1})], step=3)
    queue.pack(older_than_s=0.0)
    acked(queue, [ref("s", metadata={"life": 2})], step=3)
    assert queue.rewind(after_step=2) == ["s"]
    (back,) = queue.get(5)
    assert back.metadata == {"life": 2}
    queue.ack([back])
    assert_clean(path)


def test_packed_refs_are_counted_listed_and_shown_as_before(path: Path, queue: Queue) -> None:
    """counts, status, ls and show say of a packed ref what they said of its file; check finds nothing to say."""
    acked(queue, numbered(20), step=3)
    queue.put(refs("live"))
    before = queue.counts()
    listed = {(entry.id, entry.step) for entry in entries(path, ["done"])}
    (shown,) = show(path, "s00007")
    assert queue.pack(older_than_s=0.0) == packing.Packed(refs=20, segments=1)
    (segment,) = segments_in(path)
    assert names_in(path, "done") == [segment.name]
    assert queue.counts() == before == operate.status(path).counts
    assert {(entry.id, entry.step) for entry in entries(path, ["done"], details=True)} == listed
    (detail,) = show(path, "s00007")
    assert detail.path == str(segment)
    assert (detail.ref, detail.step, detail.state) == (shown.ref, 3, "done")
    assert abs(detail.age_s - shown.age_s) < GUARD_S
    assert check_queue(path, notes=True) == []


def test_only_files_that_are_old_enough_are_packed(path: Path, queue: Queue) -> None:
    """The age is that of the last stamp; a dry run says how many, and changes nothing."""
    acked(queue, refs("old", "young"), step=1)
    os.utime(path / "done" / "old@1.json", (LONG_AGO_S, LONG_AGO_S))
    assert operate.pack(str(path), HOUR_S, dry_run=True) == packing.Packed(refs=1, segments=1)
    assert names_in(path, "done") == ["old@1.json", "young@1.json"]
    assert queue.pack(older_than_s=HOUR_S) == packing.Packed(refs=1, segments=1)
    (segment,) = segments_in(path)
    assert names_in(path, "done") == [segment.name, "young@1.json"]
    assert os.stat(segment).st_mtime == LONG_AGO_S, "a segment is as old as its youngest ref"


@pytest.mark.parametrize("stamp_s", [-11_644_473_600, -1, 0], ids=["1601", "1969", "1970"])
def test_a_stamp_that_can_be_none_loses_no_ref(path: Path, queue: Queue, stamp_s: int) -> None:
    """SMB's stamps begin in 1601, 64 bits of nanoseconds in 1677, and seconds in 1970."""
    acked(queue, refs("a", "b"), step=3)
    os.utime(path / "done" / "b@3.json", (stamp_s, stamp_s))
    if (path / "done" / "b@3.json").stat().st_mtime != stamp_s:
        pytest.skip("this filesystem has no such stamps")
    assert queue.pack(older_than_s=0.0).refs == 2
    assert queue.rewind(after_step=2) == ["a", "b"]
    assert everything(path) == {"a": ["pending"], "b": ["pending"]}
    assert_clean(path)


def test_a_name_that_a_listing_repeats_is_packed_once(path: Path) -> None:
    """NFS may list a name twice while the directory changes; there a claim that finds its file claimed is believed."""
    ops: Any = FileOps()
    listdir = ops.listdir
    ops.listdir = lambda fd: listdir(fd) * 2
    ops.filesystem_type = lambda path: "nfs4"
    with using(ops), FileSampleRefQueue(path, durable=False) as queue:
        acked(queue, numbered(3))
        assert queue.pack(older_than_s=-HOUR_S) == packing.Packed(refs=3, segments=1)
    assert everything(path) == {each.sample_id: ["done"] for each in numbered(3)}


def test_what_holds_no_whole_ref_of_its_name_stays_a_file(path: Path, queue: Queue) -> None:
    """Torn, misnamed and foreign files in done/ are left as they are, and so is a directory."""
    acked(queue, refs("good"))
    (path / "done" / "torn.json").write_bytes(msgspec.json.encode(ref("torn"))[:-1] + b'\n,"_fsqueue":{"att')
    (path / "done" / "other.json").write_bytes(msgspec.json.encode(ref("misnamed")))
    (path / "done" / "no.json").write_bytes(b"{")
    (path / "done" / "notes.txt").write_bytes(b"mine")
    (path / "done" / "dir.json").mkdir()
    before = {name: os.stat(path / "done" / name).st_ino for name in names_in(path, "done") if name != "good.json"}
    assert queue.pack(older_than_s=-HOUR_S).refs == 1
    after = {name: os.stat(path / "done" / name).st_ino for name in names_in(path, "done") if name[:7] != "packed-"}
    assert after == before


@pytest.mark.parametrize("data", [DATA, DATA[:-2] + HISTORY, DATA[:-1], b" " + DATA, DATA.replace(b",", b",\n")])
def test_a_line_gives_back_the_very_bytes(data: bytes) -> None:
    """Bookkeeping, line feeds and blanks of the file come back; the line is one line, and JSON all the same."""
    line = Line("s", 7, 1_234_567_890_123_456_789, data)
    encoded = encode_line(line)
    assert encoded.count(b"\n") == 1 and json.loads(encoded)["ref"] == json.loads(data)
    (found,), damaged = whole_lines(encoded)
    assert found._replace(span=(0, 0)) == line and damaged == []


def test_counting_reads_no_segment(path: Path, queue: Queue) -> None:
    """counts() costs one listing of done/, however many refs and segments there are."""
    for number in range(3):
        acked(queue, refs(f"s{number}"))
    queue.pack(older_than_s=0.0)
    tap = Tap()
    with open_tapped(tap, path) as other:
        tap.counts.clear()
        assert other.counts().done == 3
    assert tap.counts["listdir"] == 4 and not tap.counts["read"]


# --- taking refs out again ---


def test_rewind_takes_out_what_was_acked_later_and_nothing_else(path: Path, queue: Queue) -> None:
    """Refs come back in the order of their steps, once, with the reason in their history; the others stay packed."""
    for step in range(6):
        acked(queue, refs(f"a{step}", f"b{step}"), step=step)
    acked(queue, refs("stepless"))
    queue.pack(older_than_s=0.0)
    assert queue.rewind(after_step=2) == ["a3", "b3", "a4", "b4", "a5", "b5"]
    assert queue.rewind(after_step=2) == []
    assert Counter(map(tuple, everything(path).values())) == {("pending",): 6, ("done",): 7}
    assert queue.counts() == (6, 0, 7, 0) and len(segments_in(path)) == 1
    history = json.loads((path / "pending" / "a3.json").read_bytes())["_fsqueue"]["history"]
    assert [event["event"] for event in history] == ["rewound"]
    assert drain(queue) == ["a3", "b3", "a4", "b4", "a5", "b5"]
    assert_clean(path)


def test_each_acknowledgement_of_a_ref_put_again_is_a_life_of_its_own(path: Path, queue: Queue) -> None:
    """A ref acked at two steps counts twice, packed or not; rewinding between them brings back the later one alone."""
    acked(queue, refs("s"), step=5)
    queue.pack(older_than_s=0.0)
    acked(queue, refs("s"), step=9)
    assert queue.counts().done == 2
    assert [detail.step for detail in show(path, "s")] == [5, 9]
    assert queue.rewind(after_step=7) == ["s"]
    assert everything(path) == {"s": ["pending", "done"]}


@pytest.mark.parametrize("packed_too", [False, True])
@pytest.mark.parametrize("steps", [(5, 9), (9, 9)])
def test_of_several_lives_to_rewind_the_last_one_comes_back_once(
    path: Path, queue: Queue, steps: tuple[int, int], packed_too: bool
) -> None:
    """Also where both have one name, or are in two segments: the ref is pending once, as it was put last."""
    acked(queue, [ref("s", num_tokens=1)], step=steps[0])
    os.utime(path / "done" / f"s@{steps[0]}.json", (LONG_AGO_S, LONG_AGO_S))
    queue.pack(older_than_s=HOUR_S)
    acked(queue, [ref("s", num_tokens=2)], step=steps[1])
    if packed_too:
        queue.pack(older_than_s=0.0)
    assert set(queue.rewind(after_step=1)) == {"s"}
    assert everything(path) == {"s": ["pending"]}
    assert queue.get(9) == [ref("s", num_tokens=2)]


def test_a_packed_ref_can_be_requeued_and_put_again(path: Path, queue: Queue) -> None:
    """requeue takes it out of its segment; a put begins another life beside it; an ack that comes late does nothing."""
    acked(queue, refs("a", "b", "c"), step=4)
    queue.pack(older_than_s=0.0)
    assert queue.ack(refs("a")) == [] and queue.counts().done == 3
    (outcome,) = requeue(str(path), ["a"], dry_run=True)
    assert outcome.moved and outcome.detail == f"from done/{segments_in(path)[0].name}"
    assert len(segments_in(path)) == 1 and queue.depth() == 0
    assert [outcome.moved for outcome in requeue(str(path), ["a", "no"])] == [False, True]
    queue.put(refs("a", "b"))
    assert everything(path) == {"a": ["pending"], "b": ["pending", "done"], "c": ["done"]}
    assert queue.get(9) == refs("a", "b")


def test_purge_removes_whole_segments(path: Path, queue: Queue) -> None:
    """A segment goes once its youngest ref is old enough; a dry run names it."""
    acked(queue, refs("a", "b"))
    os.utime(path / "done" / "a.json", (LONG_AGO_S, LONG_AGO_S))
    queue.pack(older_than_s=0.0)
    (segment,) = segments_in(path)
    assert operate.purge(str(path), "done", HOUR_S).files == []
    os.utime(segment, (LONG_AGO_S, LONG_AGO_S))
    assert operate.purge(str(path), "done", HOUR_S, dry_run=True).files == [segment.name]
    assert operate.purge(str(path), "done", HOUR_S).files == [segment.name]
    assert names_in(path, "done") == [] and queue.counts().done == 0


def test_the_command_packs_and_says_so(path: Path, queue: Queue) -> None:
    """--dry-run changes nothing, --json goes to stdout, what is for people to stderr."""
    acked(queue, refs("a", "b"))
    dry = CliRunner().invoke(cli, ["pack", str(path), "--older-than", "0", "--dry-run", "--json"])
    assert (dry.exit_code, json.loads(dry.stdout)) == (0, {"refs": 2, "segments": 1})
    assert names_in(path, "done") == ["a.json", "b.json"]
    done = CliRunner().invoke(cli, ["pack", str(path), "--older-than", "0"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "packed 2 refs into 1 segment\n")
    assert CliRunner().invoke(cli, ["pack", str(path)]).stderr == "packed 0 refs into 0 segments\n"


# --- inodes ---


def inodes(path: Path) -> int:
    return sum(1 for _ in path.rglob("*"))


def test_done_refs_take_one_inode_for_a_segment(path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's inodes are its live refs, one for each full segment and the one that is not, and a dozen."""
    assert packed.SEGMENT_REFS == 10_000
    monkeypatch.setattr(packing, "SEGMENT_REFS", 500)
    acked(queue, refs("s"))
    done, data = path / "done", (path / "done" / "s.json").read_bytes()
    (done / "s.json").unlink()
    for number in range(1_050):
        name = f"s{number:05d}"
        (done / f"{name}@{number}.json").write_bytes(data.replace(b'"s"', b'"%s"' % name.encode()))
    queue.put(refs("live1", "live2"))
    assert queue.pack(older_than_s=-HOUR_S) == packing.Packed(refs=1_050, segments=3)
    assert queue.counts() == (2, 0, 1_050, 0)
    assert inodes(path) <= 2 + 3 + FIXED
    assert sorted(map(refs_in, segments_in(path))) == [50, 500, 500]
    assert_clean(path)


def test_packing_often_leaves_no_more_segments_than_packing_once(
    path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New refs fill up the segment that was not full; two segments always hold more than one could."""
    monkeypatch.setattr(packing, "SEGMENT_REFS", 20)
    for number in range(30):
        acked(queue, [ref(f"s{number}-{k}") for k in range(3)], step=number)
        queue.pack(older_than_s=0.0)
        assert inodes(path) <= 2 * 3 * (number + 1) / 20 + 1 + FIXED
    assert queue.counts().done == 90 and len(segments_in(path)) == 5
    assert list(everything(path).values()) == [["done"]] * 90


# --- damage ---


def _cut(data: bytes) -> bytes:
    return data[:-20]


def _zeroed(data: bytes) -> bytes:
    middle = data.index(b"\n") + 100
    return data[:middle] + b"\0" * 64 + data[middle + 64 :]


def _flipped(data: bytes) -> bytes:
    return data.replace(b'"s00001"', b'"s00009"', 1)


def _renamed(data: bytes) -> bytes:
    return data.replace(b'"stem":"s00001"', b'"stem":"s00009"', 1)


def _first_half_lost(data: bytes) -> bytes:
    return b"\0" * (data.index(b"\n") + 40) + data[data.index(b"\n") + 40 :]


@pytest.mark.parametrize("damage", [_cut, _zeroed, _flipped, _renamed, _first_half_lost])
def test_a_torn_line_is_recognised_and_never_read(path: Path, queue: Queue, damage: Callable[[bytes], bytes]) -> None:
    """Whole lines around it are found; check reports it; repair moves its bytes to failed/ and loses no whole line."""
    acked(queue, numbered(4), step=9)
    queue.pack(older_than_s=0.0)
    (segment,) = segments_in(path)
    whole = {text: json.loads(text)["stem"] for text in segment.read_bytes().splitlines()}
    torn = damage(segment.read_bytes())
    segment.write_bytes(torn)
    left = {stem for text, stem in whole.items() if text + b"\n" in torn}
    assert 0 < len(left) < 4
    assert {entry.id for entry in entries(path, ["done"])} == left
    assert [(found.kind, found.path) for found in check_queue(path)] == [("segment", str(segment))]
    assert [mended.done for mended in repair(path)] == [True]
    assert check_queue(path, notes=True) == []
    assert queue.counts() == (0, 0, len(left), 1)
    (letter,) = names_in(path, "failed")
    raw = json.loads((path / "failed" / letter).read_bytes())["_fsqueue"]["raw"]
    spans = whole_lines(torn)[1]
    assert raw.encode() == b"".join(torn[start:end] for start, end in spans)
    assert set(queue.rewind(after_step=1)) == left


def test_a_wrong_count_in_a_segment_s_name_is_damage(path: Path, queue: Queue) -> None:
    """check reports it, and repair counts anew."""
    acked(queue, numbered(4))
    queue.pack(older_than_s=0.0)
    (segment,) = segments_in(path)
    segment.rename(segment.with_name(segment.name.replace("-4.", "-40.")))
    assert [found.kind for found in check_queue(path)] == ["segment"]
    repair(path)
    assert check_queue(path, notes=True) == [] and queue.counts() == (0, 0, 4, 0)


@pytest.mark.parametrize("kind", ["symbolic link", "FIFO", "directory"])
def test_what_is_no_file_in_a_segment_s_place_is_damage_and_followed_by_nobody(
    path: Path, queue: Queue, kind: str
) -> None:
    acked(queue, numbered(4))
    queue.pack(older_than_s=0.0)
    (segment,) = segments_in(path)
    planted = segment.with_name("packed-0123456789ab-4.jsonl")
    plants: dict[str, Callable[[], None]] = {
        "symbolic link": lambda: planted.symlink_to(segment),
        "FIFO": lambda: os.mkfifo(planted),
        "directory": planted.mkdir,
    }
    plants[kind]()
    (found,) = check_queue(path)
    assert (found.kind, found.path) == ("not-a-file", str(planted)) and kind in found.problem
    planted.rmdir() if kind == "directory" else planted.unlink()
    assert check_queue(path, notes=True) == [] and queue.counts() == (0, 0, 4, 0)


# --- several at once ---


BATCH = ["s0", "s1", "s2"]


def _rewind(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        assert queue.rewind(after_step=8, force=True) == BATCH


def _rewind_any(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.rewind(after_step=8, force=True)


def _pack(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.pack(older_than_s=HOUR_S)


def _requeue(path: Path) -> None:
    (outcome,) = requeue(str(path), ["s1"])
    assert outcome.moved


PENDING = {"s0": ["pending"], "s1": ["pending"], "s2": ["pending"], "stays": ["done"]}
DONE = {"s0": ["done"], "s1": ["done"], "s2": ["done"], "stays": ["done"]}
INTERLEAVED: dict[str, tuple[bool, Callable[[Path], None], Callable[[Path], None], dict[str, list[str]]]] = {
    "rewind in a packing": (False, _pack, _rewind, PENDING),
    "rewind in a merging": (True, _pack, _rewind, PENDING),
    "packing in a packing": (False, _pack, _pack, DONE),
    "packing in a merging": (True, _pack, _pack, DONE),
    "requeue in a packing": (False, _pack, _requeue, DONE | {"s1": ["pending"]}),
    "requeue in a merging": (True, _pack, _requeue, DONE | {"s1": ["pending"]}),
    "packing in a rewind": (True, _rewind, _pack, PENDING),
    "rewind in a rewind": (True, _rewind_any, _rewind_any, PENDING),
    "packing in a requeue": (True, _requeue, _pack, DONE | {"s1": ["pending"]}),
}


def _stage(path: Path, packed: bool) -> None:
    """Refs done long ago; two of them packed, if any are."""
    with FileSampleRefQueue(path, durable=False) as queue:
        for name, step in (("s0", 9), ("stays", 2), ("s1", 10), ("s2", 11)):
            acked(queue, refs(name), step=step)
            os.utime(path / "done" / f"{name}@{step}.json", (LONG_AGO_S, LONG_AGO_S))
            if packed and name == "stays":
                queue.pack(older_than_s=HOUR_S)


@pytest.mark.parametrize("stride", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", INTERLEAVED)
def test_whatever_happens_between_two_file_operations_no_ref_is_lost_or_doubled(
    tmp_path: Path, name: str, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One runs from beginning to end before each file operation of the other; then the other goes on."""
    monkeypatch.setattr(lock, "GET_PATIENCE_S", 0.001)  # it would wait in vain for the one that waits for it
    packed, outer, inner, expected = INTERLEAVED[name]
    for at in range(len(name) % stride, 10_000, stride):
        path = tmp_path / str(at)
        _stage(path, packed)
        tap, seen = Tap(), iter(range(10_000))

        def intrude(*call: Any, path: Path = path, seen: Iterator[int] = seen, at: int = at) -> None:
            if next(seen) == at:
                inner(path)

        tap.before = intrude
        with tap.here():
            _run_tapped(outer, inner, path)
        if next(seen) <= at:
            return  # it has no more of them
        assert everything(path) == expected, f"before file operation {at}"
        assert check_queue(path) == []


def _run_tapped(outer: Callable[[Path], None], inner: Callable[[Path], None], path: Path) -> None:
    """Run the outer one; what another has settled before it came to it is no failure of its own."""
    try:
        outer(path)
    except AssertionError:
        assert inner is not _pack, "a packing kept a rewind or requeue from its refs"
        raise


def pack_for_ever(pipe: Connection, path: Path) -> None:
    """Pack whatever is done, again and again, until told to stop or killed."""
    with FileSampleRefQueue(path, durable=False) as queue:
        pipe.send("ready")
        while not pipe.poll():
            queue.pack(older_than_s=-HOUR_S)
        pipe.send("stopped")


def rewind_and_train(pipe: Connection, path: Path, rounds: int) -> None:
    """Rewind to one step after the other, and train what came back again; says what was delivered."""
    with FileSampleRefQueue(path, durable=False) as queue:
        for number in range(rounds):
            returned = queue.rewind(after_step=number % 7, force=True)
            got: list[str] = []
            while batch := queue.get(16):
                got += ids(batch)
                for each in batch:
                    queue.ack([each], step=int(each.sample_id[1:]) % 10)
            pipe.send((number % 7, returned, got))


def test_packers_and_a_rewinding_trainer_in_processes_that_are_killed(tmp_path: Path) -> None:
    """Every rewind brings back exactly what was acked after its step, while packers work and are killed and replaced.

    Every ref is delivered once a rewind, and at the end is done once.
    """
    path, count = tmp_path / "q", 60
    with FileSampleRefQueue(path, durable=False) as queue:
        for step in range(10):
            acked(queue, [ref(f"s{n:05d}") for n in range(count) if n % 10 == step], step=step)
        packers = [Child(pack_for_ever, path) for _ in range(2)]
        dice = random.Random(7)
        try:
            with Child(rewind_and_train, path, 14) as trainer:
                for _ in range(14):
                    step, returned, got = trainer.receive()
                    due = sorted(f"s{n:05d}" for n in range(count) if n % 10 > step)
                    assert sorted(returned) == due and sorted(got) == due
                    victim = dice.randrange(2)
                    packers[victim].kill()
                    packers[victim].__exit__()
                    packers[victim] = Child(pack_for_ever, path)
                assert trainer.join() == 0
            for packer in packers:
                assert packer.receive() == "ready"
                packer.send("stop")
                assert packer.receive() == "stopped" and packer.join() == 0
        finally:
            for packer in packers:
                packer.__exit__()
        queue.pack(older_than_s=-HOUR_S)
        assert queue.counts() == (0, 0, count, 0)
    assert everything(path) == {f"s{n:05d}": ["done"] for n in range(count)}
    assert_clean(path)


def test_two_packers_at_once_pack_every_ref_once(tmp_path: Path) -> None:
    """In processes of their own, with the lock switched off: a rename decides who packs a file."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path, durable=False, lock="none") as queue:
        packers = [Child(pack_for_ever, path) for _ in range(2)]
        try:
            assert [packer.receive() for packer in packers] == ["ready"] * 2
            for start in range(0, 400, 40):
                acked(queue, [ref(f"s{n}") for n in range(start, start + 40)], step=start)
                assert queue.counts().done >= start
            for packer in packers:
                packer.send("stop")
            assert [packer.receive() for packer in packers] == ["stopped"] * 2
        finally:
            for packer in packers:
                packer.__exit__()
        queue.pack(older_than_s=-HOUR_S)
        assert queue.counts().done == 400
    assert everything(path) == {f"s{n}": ["done"] for n in range(400)}
    assert_clean(path)


def test_a_packer_whose_licence_is_taken_away_packs_nothing(path: Path, queue: Queue) -> None:
    """It is stopped before its commit while another process rewinds; what it does afterwards changes nothing."""
    acked(queue, numbered(3), step=9)
    tap = Tap()
    taken: list[str] = []

    def take_away(call: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if call == "rename" and str(arguments[0]).startswith("packing-") and not taken:
            taken.extend(queue.rewind(after_step=1, force=True))

    tap.before = take_away
    with open_tapped(tap, path, durable=False) as packer:
        assert packer.pack(older_than_s=0.0) == packing.Packed(refs=0, segments=0)
    assert taken == ids(numbered(3)) and names_in(path, "done") == []
    assert drain(queue) == taken


def test_what_a_killed_packer_left_is_noted_and_mended(path: Path, queue: Queue) -> None:
    """Its refs are done all the same; check notes them, and repair or the next packing gives them back."""
    acked(queue, numbered(3), step=9)

    with Child(pack_until_commit, path) as child:
        assert child.receive() == "before the commit"
        child.kill()
    assert [name.endswith(".json") for name in names_in(path, "done")] == [False] * 4
    assert queue.counts().done == 3 and len(entries(path, ["done"])) == 3
    assert {found.kind for found in check_queue(path, notes=True)} == {"packing", "owner-gone"}
    assert check_queue(path) == []
    assert all(mended.done for mended in repair(path))
    assert names_in(path, "done") == ["s00000@9.json", "s00001@9.json", "s00002@9.json"]
    assert check_queue(path, notes=True) == []


def test_what_a_packing_had_in_hand_is_looked_into_by_the_same_repair(path: Path, queue: Queue) -> None:
    """After a power cut it may be torn, or have another name in the queue; one repair ends with a clean queue."""
    queue.close()
    aside = {stem: path / "done" / f"{stem}.json.into-0123456789ab" for stem in ("empty", "linked", "both")}
    for stem, file in aside.items():
        file.write_bytes(b"" if stem == "empty" else DATA.replace(b'"s"', f'"{stem}"'.encode()))
    os.link(aside["linked"], path / "pending" / "linked.json")
    os.link(aside["both"], path / "done" / "both.json")
    assert {found.kind for found in check_queue(path, notes=True)} == {"packing", "linked"}
    repair(path)
    assert check_queue(path, notes=True) == []
    found = {state: names_in(path, state) for state in ("pending", "done", "failed")}
    assert found == {"pending": ["linked.json"], "done": ["both.json", "linked.json"], "failed": ["empty.json"]}


def pack_until_commit(pipe: Connection, path: Path) -> None:
    """Pack, and stop for good just before the commit."""
    tap = Tap()

    def stop(call: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if call == "rename" and str(arguments[0]).startswith("packing-"):
            pipe.send("before the commit")
            time.sleep(GUARD_S)

    tap.before = stop
    with open_tapped(tap, path) as queue:
        queue.pack(older_than_s=0.0)
