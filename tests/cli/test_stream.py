"""The members of a stream, as `fsqueue status`, `top` and `check` show them."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, MemberMissingError, PartialWindowWarning, TrainerView
from fsqueue.operate.check import check_queue, repair
from fsqueue.stream.policy import StreamPolicy
from tests.support import Child, Queue, Tap, assert_clean, refs
from tests.support.program import PROGRAM, run
from tests.support.terminal import Terminal


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue that nobody takes part in."""
    FileSampleRefQueue(tmp_path / "q", durable=False).close()
    return tmp_path / "q"


def join_and_wait(pipe: Any, path: Path, name: str) -> None:
    """A child that is a producer until it is killed."""
    with FileSampleRefQueue(path, durable=False) as queue, queue.producer(name):
        pipe.send("joined")
        pipe.recv()


def silent_producer(path: Path, name: str) -> Path:
    """The file of a producer that was SIGKILLed longer ago than a silence may last."""
    before = set(os.listdir(path / "stream")) if (path / "stream").exists() else set()
    with Child(join_and_wait, path, name) as child:
        child.receive()
        child.kill()
    (file,) = [path / "stream" / found for found in set(os.listdir(path / "stream")) - before]
    age(file, StreamPolicy().silence_s + 1)
    return file


def age(file: Path, by_s: float) -> None:
    past = file.stat().st_mtime - by_s
    os.utime(file, (past, past))


def full_stream(queue: Queue) -> None:
    """Producers in every state, a consumer that has left, and a quantum."""
    silent_producer(Path(queue.path), "killed")
    with queue.producer("closed", expected=4):
        pass
    with pytest.raises(RuntimeError), queue.producer("failed"):
        raise RuntimeError("out of memory")
    with queue.consumer("trainer-0"):
        queue.publish_quantum(dp_size=2, batch_size=8, accumulation_steps=4)


def test_status_shows_members_and_quantum(queue: Queue, path: Path) -> None:
    full_stream(queue)
    with queue.producer("open"):
        shown = run("status", path).stdout
        rows = {line.split()[1]: line.split() for line in shown.splitlines() if line.startswith("producer")}
        assert {name: row[2] for name, row in rows.items()} == {
            "closed": "closed", "failed": "failed", "killed": "silent", "open": "joined",
        }  # fmt: skip
        assert rows["killed"][6] == "dead" and rows["open"][6] == "alive"
        joined = "2 of 4 producers joined (1 closed), 1 of 1 consumers joined (1 closed)"
        assert f"{joined}; silent after 30.0 s, awaited for 30.0 min" in shown
        assert "out of memory" in " ".join(rows["failed"])
        assert "quantum  64 refs at a time: 2 ranks x 8 x 4 accumulated" in run("status", path).stdout


def test_status_as_json_has_the_stream(queue: Queue, path: Path) -> None:
    assert json.loads(run("status", path, "--json").stdout)["stream"] is None
    full_stream(queue)
    stream = json.loads(run("status", path, "--json").stdout)["stream"]
    assert stream["quantum"] == {"dp_size": 2, "batch_size": 8, "accumulation_steps": 4, "refs": 64}
    assert [(member["role"], member["name"]) for member in stream["members"]] == [
        ("producer", "closed"), ("producer", "failed"), ("producer", "killed"), ("consumer", "trainer-0"),
    ]  # fmt: skip
    assert list(stream["members"][0]) == [
        "role", "name", "state", "owner", "host", "pid", "process", "last_seen_s", "expected", "required", "run",
        "restarts", "reason",
    ]  # fmt: skip
    assert stream["members"][0]["expected"] == 4
    assert stream["members"][1]["reason"] == "RuntimeError: out of memory"
    assert stream["members"][2]["last_seen_s"] > StreamPolicy().silence_s


def test_a_member_that_died_while_it_failed_is_shown_once(queue: Queue, path: Path) -> None:
    with pytest.raises(RuntimeError), queue.producer("p"):
        (opened,) = (path / "stream").iterdir()
        content = opened.read_bytes()
        raise RuntimeError("no")
    opened.write_bytes(content)
    members = json.loads(run("status", path, "--json").stdout)["stream"]["members"]
    assert [member["state"] for member in members] == ["failed"]


def test_looking_changes_nothing(queue: Queue, path: Path) -> None:
    """Only that `check` touches the order file, to ask the filesystem what time it is."""
    full_stream(queue)
    before = {file: file.lstat().st_mtime_ns for file in path.rglob("*")}
    run("status", path)
    assert {file: file.lstat().st_mtime_ns for file in path.rglob("*")} == before
    run("check", path)
    after = {file: file.lstat().st_mtime_ns for file in path.rglob("*")}
    assert after | {path / "order.lock": 0} == before | {path / "order.lock": 0}


def test_top_off_a_terminal_counts_members_and_has_json(queue: Queue, path: Path) -> None:
    full_stream(queue)
    line = run("top", path, "--count", 1).stdout
    assert "producers closed 1  producers failed 1  producers silent 1  consumers closed 1" in line
    looks = run("top", path, "--count", 2, "--interval", "10ms", "--json").stdout.splitlines()
    assert len(looks) == 2 and len(json.loads(looks[1])["stream"]["members"]) == 4
    assert json.loads(looks[0])["rates"] is None and json.loads(looks[1])["rates"]["put_per_s"] == 0.0


def test_top_on_a_terminal_shows_members_and_quantum(queue: Queue, path: Path) -> None:
    full_stream(queue)
    with Terminal([*PROGRAM, "top", str(path), "--interval", "10ms"]) as terminal:
        terminal.read_until(lambda text: "killed" in text and "silent" in text and "64 refs" in text, "the members")
        terminal.press(b"q")
        terminal.end()


# --- check ---


def kinds(path: Path) -> dict[str, tuple[str, str]]:
    return {os.path.relpath(v.path, path): (v.kind, v.severity) for v in check_queue(path, notes=True)}


def test_a_used_stream_is_clean_to_the_last_note(queue: Queue, path: Path) -> None:
    with queue.producer("rollout-0"):
        queue.put(refs("a", "b", "c"))
        queue.publish_quantum(dp_size=1, batch_size=2)
        assert check_queue(path, notes=True) == []
    with TrainerView(queue, batch=2) as view:
        view.ack(view.get())
        with pytest.warns(PartialWindowWarning):
            assert view.get() == []
        assert check_queue(path, notes=True) == []
    assert check_queue(path, notes=True) == []


def test_a_member_without_a_sign_of_life_is_a_note_for_a_person(queue: Queue, path: Path) -> None:
    """Removing its file would turn its absence into the end of the data, so repair does not."""
    file = silent_producer(path, "rollout-0")
    assert kinds(path) == {f"stream/{file.name}": ("member-silent", "note")}
    repair(path)
    assert file.exists()
    queue.configure_stream(await_s=1.0)
    queue.stream().opened_at -= 2 * StreamPolicy().silence_s  # a run that has just begun leaves it aside
    with pytest.raises(MemberMissingError):
        queue.stream().raise_failures("producer")


@pytest.mark.parametrize("skew_s", [-3600.0, 0.0, 3600.0])
def test_silence_is_measured_by_the_filesystems_clock(queue: Queue, path: Path, skew_s: float) -> None:
    """A member just seen is not silent, and one not seen for long is, whatever this host's clock says."""
    gone = silent_producer(path, "gone")
    beating = silent_producer(path, "beating")
    age(beating, -StreamPolicy().silence_s)
    (path / "order.lock").write_text("damaged\n")  # and asking for the time hides nothing else
    tap = Tap()
    tap.ops.time = lambda: time.time() + skew_s
    with tap.here():
        assert kinds(path) == {f"stream/{gone.name}": ("member-silent", "note"), "order.lock": ("order", "note")}


@pytest.mark.parametrize("skew_s", [-3600.0, 3600.0])
def test_where_the_clock_must_not_be_asked_who_was_outlived_is_silent(queue: Queue, path: Path, skew_s: float) -> None:
    gone = silent_producer(path, "gone")
    with queue.consumer("trainer-0"):
        tap = Tap()
        tap.ops.time = lambda: time.time() + skew_s

        def refuse(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
            if name == "utime":
                raise PermissionError(errno.EPERM, "Operation not permitted")

        tap.before = refuse
        with tap.here():
            assert kinds(path) == {f"stream/{gone.name}": ("member-silent", "note")}


def test_a_member_that_does_not_decode_is_damage_and_removed_once_it_is_silent(queue: Queue, path: Path) -> None:
    file = silent_producer(path, "rollout-0")
    file.write_bytes(file.read_bytes()[:40])
    assert kinds(path) == {f"stream/{file.name}": ("member-unreadable", "damage")}
    (mended,) = repair(path)
    assert not mended.done and file.exists(), "it was stamped just now"
    age(file, StreamPolicy().silence_s + 1)
    repair(path)
    assert not file.exists()
    assert_clean(path)


def test_what_a_crash_leaves_beside_a_member_is_removed(queue: Queue, path: Path) -> None:
    """The open file of one that died while it failed, and that of one whose successor died while it took its place."""
    with pytest.raises(RuntimeError), queue.producer("failing"):
        (opened,) = (path / "stream").iterdir()
        content = opened.read_bytes()
        raise RuntimeError("no")
    opened.write_bytes(content)
    predecessor = silent_producer(path, "restarted")
    earlier = predecessor.read_bytes()
    with queue.producer("restarted"):
        predecessor.write_bytes(earlier)
        assert kinds(path) == {
            f"stream/{opened.name}": ("leftover", "note"),
            f"stream/{predecessor.name}": ("leftover", "note"),
        }
        repair(path)
        members = json.loads(run("status", path, "--json").stdout)["stream"]["members"]
        assert [(member["name"], member["state"]) for member in members] == [
            ("failing", "failed"),
            ("restarted", "joined"),
        ]
    assert check_queue(path, notes=True) == []


def test_posts_and_verdicts_are_leftovers_when_nobody_who_is_there_made_them(queue: Queue, path: Path) -> None:
    queue.stream()
    with queue.consumer("trainer-0"):
        for name in ("rank@default.0.2@3.ready.json", "verdict@default@2.go.json"):
            for prefix, owner in (("", queue.owner), ("old", "gone.1.abcdef")):
                file = path / "stream" / name.replace("default", f"{prefix}default")
                file.write_text(json.dumps({"owner": owner, "leader": owner, "owners": [owner]}))
                age(file, 2 * 3600.0)
        young = path / "stream" / "rank@olddefault.1.2@3.starved.json"
        young.write_text("{}")
        assert kinds(path) == {
            "stream/rank@olddefault.0.2@3.ready.json": ("leftover", "note"),
            "stream/verdict@olddefault@2.go.json": ("leftover", "note"),
        }
        repair(path)
    assert young.exists() and (path / "stream" / "rank@default.0.2@3.ready.json").exists()
    assert not list((path / "stream").glob("*@olddefault*@*.[rg][eo]*.json"))


def test_strangers_links_and_a_quantum_that_says_nothing(queue: Queue, path: Path) -> None:
    queue.stream()
    (path / "stream" / "notes.txt").write_text("mine")
    (path / "stream" / ".nfs0001").write_text("")
    (path / "stream" / "producer@p-x.1.abcdef@open.json").symlink_to("/etc/passwd")
    (path / "stream" / "quantum.json").write_text("{")
    assert kinds(path) == {
        "stream/notes.txt": ("foreign", "note"),
        "stream/producer@p-x.1.abcdef@open.json": ("foreign", "note"),
        "stream/quantum.json": ("quantum-unreadable", "note"),
    }
    repair(path)
    assert sorted(os.listdir(path / "stream")) == [".nfs0001", "notes.txt", "producer@p-x.1.abcdef@open.json"]


def test_top_writes_escape_sequences_in_a_reason_as_text(queue: Queue, path: Path) -> None:
    with pytest.raises(RuntimeError), queue.producer("p"):
        raise RuntimeError("\x1b[35m")
    with Terminal([*PROGRAM, "top", str(path), "--count", "1"], {"COLUMNS": "200"}) as terminal:
        text = terminal.end()
    assert "u001b[35m" in text and "\x1b[35m" not in text
