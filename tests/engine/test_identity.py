"""One handle, one queue: whatever its path leads to later, and whatever becomes of its descriptors."""

from __future__ import annotations

import copy
import errno
import gc
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, NotAQueueError, QueueIOError, QueueReplacedError, TrainerView
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.control.ledger.noted import note_ledger
from fsqueue.disk.fileops import using
from fsqueue.engine.layout import LEDGER
from fsqueue.operate.operator import operator
from tests.support import (
    Child,
    FakeClock,
    Queue,
    Tap,
    assert_clean,
    content,
    drain,
    folder_of,
    ids,
    names_in,
    open_descriptors,
    open_tapped,
    ref,
    refs,
)
from tests.support.stale import Stale, settled

STATES = ("pending", "leased", "done", "failed")
MOUNTS = ["tmpfs", "nfs4"]


def move_symlink_on(base: Path) -> None:
    """Point `current` at another run, as a deployment does, by one rename."""
    FileSampleRefQueue(base / "run-2" / "q", lease_timeout_s=60.0).close()
    os.symlink("run-2", base / "new")
    os.rename(base / "new", base / "current")


def put_another_in_place(base: Path) -> None:
    """Move the queue aside, and make another one where it was."""
    os.rename(base / "run-1", base / "was-run-1")
    FileSampleRefQueue(base / "run-1" / "q", lease_timeout_s=60.0).close()


SWAPS = [move_symlink_on, put_another_in_place]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "run-1").mkdir()
    os.symlink("run-1", tmp_path / "current")
    return tmp_path


def first_queue(base: Path) -> Path:
    """Where the queue is that was opened first."""
    return next(path for name in ("was-run-1", "run-1") if (path := base / name / "q").exists())


def opened_on(mount: str, path: Path, **arguments: Any) -> Queue:
    tap = Tap()
    tap.ops.filesystem_type = lambda path: mount
    return open_tapped(tap, path, durable=False, **arguments)


@pytest.mark.parametrize("mount", MOUNTS)
@pytest.mark.parametrize("swap", SWAPS)
def test_a_path_that_leads_elsewhere_does_not_mix_two_queues(
    base: Path, swap: Callable[[Path], None], mount: str
) -> None:
    """Put, get, expiry, counts, streams and packing of an open handle stay in the queue that it was opened on."""
    clock = FakeClock()
    queue = opened_on(mount, base / "current" / "q", lease_timeout_s=60.0, clock=clock)
    other = opened_on(mount, base / "current" / "q", clock=clock)
    queue.put(refs("held", "expires"))
    held, _ = other.get(1), queue.get(1)
    swap(base)
    second = next(path for name in ("run-2", "run-1") if (path := base / name / "q").exists())
    queue.put(refs("held", "new"))
    assert names_in(first_queue(base), "pending") == ["new.json"], "what is leased is not queued again"
    clock.advance(61.0)
    other.renew(held)
    assert queue.reclaim() == 1
    with queue.producer("p"):
        pass
    got = queue.get(9)
    assert sorted(ids(got)) == ["expires", "new"]
    assert queue.ack(got, step=1) == [] and other.ack(held, step=1) == []
    queue.pack(older_than_s=-1e9)
    assert queue.counts().done == 3
    assert sorted(queue.rewind(after_step=0)) == ["expires", "held", "new"]
    assert [names_in(second, state) for state in (*STATES, "owners")] == [[]] * 5
    assert not (second / "stream").exists()
    other.close()
    queue.close()
    assert_clean(first_queue(base))


def test_other_openings_of_a_handle_s_path_refuse_another_queue(base: Path) -> None:
    """A ledger's note and an operator's handle, which go by the path, are refused where another queue lies by then."""
    with FileSampleRefQueue(base / "current" / "q") as queue:
        move_symlink_on(base)
        with pytest.raises(QueueReplacedError) as caught:
            note_ledger(queue, str(base / "ledger"))
        with pytest.raises(QueueReplacedError), operator(queue.path, queue.settings):
            pass
        found = content(base / "run-2" / "q" / "fsqueue.json")["queue_id"]
        assert (caught.value.opened, caught.value.found) == (queue.settings.queue_id, found)
        assert f"queue_id {queue.settings.queue_id}" in str(caught.value) and found in str(caught.value)
        assert not (base / "run-2" / "q" / LEDGER).exists() and names_in(base / "run-2" / "q", "owners") == []


def fork_and_use(pipe: Any, path: Path) -> None:
    queue = FileSampleRefQueue(path)
    move_symlink_on(path.parents[1])
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            queue.put(refs("a"))
            os.write(writing, b"put")
        except BaseException as error:
            os.write(writing, type(error).__name__.encode())
        os._exit(0)
    pipe.send(os.read(reading, 100).decode())
    os.wait()


def test_a_forked_child_does_not_go_on_in_another_queue(base: Path) -> None:
    """A handle's first use in a child, which opens the path again, raises where another queue lies there."""
    with Child(fork_and_use, base / "current" / "q") as child:
        assert child.receive() == "QueueReplacedError"
        assert child.join() == 0


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.ENOTCONN])
@pytest.mark.parametrize("first", ["put", "get", "ack", "depth", "beat"])
def test_a_handle_with_stale_descriptors_opens_by_path_again(path: Path, code: int, first: str) -> None:
    """Whichever call comes first finds it out; it, or the one after it, works, as a new process's would."""
    stale = Stale()
    with using(stale.ops):
        queue: Queue = FileSampleRefQueue(path, lease_timeout_s=60.0)
    queue.put(refs("a", "b", "c"))
    held = queue.get(1)
    stream = queue.stream()
    before = open_descriptors()
    os.rmdir(path / "stream")  # it may be deleted at any moment
    stale.errno = code
    calls: dict[str, Callable[[], Any]] = {
        "put": lambda: queue.put(refs("d")),
        "get": lambda: held.extend(queue.get(1)),
        "ack": lambda: queue.ack(held),
        "depth": queue.depth,
        "beat": lambda: _as_io_error(queue.handle.presence.beat),
    }
    settled(calls[first])
    for call in calls.values():
        settled(call)
    assert stream.members() == []
    assert names_in(path, "done") == sorted(f"{each.sample_id}.json" for each in held)  # order is a hint there
    for _ in range(5):
        queue.handle.layout.recover(OSError(code, "again"))
    assert open_descriptors() <= before + 8, "what was open before is closed the time after"
    stale.errno = 0
    queue.close()
    assert_clean(path)


def _as_io_error(call: Callable[[], None]) -> None:
    try:
        call()
    except OSError as error:
        raise QueueIOError("beating", "", error) from None


@pytest.mark.parametrize("there", ["another", "none"])
def test_stale_descriptors_are_not_traded_for_another_queue(path: Path, there: str) -> None:
    """Where another queue lies at the path by now, the error says so; where none does, it is the filesystem's own."""
    stale = Stale()
    with using(stale.ops):
        queue: Queue = FileSampleRefQueue(path)
    queue.put(refs("a"))
    os.rename(path, path.with_name("moved"))
    path.mkdir()
    if there == "another":
        FileSampleRefQueue(path).close()
    stale.errno = errno.ESTALE
    with pytest.raises(QueueReplacedError if there == "another" else QueueIOError):
        queue.put(refs("b"))
    stale.errno = 0
    queue.close()
    assert sorted(os.listdir(path)) == (
        [] if there == "none" else sorted({*os.listdir(path.with_name("moved"))} - {"type.json"})
    )
    assert names_in(path.with_name("moved"), "pending") == ["a.json"]


@pytest.mark.parametrize("call", ["put", "get", "depth"])
def test_a_queue_that_was_removed_and_made_anew_is_told_from_the_former(path: Path, call: str) -> None:
    """A handle on a queue that was deleted says that another one lies there now."""
    queue: Queue = FileSampleRefQueue(path)
    queue.put(refs("a"))
    shutil.rmtree(path)
    FileSampleRefQueue(path).close()
    calls: dict[str, Callable[[], object]] = {
        "put": lambda: queue.put(refs("b")),
        "get": lambda: queue.get(1),
        "depth": queue.depth,
    }
    with pytest.raises(QueueReplacedError):
        calls[call]()
    queue.close()


def test_a_queue_without_an_id_is_known_by_its_settings(path: Path) -> None:
    """A queue made before there was a queue_id is told from others by all that its fsqueue.json says."""
    FileSampleRefQueue(path, run_id="r").close()
    settings = content(path / "fsqueue.json")
    del settings["queue_id"]
    (path / "fsqueue.json").write_text(json.dumps(settings))
    queue: Queue = FileSampleRefQueue(path)
    with pickle.loads(pickle.dumps(queue)) as copied:
        assert copied.settings == queue.settings
    data = pickle.dumps(queue)
    queue.close()
    shutil.rmtree(path)
    FileSampleRefQueue(path, run_id="r").close()
    with pytest.raises(QueueReplacedError):
        pickle.loads(data)


@pytest.mark.parametrize("copied", [lambda q: pickle.loads(pickle.dumps(q)), copy.deepcopy, copy.copy])
def test_a_copy_is_another_handle_of_the_same_queue(path: Path, copied: Callable[[Queue], Queue]) -> None:
    """A handle that is pickled or copied becomes one with the same options and an owner of its own."""
    with FileSampleRefQueue(path, lease_timeout_s=60.0, max_attempts=3) as queue, copied(queue) as other:
        assert (other.options, other.settings, other.path) == (queue.options, queue.settings, queue.path)
        queue.put(refs("a"))
        assert ids(other.get(1)) == ["a"] and other.owner != queue.owner


@pytest.mark.parametrize("copied", [lambda it: pickle.loads(pickle.dumps(it)), copy.deepcopy, copy.copy])
@pytest.mark.parametrize("kind", ["view", "membership", "stream", "directory", "ledger"])
def test_what_is_open_here_refuses_to_be_copied_and_goes_on(
    path: Path, kind: str, copied: Callable[[object], object]
) -> None:
    """The end of a half-made copy does not close the descriptors that the original goes on with."""
    with (
        FileSampleRefQueue(path, lease_timeout_s=60.0) as queue,
        FileMetadataStore[Any](path.parent / "ledger") as ledger,
        TrainerView(queue, batch=1) as view,
        queue.producer("p") as membership,
    ):
        stream, directory = queue.stream(), queue.handle.layout.pending
        it = {"view": view, "membership": membership, "stream": stream, "directory": directory, "ledger": ledger}[kind]
        if (kind, copied) == ("stream", copy.copy):
            copied(it)  # a shallow copy shares what is open
        else:
            with pytest.raises(TypeError, match="cannot be copied"):
                copied(it)
        gc.collect()
        queue.put(refs("a"))
        assert ids(view.get()) == ["a"]
        ledger.commit_samples(refs("a"))


@pytest.mark.parametrize("there", ["nothing", "empty directory", "another queue"])
def test_unpickling_opens_and_never_creates(path: Path, there: str) -> None:
    """Where a pickled handle's queue is not, as on a node whose mount is not ready, nothing is made, and it raises."""
    queue: Queue = FileSampleRefQueue(path, lease_timeout_s=60.0, run_id="r")
    data = pickle.dumps(queue)
    queue.close()
    os.rename(path, path.with_name("unmounted"))
    if there != "nothing":
        path.mkdir()
    if there == "another queue":
        FileSampleRefQueue(path).close()
    before = open_descriptors()
    with pytest.raises(QueueReplacedError if there == "another queue" else NotAQueueError):
        pickle.loads(data)
    assert open_descriptors() == before
    assert there == "another queue" or not path.exists() or os.listdir(path) == []


def test_a_consumer_may_insist_on_a_queue_that_exists(path: Path) -> None:
    """With create=False a missing queue is an error, and nothing is made; one that is there is opened."""
    with pytest.raises(NotAQueueError, match="does not exist"):
        FileSampleRefQueue(path / "q", create=False)
    assert not (path / "q").exists()
    FileSampleRefQueue(path / "q").close()
    FileSampleRefQueue(path / "q", create=False).close()


def test_a_path_in_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`~` means the home directory, also where no shell has expanded it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with FileSampleRefQueue("~/q") as queue, operator("~/q"):
        assert queue.path == str(tmp_path / "q")
    assert os.listdir(tmp_path) == ["q"]


@pytest.mark.parametrize("name", [".snapshot", ".glusterfs", ".nfs0000000001234", ".DS_Store", ".stfolder"])
def test_dot_files_of_a_volume_do_not_keep_a_queue_from_being_made(tmp_path: Path, name: str) -> None:
    """A directory with nothing but hidden files in it becomes a queue, and they stay."""
    (tmp_path / "pending").mkdir()
    (tmp_path / name).touch()
    (tmp_path / "pending" / name).touch()
    FileSampleRefQueue(tmp_path).close()
    assert (tmp_path / name).exists()
    assert_clean(tmp_path)


def test_the_root_of_a_volume_gets_advice(tmp_path: Path) -> None:
    """lost+found, which a filesystem makes itself, is named together with what to do."""
    (tmp_path / "lost+found").mkdir()
    with pytest.raises(NotAQueueError, match=r"root of a volume.*lost\+found.*subdirectory"):
        FileSampleRefQueue(tmp_path)
    FileSampleRefQueue(tmp_path / "q").close()


def lose_the_tmp_file(tap: Tap, path: Path, then: Callable[[], object]) -> None:
    """Just before a put's rename, remove its file in tmp/, as others do to one that seems dead; then do something."""
    tap.ops.filesystem_type = lambda path: "nfs4"
    done: list[bool] = []

    def before(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "rename" and args[1] == "a.json" and not done:
            done.append(True)
            for file in (path / "tmp").iterdir():
                file.unlink()
            then()

    tap.before = before


def test_a_put_whose_file_was_removed_is_no_success(path: Path) -> None:
    """On a mount that may lie about renames, a missing tmp file alone does not mean that the ref was published."""
    tap = Tap()
    lose_the_tmp_file(tap, path, lambda: None)
    with FileSampleRefQueue(path) as old:  # a former life is no evidence
        old.put(refs("a"))
        old.ack(old.get(1))
    queue, real = open_tapped(tap, path), tap.ops.fresh_status

    def long_ago(dir_fd: int, name: str) -> Any:
        found = real(dir_fd, name)
        if found is None or name != "a.json" or folder_of(dir_fd) != "done":
            return found
        before = found.st_ctime - 3600.0
        return SimpleNamespace(st_ctime=before, st_mtime=before)

    tap.ops.fresh_status = long_ago  # type: ignore[method-assign]
    with pytest.raises(QueueIOError, match="removed") as caught:
        queue.put(refs("a"))
    assert caught.value.errno == errno.ENOENT
    queue.put(refs("a"))
    assert drain(queue) == ["a"]
    queue.close()


def leased(other: Queue) -> None:
    other.get(1)


def acked(other: Queue) -> None:
    other.ack(other.get(1), step=7)


def buried(other: Queue) -> None:
    other.fail(other.get(1), "no", retryable=False)


def packed(other: Queue) -> None:
    other.ack(other.get(1))
    other.pack(older_than_s=-1e9)


def retried(other: Queue) -> None:
    other.fail(other.get(1), "again", retryable=True)
    other.get(1)


@pytest.mark.parametrize("then", [leased, acked, buried, packed, retried])
def test_a_rename_that_was_done_is_found_where_the_ref_is_by_now(path: Path, then: Callable[[Queue], None]) -> None:
    """A retransmitted rename says ENOENT though it was done; the ref may be leased, done or failed by the answer."""
    tap, other = Tap(), FileSampleRefQueue(path)
    tap.ops.filesystem_type = lambda path: "nfs4"
    real = tap.ops.rename
    told: list[bool] = []

    def rename(name: str, new_name: str, **kwargs: Any) -> None:
        real(name, new_name, **kwargs)
        if new_name == "a.json" and not told:
            told.append(True)
            then(other)
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    queue = open_tapped(tap, path)
    tap.ops.rename = rename  # type: ignore[assignment]
    queue.put(refs("a"))
    assert queue.depth() == 0 and sum(other.counts()) == 1
    queue.close()
    other.close()


def test_other_programs_random_numbers_are_left_alone(path: Path) -> None:
    """A queue neither takes from the interpreter's seeded generator nor names files by it, alike in all ranks."""
    random.seed(42)
    wanted = [random.random() for _ in range(3)]
    random.seed(42)
    with FileSampleRefQueue(path) as queue:
        queue.put([ref("a"), ref("b")])
        queue.ack(queue.get(2, partition=(0, 1)))
        queue.get(1, timeout_s=0.01)
    assert [random.random() for _ in range(3)] == wanted


def test_a_queue_id_is_new_for_each_queue(tmp_path: Path) -> None:
    """Two queues differ by their ids, also where a program seeds its random numbers."""
    found = set()
    for name in "ab":
        random.seed(1)
        with FileSampleRefQueue(tmp_path / name) as queue:
            found.add(queue.settings.queue_id)
    assert len(found) == 2 and None not in found
