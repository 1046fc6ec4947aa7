"""The directory: its golden shape, who may open it, and what in it is left alone."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from fsqueue import (
    FileMetadataStore,
    FileSampleRefQueue,
    NotAQueueError,
    QueueConfigError,
    QueueIOError,
    UnsupportedFormatError,
)
from fsqueue.disk.fileops import FileOps, using
from fsqueue.engine.reserve import INODES
from tests.support import (
    Child,
    FakeClock,
    assert_clean,
    content,
    drain,
    ids,
    names_in,
    open_descriptors,
    ref,
    refs,
)
from tests.support.program import run

STATES = ("pending", "leased", "done", "failed")


def tree(path: Path) -> dict[str, Any]:
    """Every file's relative name and content; JSON decoded, directories with a trailing slash."""
    found: dict[str, Any] = {}
    for folder, directories, files in os.walk(path):
        at = Path(folder).relative_to(path)
        found |= {f"{at / name}/": None for name in directories}
        for name in files:
            raw = (Path(folder) / name).read_bytes()
            found[str(at / name)] = json.loads(raw) if name.endswith(".json") else raw
    return found


def test_golden_tree(tmp_path: Path) -> None:
    """A fixed script of operations leaves exactly these names, JSON keys and bookkeeping."""
    path, clock = tmp_path / "q", FakeClock()
    queue = FileSampleRefQueue(path, lease_timeout_s=60.0, run_id="run-7", clock=clock, owner="node/1")
    queue.put(refs("a", "b", "c", "d", "x/y"))
    leased = {r.sample_id: r for r in queue.get(5)}
    clock.now = 1_010.5
    queue.ack([leased["a"]], step=7)
    queue.ack([leased["b"]])
    queue.fail([leased["c"]], "no such feature", retryable=False)
    queue.fail([leased["d"]], "try again", retryable=True)
    owner = queue.owner

    found = tree(path)
    assert owner.startswith(f"node%2f1.{os.getpid()}.")
    order = found.pop("order.lock")
    assert [found.pop(name) for name in INODES] == [b""] * len(INODES)
    assert len(found.pop(".reserve")) == (path / ".reserve").stat().st_size > 0
    record = found.pop(f"owners/{owner}.json")
    held = found.pop("type.json")
    assert held["name"] == "fsqueue.records.SampleRef"
    assert held["fields"][0] == {"name": "sample_id", "type": "str", "json": ["string"], "required": True}
    plain = {name: json.loads(json.dumps(_fields(ref(name)))) for name in ("a", "b", "c", "d", "x/y")}
    assert found == {
        **{f"{name}/": None for name in ("owners", "tmp", *STATES)},
        "fsqueue.json": {
            "format": 2,
            "created_at": 1_000.0,
            "run_id": "run-7",
            "lease_timeout_s": 60.0,
            "lock": "flock",
            "queue_id": queue.settings.queue_id,
        },
        "done/a@7.json": plain["a"],
        "done/b.json": plain["b"],
        f"leased/x%2fy@{owner}+5.json": plain["x/y"],
        "failed/c.json": plain["c"]
        | {
            "_fsqueue": {
                "attempts": 1,
                "reason": "no such feature",
                "history": [{"event": "failed", "at": 1_010.5, "owner": f"{owner}+3", "reason": "no such feature"}],
            }
        },
        "pending/d.json": plain["d"]
        | {
            "_fsqueue": {
                "attempts": 1,
                "history": [{"event": "failed", "at": 1_010.5, "owner": f"{owner}+4", "reason": "try again"}],
            }
        },
    }
    assert re.fullmatch("[0-9a-f]{16}", queue.settings.queue_id or "")
    assert os.stat(path / f"leased/x%2fy@{owner}+5.json").st_mtime == 1_000.0
    assert record["owner"] == owner and record["pid"] == os.getpid()
    assert {"host", "boot_id", "pid_namespace", "pid_start_time", "started_at"} <= record.keys()
    assert list(filter(None, order.decode().split("\n")[1:])) == [
        f"{it} ...." for it in ("a", "b", "c", "d", "x%2fy", "d")
    ]
    assert_clean(path)


def _fields(one: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(one)


@pytest.mark.parametrize("number", [0, 1, 99])
def test_unknown_format_is_refused(tmp_path: Path, number: int) -> None:
    """A queue of another format is not opened, and nothing in it is touched or made."""
    path = tmp_path / "q"
    path.mkdir()
    (path / "fsqueue.json").write_text(json.dumps({"format": number, "whatever": [1]}))
    before = tree(path)
    with pytest.raises(UnsupportedFormatError) as caught:
        FileSampleRefQueue(path)
    assert (caught.value.found, caught.value.reads, caught.value.path) == (number, 2, str(path))
    then = "drain it with the fsqueue that made it, and put what is left into a new one"
    then = "upgrade fsqueue" if number == 99 else then
    assert str(caught.value) == f"queue {path} has format {number}, this fsqueue reads 2: {then}"
    assert tree(path) == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"null", b'{"format":2}', b'{"run_id":"\xff"}', b"\0" * 99])
def test_damaged_settings_are_refused(tmp_path: Path, damage: bytes) -> None:
    """A damaged fsqueue.json is named in the error, and the queue is left alone."""
    path = tmp_path / "q"
    FileSampleRefQueue(path).close()
    (path / "fsqueue.json").write_bytes(damage)
    before = tree_of_bytes(path)
    with pytest.raises(NotAQueueError, match=r"fsqueue\.json"):
        FileSampleRefQueue(path)
    assert tree_of_bytes(path) == before


def tree_of_bytes(path: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_settings_that_are_no_file_are_refused(tmp_path: Path) -> None:
    """A directory in the place of fsqueue.json makes it no queue, in an error of the documented kind."""
    path = tmp_path / "q"
    (path / "fsqueue.json").mkdir(parents=True)
    with pytest.raises((NotAQueueError, QueueIOError)):
        FileSampleRefQueue(path)


def test_foreign_directory_is_not_adopted(tmp_path: Path) -> None:
    """A directory with something else in it is refused by the name of what is there, and stays as it was."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(NotAQueueError, match=r"thesis\.tex"):
        FileSampleRefQueue(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_refs_without_settings_are_not_adopted(tmp_path: Path) -> None:
    """A queue that lost its fsqueue.json while refs are in it is not taken for a new one."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
    (path / "fsqueue.json").unlink()
    with pytest.raises(NotAQueueError, match="pending"):
        FileSampleRefQueue(path)
    assert names_in(path, "pending") == ["a.json"]


def test_a_file_is_no_queue(tmp_path: Path) -> None:
    """A path that is a file is refused as such."""
    (tmp_path / "q").write_text("")
    with pytest.raises(NotAQueueError, match="is a file"):
        FileSampleRefQueue(tmp_path / "q")


@pytest.mark.parametrize("below", ["file/q", "file/a/b/q", "link/q"])
@pytest.mark.parametrize("create", [True, False])
def test_a_path_below_a_file_names_that_file(tmp_path: Path, below: str, create: bool) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    with pytest.raises(NotAQueueError, match=re.escape(f"{tmp_path / below.partition('/')[0]} is a file")):
        FileSampleRefQueue(tmp_path / below, create=create)
    with pytest.raises(QueueIOError, match=re.escape(f"{tmp_path / below.partition('/')[0]} is a file")):
        FileMetadataStore(tmp_path / below)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="there is no /proc")
@pytest.mark.parametrize("make", [FileSampleRefQueue, FileMetadataStore], ids=lambda it: it.__name__)
@pytest.mark.parametrize("path", ["/proc/queue", "/proc/a/b/c/queue"])
def test_where_the_directory_above_makes_none_the_error_names_it(make: Callable[[str], object], path: str) -> None:
    """There mkdir says ENOENT, and the parent is there."""
    with pytest.raises(QueueIOError, match=r"making directory /proc/(queue|a) failed.* /proc is there, and makes"):
        make(path)


def test_a_mkdir_that_never_finds_a_parent_ends_with_an_error(tmp_path: Path) -> None:
    ops = FileOps()

    def mkdir(path: str, mode: int, **where: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "injected", path)

    ops.mkdir = mkdir  # type: ignore[assignment]
    with using(ops), pytest.raises(QueueIOError, match="making directory"):
        FileSampleRefQueue(tmp_path / "a" / "b" / "q")


@pytest.mark.parametrize("make", [FileSampleRefQueue, FileMetadataStore], ids=lambda it: it.__name__)
def test_a_relative_path_where_the_current_directory_is_gone_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], object]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(QueueIOError, match=r"finding queue failed: ENOENT .*the current directory was removed"):
        make("queue")
    result = run("init", "queue")
    assert result.exit_code == 1 and "the current directory was removed" in result.stderr
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("stored", "asked", "text"),
    [
        ({"lease_timeout_s": 60.0}, {"lease_timeout_s": 30.0}, "lease_timeout_s=60.0.*30.0"),
        ({}, {"lease_timeout_s": 30.0}, "lease_timeout_s=None.*30.0"),
        ({"run_id": "a"}, {"run_id": "b"}, "run_id='a'.*'b'"),
        ({"lock": "none"}, {"lock": "lease"}, "lock='none'.*'lease'"),
        ({}, {"lock": "none"}, "lock='flock'.*'none'"),
    ],
)
def test_mismatch_names_both_values(tmp_path: Path, stored: Any, asked: Any, text: str) -> None:
    """A handle whose arguments contradict the stored settings gets an error that names both."""
    FileSampleRefQueue(tmp_path / "q", **stored).close()
    before = open_descriptors()
    with pytest.raises(QueueConfigError, match=text) as caught:
        FileSampleRefQueue(tmp_path / "q", **asked)
    assert caught.value.path == str(tmp_path / "q")
    del caught
    assert open_descriptors() == before


def test_stored_settings_are_taken(tmp_path: Path) -> None:
    """A handle that passes none takes lease timeout, run id and lock mode from the queue."""
    FileSampleRefQueue(tmp_path / "q", lease_timeout_s=60, run_id="a", lock="none").close()
    with FileSampleRefQueue(tmp_path / "q") as queue:
        assert (queue.lease_timeout_s, queue.run_id) == (60.0, "a")


@pytest.mark.parametrize(
    "arguments",
    [
        {"lease_timeout_s": 0},
        {"lease_timeout_s": -1},
        {"lease_timeout_s": float("nan")},
        {"lock": "fcntl"},
        {"max_attempts": 0},
        {"heartbeat_s": 0},
        {"poll_interval_s": 0},
        {"lease_timeout_s": 10, "heartbeat_s": 6},
        {"owner": ""},
        {"owner": "x" * 65},
    ],
)
def test_invalid_arguments_make_no_queue(tmp_path: Path, arguments: Any) -> None:
    """An argument that is not valid by itself is refused before anything is created, and leaks nothing."""
    gc.collect()  # what earlier tests dropped without closing is closed now, not in between
    before = open_descriptors()
    with pytest.raises(QueueConfigError):
        FileSampleRefQueue(tmp_path / "q", **arguments)
    assert not (tmp_path / "q").exists()
    assert open_descriptors() == before


@pytest.mark.parametrize("made", [(), ("owners", "tmp"), ("owners", "tmp", *STATES), ("owners", "tmp", "order.lock")])
def test_half_created_queue_is_completed(tmp_path: Path, made: tuple[str, ...]) -> None:
    """The remains of a creator that was killed before fsqueue.json appeared become a queue."""
    path = tmp_path / "q"
    path.mkdir()
    for name in made:
        (path / name).touch() if name == "order.lock" else (path / name).mkdir()
    if "tmp" in made:
        (path / "tmp" / "fsqueue.json.12.0123456789ab").write_text('{"format":1')
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
        assert ids(queue.get(1)) == ["a"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    """The queue's directory may lie below directories that do not exist yet."""
    with FileSampleRefQueue(tmp_path / "a" / "b" / "q") as queue:
        assert queue.depth() == 0


def create_at_once(pipe: Connection, path: Path, number: int) -> None:
    pipe.send("ready")
    pipe.recv()
    with FileSampleRefQueue(path, lease_timeout_s=60.0) as queue:
        queue.put([ref(f"from{number}")])
        pipe.send((queue.lease_timeout_s, content(path / "fsqueue.json")["created_at"]))


def test_eight_processes_create_at_once(tmp_path: Path) -> None:
    """Of eight processes that create one queue at the same moment, all use one and the same queue."""
    path = tmp_path / "q"
    children = [Child(create_at_once, path, number) for number in range(8)]
    try:
        for child in children:
            child.receive()
        for child in children:
            child.send("go")
        assert len({child.receive() for child in children}) == 1
        assert [child.join() for child in children] == [0] * 8
    finally:
        for child in children:
            child.__exit__()
    with FileSampleRefQueue(path) as queue:
        assert sorted(drain(queue)) == [f"from{number}" for number in range(8)]
    assert names_in(path, "tmp") == []
    assert_clean(path)


def test_files_of_a_ref_do_not_change_on_the_way(tmp_path: Path) -> None:
    """put, get and ack move one file and never rewrite it: same inode, same bytes."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path) as queue:
        queue.put(refs("a"))
        before = os.stat(path / "pending" / "a.json").st_ino, (path / "pending" / "a.json").read_bytes()
        queue.ack(queue.get(1))
        after = os.stat(path / "done" / "a.json").st_ino, (path / "done" / "a.json").read_bytes()
    assert after == before
