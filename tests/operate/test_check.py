"""`check_queue` and `repair`: every invariant of the format, broken by hand; no false damage; no ref lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsqueue import FileSampleRefQueue, NotAQueueError, UnsupportedFormatError, operate
from fsqueue.disk.fileops import FileOps, using, wrapped
from fsqueue.engine.owners import describe_self
from fsqueue.format import names
from fsqueue.format.untyped import sight
from fsqueue.operate.check import check_queue, repair
from fsqueue.operate.metrics import Exporter
from fsqueue.operate.requeue import requeue, requeue_failed
from fsqueue.operate.show import entries
from tests.support import Child, Queue, Tap, drain, ids, lease_and_obey, lease_name, names_in, numbered, ref, refs
from tests.support.other_user import as_nobody, readable_by_all

OWNER = "zznode9.4242.0a1b2c"
HOUR_S = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue with refs in every state."""
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=600.0, durable=False) as queue:
        queue.put(refs("done", "dead", "held", "a", "b", "c"))
        done, dead, held = (queue.get(1) for _ in range(3))
        queue.ack(done, step=7)
        queue.fail(dead, "no good", retryable=False)
        queue.renew(held)
        _forget_process(tmp_path / "q", queue.owner)
    return tmp_path / "q"


def _forget_process(path: Path, owner: str) -> None:
    """Make a record that of a process on another host, so that nobody can tell whether it lives."""
    file = path / "owners" / f"{owner}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot_id": "another", "host": "node9"}))


def kinds(path: Path, *, notes: bool = False) -> dict[str, str]:
    """The problems by path inside the queue."""
    return {os.path.relpath(found.path, path): found.kind for found in check_queue(path, notes=notes)}


def all_ids(path: Path) -> list[str]:
    """The ids of all refs, wherever they are; the file's name for what holds none."""
    files = sorted(file for file in path.glob("*/*.json") if file.is_file() and file.parent.name != "owners")
    return sorted(sight(file.read_bytes()).sample_id or f"no ref in {re.split('[@.]', file.name)[0]}" for file in files)


def write_record(path: Path, owner: str, **changes: object) -> Path:
    record = json.loads(msgspec.json.encode(describe_self(owner, time.time(), None))) | changes
    file = path / "owners" / f"{owner}.json"
    file.write_text(json.dumps(record))
    return file


def dead_record(path: Path, owner: str) -> Path:
    """The record of a process of this host that is gone: this one's, with another start time."""
    return write_record(path, owner, pid_start_time="1")


def test_a_used_queue_is_clean_to_the_last_note(path: Path) -> None:
    assert check_queue(path, notes=True) == []


def test_checking_changes_nothing(path: Path) -> None:
    (path / "pending" / "x.json").write_text("{")
    before = {file: file.stat() for file in path.rglob("*")}
    tap = Tap()
    with tap.here():
        check_queue(path, notes=True)
    assert {file: file.stat()[:9] for file in path.rglob("*")} == {file: was[:9] for file, was in before.items()}
    assert not set(tap.counts) & {
        "write",
        "pwrite",
        "ftruncate",
        "fsync",
        "rename",
        "link",
        "unlink",
        "mkdir",
        "utime",
        "lock",
    }


Breakage = Callable[[Path], object]


def written(where: str, content: str | bytes) -> Breakage:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda path: (path / where).write_bytes(data)


def moved(where: str, to: str) -> Breakage:
    return lambda path: (path / where).rename(path / to)


def cut(where: str, to_bytes: int) -> Breakage:
    """Cut a file, from its end where to_bytes is negative."""
    return lambda path: (path / where).write_bytes((path / where).read_bytes()[:to_bytes])


def torn(path: Path, where: str) -> None:
    """Leave behind half of what an update of the history writes."""
    (path / where).write_bytes((path / where).read_bytes()[:-2] + b'\n,"_fsqueue":{"att')


def old(path: Path, where: str, age_s: float = 2 * HOUR_S) -> None:
    (path / where).touch()
    os.utime(path / where, (time.time() - age_s,) * 2)


def linked_elsewhere(path: Path) -> None:
    (path.parent / "elsewhere.json").write_text('{"sample_id":"secret"}')
    (path / "pending" / "link.json").symlink_to(path.parent / "elsewhere.json")


def order_linked(path: Path) -> None:
    (path / "order.lock").unlink()
    (path / "order.lock").symlink_to("/dev/null")


def put_while_done(path: Path) -> None:
    (path / "pending" / "twin.json").write_bytes(msgspec.json.encode(ref("twin")))
    os.link(path / "pending" / "twin.json", path / "done" / "twin.json")


def left_by_a_dead_process(path: Path) -> None:
    dead_record(path, OWNER)
    (path / "tmp" / f"{OWNER}.3").touch()


def lease(path: Path) -> Path:
    """The file of the one lease."""
    return path / "leased" / names_in(path, "leased")[0]


def copied_to(where: str) -> Breakage:
    return lambda path: shutil.copy(lease(path), path / where)


def deep(path: Path) -> None:
    (path / "pending" / "x.json").write_text("[" * 100_000)


DAMAGE: dict[str, tuple[str, str, Breakage]] = {
    "half a file": ("undecodable", "pending/a.json", cut("pending/a.json", 40)),
    "an empty file": ("undecodable", "pending/a.json", cut("pending/a.json", 0)),
    "half a lease": ("undecodable", "LEASE", lambda path: os.truncate(lease(path), 30)),
    "a JSON list": ("undecodable", "pending/x.json", written("pending/x.json", "[1]")),
    "no Unicode": ("undecodable", "pending/x.json", written("pending/x.json", b'{"sample_id":"\xff"}')),
    "a deep nest": ("undecodable", "pending/x.json", deep),
    "no id": ("no-id", "pending/x.json", written("pending/x.json", '{"run_id":"r"}')),
    "an id that is no string": ("no-id", "done/x.json", written("done/x.json", '{"sample_id":5}')),
    "an empty id": ("no-id", "failed/x.json", written("failed/x.json", '{"sample_id":""}')),
    "another id's name": ("misnamed", "pending/x.json", moved("pending/a.json", "pending/x.json")),
    "no id's name": ("misnamed", "pending/a b.json", moved("pending/a.json", "pending/a b.json")),
    "a done ref misnamed": ("misnamed", "done/x@7.json", moved("done/done@7.json", "done/x@7.json")),
    "a dead letter misnamed": ("misnamed", "failed/x.json", moved("failed/dead.json", "failed/x.json")),
    "a lease without an owner": ("unowned", "leased/a.json", moved("pending/a.json", "leased/a.json")),
    "torn history": ("torn", "failed/dead.json", cut("failed/dead.json", -9)),
    "torn history in pending": ("torn", "pending/a.json", lambda path: torn(path, "pending/a.json")),
    "pending and leased": ("duplicate", "pending/held.json", copied_to("pending/held.json")),
    "pending twice": (
        "duplicate",
        "pending/a.json",
        lambda path: shutil.copy(path / "pending" / "a.json", path / "pending" / "Another.json"),
    ),
    "two names of one file": (
        "duplicate",
        "pending/held.json",
        lambda path: os.link(lease(path), path / "pending" / "held.json"),
    ),
    "leased by two": ("two-leases", f"leased/held@{OWNER}.json", copied_to(f"leased/held@{OWNER}.json")),
    "leased by two, one dead": (
        "duplicate",
        f"leased/held@{OWNER}.json",
        lambda path: (dead_record(path, OWNER), copied_to(f"leased/held@{OWNER}.json")(path)),
    ),
    "a pending file that is also done": (
        "twin",
        "pending/twin.json",
        put_while_done,
    ),
    "a directory": ("not-a-file", "pending/x.json", lambda path: os.mkdir(path / "pending" / "x.json")),
    "a symbolic link": ("not-a-file", "pending/link.json", linked_elsewhere),
    "a FIFO": ("not-a-file", f"leased/x@{OWNER}.json", lambda path: os.mkfifo(path / "leased" / f"x@{OWNER}.json")),
    "a socket": ("not-a-file", "done/s.json", lambda path: os.mknod(path / "done" / "s.json", stat.S_IFSOCK | 0o666)),
    "a lease in the future": (
        "future",
        "LEASE",
        lambda path: os.utime(lease(path), (time.time() + 9 * HOUR_S,) * 2),
    ),
    "a missing directory": ("missing-directory", "tmp", lambda path: os.rmdir(path / "tmp")),
    "an order that is a link": ("not-a-file", "order.lock", order_linked),
    "half a class": ("type-unreadable", "type.json", cut("type.json", 40)),
}

NOTES: dict[str, tuple[str, str, Breakage]] = {
    "no order": ("order", "order.lock", lambda path: os.unlink(path / "order.lock")),
    "a damaged header": ("order", "order.lock", written("order.lock", b"rubbish" * 20)),
    "a cursor past the end": ("order", "order.lock", cut("order.lock", 64)),
    "torn lines": ("order", "order.lock", lambda path: append(path / "order.lock", b"\0\0\0\nthis is / none\n")),
    "a dead process's record": ("owner-gone", f"owners/{OWNER}.json", lambda path: dead_record(path, OWNER)),
    "a record that is none": ("owner-unreadable", f"owners/{OWNER}.json", written(f"owners/{OWNER}.json", "{")),
    "a lease without a record": ("no-record", "RECORD", lambda path: record_of_lease(path).unlink()),
    "an old tmp file": ("leftover", "tmp/x", lambda path: old(path, "tmp/x")),
    "an old tmp file of an owner without a record": (
        "leftover",
        "tmp/gone.1.abcdef.0",
        lambda path: old(path, "tmp/gone.1.abcdef.0", 25 * HOUR_S),
    ),
    "a dead process's tmp file": (
        "leftover",
        f"tmp/{OWNER}.3",
        left_by_a_dead_process,
    ),
    "an order that was never put in place": (
        "leftover",
        ".order.lock.77.0123456789ab",
        lambda path: old(path, ".order.lock.77.0123456789ab"),
    ),
    "a torn lease": ("torn-lease", "LEASE", lambda path: torn(path, f"leased/{lease(path).name}")),
    "a stranger in the root": ("foreign", "notes.txt", written("notes.txt", "")),
    "a stranger in pending": ("foreign", "pending/notes.txt", written("pending/notes.txt", "")),
    "a stranger with JSON in it": ("foreign", "done/a b.json", written("done/a b.json", "{}")),
    "a hard link": (
        "linked",
        "done/done@7.json",
        lambda path: os.link(path / "done" / "done@7.json", path.parent / "l"),
    ),
}


def append(file: Path, data: bytes) -> None:
    file.write_bytes(file.read_bytes() + data)


def record_of_lease(path: Path) -> Path:
    return path / "owners" / names.ref_file(lease(path).name.partition("@")[2].partition("+")[0])


def place(path: Path, where: str) -> str:
    """Return the place of a case's problem: LEASE and RECORD stand for names that differ from run to run."""
    if where == "LEASE":
        return f"leased/{lease(path).name}"
    return f"owners/{record_of_lease(path).name}" if where == "RECORD" else where


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_found_and_named_with_its_path(path: Path, case: str) -> None:
    kind, where, breakage = DAMAGE[case]
    breakage(path)
    assert kinds(path)[place(path, where)] == kind
    assert all(found.problem and found.remedy for found in check_queue(path, notes=True))


@pytest.mark.parametrize("case", NOTES)
def test_what_a_crash_may_leave_is_a_note_and_no_damage(path: Path, case: str) -> None:
    kind, where, breakage = NOTES[case]
    breakage(path)
    assert check_queue(path) == []
    assert kinds(path, notes=True)[place(path, where)] == kind


@pytest.mark.parametrize("name", [".nfs0000000001", ".hidden.json", "a.json~", "backup~"])
def test_names_that_the_queue_ignores_are_not_reported(path: Path, name: str) -> None:
    for state in ("pending", "leased", "done", "failed"):
        (path / state / name).write_text("whatever")
    assert check_queue(path, notes=True) == []


@pytest.mark.parametrize("name", ["held@{owner}.json", "done@7.json"])
def test_a_ref_moved_back_to_pending_under_its_old_name_is_legal(path: Path, name: str) -> None:
    source = lease(path) if name.startswith("held") else path / "done" / "done@7.json"
    source.rename(path / "pending" / source.name)
    assert check_queue(path) == []


def test_moves_by_hand_that_the_format_allows_are_legal(path: Path) -> None:
    (path / "failed" / "dead.json").rename(path / "pending" / "dead.json")
    (path / "pending" / "a.json").rename(path / "failed" / "a.json")
    (path / "pending" / "b.json").rename(path / "done" / "b.json")
    (path / "done" / "done@7.json").unlink()
    assert check_queue(path) == []


def test_a_later_life_of_an_id_is_legal_beside_its_earlier_ones(path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("done", "dead"))
    assert check_queue(path) == []


def test_without_a_lock_an_id_queued_twice_is_a_note(tmp_path: Path) -> None:
    with FileSampleRefQueue(tmp_path / "q", lock="none", durable=False) as queue:
        queue.put(refs("a"))
        queue.get(1)
        shutil.copy(tmp_path / "q" / "leased" / lease_name(tmp_path / "q", "a"), tmp_path / "q" / "pending" / "a.json")
        assert check_queue(tmp_path / "q") == []
        assert "duplicate" in kinds(tmp_path / "q", notes=True).values()


def test_what_is_no_queue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAQueueError):
        check_queue(tmp_path)
    (tmp_path / "fsqueue.json").write_text('{"format": 3}')
    with pytest.raises(UnsupportedFormatError):
        check_queue(tmp_path)
    assert os.listdir(tmp_path) == ["fsqueue.json"]


@pytest.mark.parametrize("case", DAMAGE)
def test_repair_mends_damage_and_loses_no_ref(path: Path, case: str) -> None:
    DAMAGE[case][2](path)
    before = all_ids(path)
    mended = repair(path)
    left = check_queue(path)
    assert [found for found in left if found.mendable] == [], mended
    assert set(before) == set(all_ids(path))
    if not left:
        pending = sorted(name.removesuffix(".json") for name in names_in(path, "pending"))
        assert taken(path) == pending


def taken(path: Path) -> list[str]:
    """The ids of everything that a new handle can lease."""
    with FileSampleRefQueue(path, durable=False) as queue:
        found = []
        while batch := queue.get(64):
            found += ids(batch)
        return sorted(found)


@pytest.mark.parametrize("case", NOTES)
def test_repair_clears_notes_that_it_can(path: Path, case: str) -> None:
    NOTES[case][2](path)
    before = all_ids(path)
    repair(path)
    assert [found for found in check_queue(path, notes=True) if found.mendable] == []
    assert all_ids(path) == before


def test_a_repaired_queue_hands_out_every_pending_ref_once(path: Path) -> None:
    (path / "pending" / "a.json").rename(path / "pending" / "misnamed.json")
    (path / "pending" / "b.json").rename(path / "leased" / "b.json")
    shutil.copy(lease(path), path / "pending" / "held.json")
    (path / "order.lock").write_bytes(b"\0" * 500)
    repair(path)
    assert taken(path) == ["a", "b", "c"]


def test_repair_keeps_the_order_that_the_hint_still_tells(path: Path) -> None:
    with (path / "order.lock").open("ab") as order:
        order.write(b"\0\0\0 torn\n")
    repair(path)
    with FileSampleRefQueue(path, durable=False) as queue:
        assert ids(queue.get(9)) == ["a", "b", "c"]


def test_the_bytes_of_an_undecodable_file_are_kept_as_a_dead_letter(path: Path) -> None:
    (path / "pending" / "a.json").write_bytes(b'{"sample_id": "a", \xff')
    repair(path)
    letter = json.loads((path / "failed" / "a.json").read_text())["_fsqueue"]
    assert letter["raw"] == '{"sample_id": "a", \\xff'
    assert letter["reason"] == "found in pending/: it holds no JSON object"


def test_an_undecodable_file_does_not_replace_a_dead_letter_of_that_name(path: Path) -> None:
    (path / "pending" / "dead.json").write_bytes(b"{")
    repair(path)
    assert json.loads((path / "failed" / "dead.json").read_text())["sample_id"] == "dead"
    assert len(names_in(path, "failed")) == 2
    assert check_queue(path) == []


def test_of_two_copies_of_a_ref_the_lease_is_kept(path: Path) -> None:
    shutil.copy(lease(path), path / "pending" / "held.json")
    kept = lease(path).name
    repair(path)
    assert (names_in(path, "leased"), "held.json" in names_in(path, "pending")) == ([kept], False)


def test_two_refs_with_one_id_are_both_kept_one_as_a_dead_letter(path: Path) -> None:
    content = json.loads(lease(path).read_text())
    (path / "pending" / "held.json").write_text(json.dumps(content | {"num_tokens": 99}))
    repair(path)
    assert json.loads((path / "failed" / "held.json").read_text())["num_tokens"] == 99
    assert json.loads(lease(path).read_text())["num_tokens"] == 0


def test_torn_history_is_dropped_and_the_ref_kept(path: Path) -> None:
    file = path / "failed" / "dead.json"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    repair(path)
    content = json.loads(file.read_text())
    assert content["sample_id"] == "dead"
    assert [event["event"] for event in content["_fsqueue"]["history"]] == ["repaired"]


def test_a_misnamed_ref_is_not_renamed_over_another_file(path: Path) -> None:
    """A ref that is done twice stays so until a person removes one of them."""
    (done,) = [file for file in (path / "done").iterdir() if file.name.endswith(".json")][:1]
    twin = done.with_name("other.json" if "@" not in done.name else f"other@{done.name.partition('@')[2]}")
    twin.write_bytes(done.read_bytes())
    (mended,) = repair(path)
    assert not mended.done and f"{done.name} is there already" in mended.outcome
    assert twin.read_bytes() == done.read_bytes()


def test_strangers_survive_a_repair(path: Path) -> None:
    (path / "pending" / "notes.txt").write_text("mine")
    (path / "todo").mkdir()
    (path / "done" / "x.json").mkdir()
    repair(path)
    assert (path / "pending" / "notes.txt").read_text() == "mine"
    assert (path / "todo").is_dir() and (path / "done" / "x.json").is_dir()


def test_a_lease_that_a_live_process_works_on_is_left_to_it(path: Path) -> None:
    with Child(lease_and_obey, path, 1, {"durable": False}) as child:
        owner, leased = child.receive()
        os.truncate(path / "leased" / lease_name(path, leased[0], owner), 10)
        (mended,) = repair(path)
        assert (mended.done, mended.violation.kind) == (False, "undecodable")
        child.send("end")
        child.join()


@pytest.mark.parametrize("recorded", [False, True])
def test_what_an_owner_that_may_live_has_in_tmp_is_left_to_it(path: Path, recorded: bool) -> None:
    """A producer of another node that was stopped for hours finds its files in tmp/ when it goes on."""
    old(path, f"tmp/{OWNER}.3", 2 * HOUR_S)
    if recorded:
        old(path, f"tmp/{OWNER}.4", 100 * 24 * HOUR_S)
        write_record(path, OWNER, boot_id="of another host")
    repair(path)
    assert len(list((path / "tmp").iterdir())) == 1 + recorded


def test_an_unreadable_file_is_named(path: Path) -> None:
    with readable_by_all(path) as public:
        (public / "pending" / "a.json").chmod(0)
        with Child(as_nobody, kinds, public) as child:
            assert child.receive() == {"pending/a.json": "unreadable"}


def test_a_healthy_queue_of_another_user_is_no_damage_to_a_reader(path: Path) -> None:
    with readable_by_all(path) as public, Child(as_nobody, kinds, public) as child:
        assert child.receive() == {}


def _work(pipe: object, path: Path, prefix: str) -> None:
    """Put, get, fail, release and ack as fast as one can."""
    with FileSampleRefQueue(path, durable=False) as queue:
        for start in range(0, 400, 8):
            queue.put(numbered(400, prefix)[start : start + 8])
            some = queue.get(8)
            queue.fail(some[:2], "again", retryable=True)
            queue.release(some[2:4])
            queue.ack(some[4:])
        while batch := queue.get(32):
            queue.ack(batch)


def test_a_queue_in_full_use_is_never_found_damaged(tmp_path: Path) -> None:
    queue: Queue = FileSampleRefQueue(tmp_path / "q", durable=False)
    with queue, Child(_work, tmp_path / "q", "x") as one, Child(_work, tmp_path / "q", "y") as other:
        while one.process.is_alive() or other.process.is_alive():
            assert check_queue(tmp_path / "q") == []
        assert (one.join(), other.join()) == (0, 0)
    assert check_queue(tmp_path / "q", notes=True) == []


def test_repairing_a_queue_in_full_use_loses_nothing(tmp_path: Path) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        with Child(_work, tmp_path / "q", "x") as one, Child(_work, tmp_path / "q", "y") as other:
            number = 0
            while one.process.is_alive() or other.process.is_alive():
                number += 1
                (tmp_path / "q" / "pending" / f"odd name {number}.json").write_text(
                    json.dumps(json.loads(msgspec.json.encode(ref(f"m{number}"))))
                )
                repair(tmp_path / "q")
            assert (one.join(), other.join()) == (0, 0)
        repair(tmp_path / "q")
        drain(queue)
        done = {name.removesuffix(".json") for name in names_in(tmp_path / "q", "done")}
        assert done == {*ids(numbered(400, "x")), *ids(numbered(400, "y")), *(f"m{i}" for i in range(1, number + 1))}
    assert check_queue(tmp_path / "q") == []


@pytest.mark.parametrize("call", ["stat", "open"])
@pytest.mark.parametrize("code", [errno.ENOENT, errno.ESTALE, errno.EBADF])
def test_a_file_that_is_replaced_under_the_check_does_not_end_it(path: Path, call: str, code: int) -> None:
    """On a shared mount; the next look sees what is there."""
    (path / "pending" / "broken.json").write_bytes(b"{")
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put([ref("long", metadata={"text": 70_000 * "x"})])
    failing, file = [code], {"stat": "long.json", "open": "dead.json"}[call]

    def around(name: str, real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == call and args[0] == file and failing:
            raise OSError(failing.pop(), "replaced", args[0])
        return real(*args, **kwargs)

    ops = wrapped(FileOps(), around)
    ops.filesystem_type = lambda path: "fuse.glusterfs"
    with using(ops):
        assert [os.path.basename(each.path) for each in check_queue(path)] == ["broken.json"]
    assert not failing


@pytest.mark.parametrize("state", ["pending", "failed"])
def test_a_ref_that_the_storage_cannot_read(path: Path, state: str) -> None:
    """It is told among the others, in failed/ as a note, and no command ends because of it."""
    with FileSampleRefQueue(path, durable=False) as queue:
        drain(queue)
        queue.put([ref("bad"), ref("good")])
        if state == "failed":
            queue.fail(queue.get(2), "bad", retryable=False)
    tap = Tap()

    def unreadable(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[0] == "bad.json" and args[1] & (os.O_WRONLY | os.O_RDWR) == 0:
            raise OSError(errno.EIO, "injected")

    tap.before = unreadable
    with tap.here():
        (found,) = check_queue(path, notes=True)
        assert found.path.endswith(f"{state}/bad.json") and "cannot be read: EIO" in found.problem
        assert found.severity == ("note" if state == "failed" else "damage")
        assert {"bad", "good"} <= {entry.id for entry in entries(path, [state], details=True)}
        if state == "pending":
            heard: list[operate.Outcome] = []
            operate.discard(path, "stale", where=lambda it: False, each=heard.append)
            assert [(it.sample_id, it.moved) for it in heard] == [("bad", False)] and "(EIO)" in heard[0].detail
        if state == "failed":
            outcomes = {outcome.sample_id: outcome for outcome in requeue(str(path), ["bad", "good"])}
            assert outcomes["good"].moved and "cannot be read (EIO)" in outcomes["bad"].detail
            (left,) = [outcome for outcome in requeue_failed(str(path)) if not outcome.moved]
            assert left.sample_id == "bad" and "cannot be read (EIO)" in left.detail
            assert next(metric for metric in Exporter([path]).collect() if metric.name == "fsqueue_up").samples[0].value
