"""Refs that an operator moves with mv, copies, or makes by hand: the directories are the truth."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, SampleRef
from tests.support import Queue, assert_clean, content, drain, holders_in, ids, lease_name, names_in, ref, refs


def mv(source: Path, target: Path) -> None:
    """The real mv."""
    subprocess.run(["mv", "-T" if not target.is_dir() else "--", str(source), str(target)], check=True, timeout=60)


def one_in_each_state(path: Path, queue: Queue) -> dict[str, str]:
    """Put four refs and bring one into each state; returns the file name in each."""
    queue.put(refs("leased", "done", "failed", "pending"))
    queue.get(3)
    queue.ack(refs("done"))
    queue.fail(refs("failed"), "broken", retryable=False)
    return {
        "pending": "pending.json",
        "leased": lease_name(path, "leased"),
        "done": "done.json",
        "failed": "failed.json",
    }


@pytest.mark.parametrize("source", ["leased", "done", "failed"])
def test_moved_back_into_pending(path: Path, queue: Queue, source: str) -> None:
    """A file that is moved into pending/ from any state is counted there and handed out again by itself."""
    name = one_in_each_state(path, queue)[source]
    mv(path / source / name, path / "pending" / f"{source}.json")
    with FileSampleRefQueue(path) as other:
        assert other.depth() == 2
        assert sorted(drain(other)) == sorted(["pending", source])
    assert_clean(path)


@pytest.mark.parametrize("into", ["pending/", "pending"])
def test_the_move_that_the_design_names(path: Path, queue: Queue, into: str) -> None:
    """`mv leased/<id>@<owner>.json pending/` gives a ref back, although the file keeps its leased name."""
    queue.put(refs("s17"))
    queue.get(1)
    subprocess.run(["mv", f"leased/{lease_name(path, 's17')}", into], cwd=path, check=True, timeout=60)
    with FileSampleRefQueue(path) as other:
        assert tuple(other.counts()) == (1, 0, 0, 0)
        assert ids(other.get(1, 1.0)) == ["s17"]
        assert holders_in(path) == [f"s17@{other.owner}"]
        assert queue.ack(refs("s17")) == ["s17"], "the former owner has lost it"
        assert other.ack(refs("s17")) == []
    assert_clean(path)


def test_a_done_file_with_its_step(path: Path, queue: Queue) -> None:
    """A done file that carries an optimizer step in its name can be moved back as it is."""
    queue.put(refs("s"))
    queue.ack(queue.get(1), step=12)
    mv(path / "done" / "s@12.json", path / "pending")
    assert queue.get(1, 1.0) == refs("s")
    queue.ack(refs("s"), step=20)
    assert names_in(path, "done") == ["s@20.json"]
    assert_clean(path)


@pytest.mark.parametrize("source", ["pending", "leased"])
@pytest.mark.parametrize("target", ["done", "failed"])
def test_moved_out(path: Path, queue: Queue, source: str, target: str) -> None:
    """A ref that is moved to done/ or failed/ by hand is not handed out, whatever the hint says."""
    name = one_in_each_state(path, queue)[source]
    mv(path / source / name, path / target / f"{source}.json")
    assert ids(queue.get(10)) == (["pending"] if source == "leased" else [])
    queue.ack(refs(source))
    assert source not in ids(queue.get(10))
    assert_clean(path)


def test_moved_between_the_dead_and_the_done(path: Path, queue: Queue) -> None:
    """Moves between done/ and failed/ change the counts, and nothing else."""
    one_in_each_state(path, queue)
    mv(path / "done" / "done.json", path / "failed" / "done.json")
    mv(path / "failed" / "failed.json", path / "done" / "failed.json")
    assert tuple(queue.counts()) == (1, 1, 1, 1)
    assert_clean(path)


def test_a_dead_letter_starts_afresh(path: Path, queue: Queue) -> None:
    """A dead letter that is moved back into pending/ may be retried; its old reason does not bury it again."""
    queue.put(refs("s"))
    queue.fail(queue.get(1), "broken", retryable=False)
    mv(path / "failed" / "s.json", path / "pending" / "s.json")
    leased = queue.get(1, 1.0)
    assert queue.fail(leased, "try again", retryable=True) == []
    assert names_in(path, "pending") == ["s.json"]
    assert "reason" not in content(path / "pending" / "s.json")["_fsqueue"]
    assert queue.get(1) == refs("s")


def test_a_dead_letter_after_all_its_attempts(path: Path) -> None:
    """A ref that used up its attempts and is moved back by hand is delivered at least once more."""
    queue = FileSampleRefQueue(path, max_attempts=2)
    queue.put(refs("s"))
    for _ in range(2):
        queue.fail(queue.get(1), "broken", retryable=True)
    mv(path / "failed" / "s.json", path / "pending" / "s.json")
    assert queue.get(1, 1.0) == refs("s")


def test_a_whole_directory_moved_back(path: Path, queue: Queue) -> None:
    """`mv failed/* pending/` requeues everything, while another handle works on."""
    todo = refs(*(f"s{k}" for k in range(30)))
    queue.put(todo)
    queue.fail(queue.get(30), "the store was down", retryable=False)
    subprocess.run("mv failed/* pending/", shell=True, cwd=path, check=True, timeout=60)
    assert sorted(drain(queue)) == sorted(ids(todo))
    assert_clean(path)


def test_a_file_made_by_hand(path: Path, queue: Queue) -> None:
    """A ref that another program writes into pending/ as pretty-printed JSON is handed out."""
    import dataclasses

    (path / "pending" / "byhand.json").write_text(json.dumps(dataclasses.asdict(ref("byhand")), indent=2))
    assert queue.get(1, 1.0) == refs("byhand")
    queue.fail(refs("byhand"), "again", retryable=True)
    assert queue.get(1, 1.0) == refs("byhand")
    queue.ack(refs("byhand"))
    assert_clean(path)


def test_corrupt_files_are_buried_and_get_goes_on(path: Path, queue: Queue) -> None:
    """Files in pending/ that hold no ref go to failed/ with the reason and their bytes; good refs are delivered."""
    damages = {
        "empty": b"",
        "nuls": b"\0" * 600,
        "cut": (b'{"sample_id":"cut","run_id":"r1","feat'),
        "notjson": b"hello",
        "badbytes": b'{"sample_id":"\xff\xfe"}',
        "list": b"[1,2]",
        "deep": b"[" * 50_000,
        "noid": b"{}",
        "emptyid": b'{"sample_id":""}',
    }
    for name, data in damages.items():
        (path / "pending" / f"{name}.json").write_bytes(data)
    queue.put(refs("a", "b"))
    found: list[str] = []
    while batch := queue.get(3, 0.3):
        found += ids(batch)
    assert sorted(found) == ["a", "b"]
    assert names_in(path, "failed") == sorted(f"{name}.json" for name in damages)
    for name, data in damages.items():
        kept = content(path / "failed" / f"{name}.json")["_fsqueue"]
        assert kept["reason"]
        assert "raw" not in kept or kept["raw"].startswith(data[:5].decode("utf-8", "backslashreplace"))
    assert queue.depth() == 0 and queue.in_flight() == 2


def test_wrong_ref_type_is_buried(path: Path, queue: Queue) -> None:
    """A ref of another record type goes to failed/ with what the decoder missed, its own fields intact."""
    task = {"task_id": "t", "run_id": "r", "source_id": "x", "payload": {}, "max_length": 5}
    (path / "pending" / "t.json").write_text(json.dumps(task))
    queue.put(refs("a"))
    assert ids(queue.get(5, 1.0)) == ["a"] or ids(queue.get(5, 1.0)) == ["a"]
    buried = content(path / "failed" / "t.json")
    assert "sample_id" in buried["_fsqueue"]["reason"]
    assert {key: buried[key] for key in task} == task


def test_the_id_inside_is_the_authority(path: Path, queue: Queue) -> None:
    """A file under another name than its id's is delivered under the id inside, and ends under its right name."""
    queue.put(refs("right/id"))
    mv(path / "pending" / "right%2fid.json", path / "pending" / "wrong.json")
    leased = queue.get(1, 1.0)
    assert ids(leased) == ["right/id"]
    assert holders_in(path) == [f"right%2fid@{queue.owner}"]
    assert queue.ack(leased) == []
    assert names_in(path, "done") == ["right%2fid.json"]
    assert_clean(path)


def test_a_copy_in_pending_is_not_a_second_ref(path: Path, queue: Queue) -> None:
    """`cp pending/a.json pending/b.json` does not make get hand out one id twice."""
    queue.put(refs("a"))
    shutil.copy(path / "pending" / "a.json", path / "pending" / "b.json")
    found = ids(queue.get(10, 1.0)) + ids(queue.get(10))
    assert found == ["a"]
    assert queue.in_flight() == 1 and queue.depth() == 0


def test_a_copy_of_what_another_owner_leases(path: Path, queue: Queue) -> None:
    """A copy under a wrong name does not let a second owner lease the same id."""
    queue.put(refs("a"))
    shutil.copy(path / "pending" / "a.json", path / "copy")
    assert ids(queue.get(1)) == ["a"]
    mv(path / "copy", path / "pending" / "b.json")
    with FileSampleRefQueue(path) as other:
        assert other.get(10, 0.2) == []
    assert holders_in(path) == [f"a@{queue.owner}"]
    assert queue.ack(refs("a")) == []


def test_moved_between_hint_and_claim(path: Path, queue: Queue) -> None:
    """Refs that vanish from pending/ behind the hint's back are skipped, and the ones after them delivered."""
    todo = refs(*(f"s{k}" for k in range(9)))
    queue.put(todo)
    for k in (0, 1, 4, 8):
        mv(path / "pending" / f"s{k}.json", path / "done" / f"s{k}.json")
    assert ids(queue.get(9)) == ["s2", "s3", "s5", "s6", "s7"]


IDS = {
    "slashes": "run1/shard/00017",
    "absolute": "/etc/passwd",
    "dots": "..",
    "dot": ".",
    "parent": "../../escape",
    "hidden": ".hidden",
    "unicode": "Größe-模型-🚀",
    "combining": "e\u0301",
    "composed": "\u00e9",
    "spaces": "a b\tc\nd",
    "nul": "a\0b",
    "at": "a@b.123.abcdef",
    "percent": "%2f%",
    "json": "x.json",
    "tilde": "~root",
    "long": "x" * 1_000,
    "long sibling": "x" * 999 + "y",
    "long unicode": "ü" * 1_000,
    "159": "y" * 159,
    "160": "z" * 160,
    "161": "w" * 161,
    "upper": "CASE",
    "lower": "case",
    "shell": "$(touch pwned);`ls`*?[a]",
    "dash": "-rf",
    "digits": "0",
}


def test_any_id_goes_all_the_way(path: Path, tmp_path: Path, queue: Queue) -> None:
    """Every id, however strange, is put, leased, failed, released, acked and counted, and stays inside the queue."""
    todo = [ref(each, feature_keys={}, metadata={"id": each}) for each in IDS.values()]
    queue.put(todo)
    queue.put(todo)
    assert queue.depth() == len(IDS)
    first = queue.get(100)
    assert first == todo
    assert queue.fail(first[::2], "again", retryable=True) == [] == queue.release(first[1::2])
    second: list[SampleRef] = []
    for index in range(3):
        second += queue.get(100, partition=(index, 3))
    assert sorted(ids(second)) == sorted(IDS.values())
    assert queue.renew(second) == []
    assert queue.ack(second, step=1) == []
    assert tuple(queue.counts()) == (0, 0, len(IDS), 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q"]
    assert all(len(name) < 256 and name.isascii() and "/" not in name for name in names_in(path, "done"))
    assert_clean(path)


def test_strange_ids_between_two_handles(path: Path) -> None:
    """A reclaim, a late ack and an ack by id work for strange ids as for plain ones."""
    a, b = FileSampleRefQueue(path, owner="o" * 64), FileSampleRefQueue(path)
    a.put([ref(each) for each in IDS.values()])
    assert len(a.get(100)) == len(IDS)
    assert b.release([ref(each) for each in IDS.values()]) == []
    assert sorted(ids(b.get(100, 1.0))) == sorted(IDS.values())
    assert sorted(a.ack([ref(each) for each in IDS.values()])) == sorted(IDS.values())
    assert b.ack([ref(each) for each in IDS.values()]) == []
    assert_clean(path)
