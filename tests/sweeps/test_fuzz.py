"""Anything may lie in a queue's directories: no crash, no hang, nothing outside touched, nothing executed."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsqueue import FileSampleRefQueue, FsQueueError
from fsqueue.engine.get import UnreadableRefWarning
from tests.support.implementations import make_ref
from tests.sweeps.proof import tally
from tests.sweeps.proof.fuzzing import (
    GOODS,
    STRANGER,
    Workout,
    make_queue,
    mutate,
    nothing_is_executed,
    real_files,
    snapshot,
    special,
)

HANG_S = 120
NOBODY = 65534
DEEP = b"<deep>"
DIRECTORIES = ("pending", "leased", "done", "failed", "owners", "tmp", ".")
SPECIALS = (
    "link to file", "link to directory", "link to nothing", "fifo", "socket", "directory", "full directory", "zeros",
    "full device", "terminal",
)  # fmt: skip
PLACES = (
    "pending/x.json", "pending/victim.json", "leased/x@stranger.1.abcdef.json", "done/good-0@3.json", "done/x.json",
    "failed/x.json", "failed/victim.json", f"owners/{STRANGER}.json", "tmp/x", f"tmp/{STRANGER}.0", "x", "x.json",
)  # fmt: skip


@contextmanager
def arena() -> Iterator[tuple[Path, Path]]:
    """A queue, and beside it a tree that must not change, which is also the working directory."""
    root = Path(tempfile.mkdtemp(prefix="fsqueue-fuzz-"))
    outside = root / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_bytes(b'{"sample_id": "outside"}')
    (outside / "folder" / "x.json").write_bytes(b"{}")
    before_cwd = os.getcwd()
    os.chdir(outside)
    try:
        make_queue(root / "queue")
        before = snapshot(outside)
        with nothing_is_executed():
            yield root / "queue", outside
        assert snapshot(outside) == before
        assert sorted(os.listdir(root)) == ["outside", "queue"]
    finally:
        os.chdir(before_cwd)
        shutil.rmtree(root)


def assert_goods_delivered(workout: Workout) -> None:
    """A planted file costs itself, not the refs beside it."""
    got = [sample_id for sample_id in workout.delivered if sample_id in (*GOODS, "late")]
    assert sorted(got) == sorted((*GOODS, "late")), f"delivered {workout.delivered}, raised {workout.errors}"


@pytest.mark.timeout(HANG_S)
@pytest.mark.parametrize("kind", SPECIALS)
def test_specials_are_neither_followed_nor_waited_on(kind: str) -> None:
    """Links, pipes, sockets, devices and directories in the places of refs and records cost no good ref."""
    for place in PLACES:
        with arena() as (path, outside):
            _plant(kind, path / place, outside)
            assert_goods_delivered(Workout(path).run())
            tally.count("specials planted")


@pytest.mark.timeout(HANG_S)
@pytest.mark.parametrize("kind", SPECIALS)
@pytest.mark.filterwarnings("ignore::fsqueue.StaleLockWarning")  # order.lock is replaced where nobody can use it
def test_specials_in_the_place_of_the_queues_own_files(kind: str) -> None:
    """In the place of order.lock or fsqueue.json they lead to a clear error, or to nothing."""
    for place in ("order.lock", "fsqueue.json"):
        with arena() as (path, outside):
            _plant(kind, path / place, outside)
            workout = Workout(path).run()
            assert all(str(path) in str(error) for error in workout.errors)
            tally.count("specials planted")


def _plant(kind: str, path: Path, outside: Path) -> None:
    try:
        special(kind, path, outside)
    except PermissionError:
        pytest.skip("making a device takes privileges")


def _names() -> st.SearchStrategy[str]:
    real = st.sampled_from([
        "x.json", "victim.json", f"x@{STRANGER}.json", "x@7.json", f"{STRANGER}.json", "%2e%2e%2fx.json", "a%2fb.json",
        ".nfs0000000012", "y" * 120 + "~" + "0" * 32 + ".json", "z" * 200 + ".json", f"{'z' * 170}@{STRANGER}.json",
        "x@o.1.abcdef@7.json", "$(touch executed).json", "; touch executed;.json", "x.json~", "#x.json#", "%41.json",
    ])  # fmt: skip
    pieces = st.sampled_from(
        ["@", "%", "~", ".", "..", ".json", "%2f", "%00", "\n", "#", " ", "é", "\udcff", "0", "-1"]
    )
    mixed = st.builds(lambda name, piece, at: name[:at] + piece + name[at:], real, pieces, st.integers(0, 20))
    free = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40)
    return st.one_of(real, mixed, free, free.map(lambda text: text + ".json"))


def _contents() -> st.SearchStrategy[bytes]:
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
    values = st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner)
    )
    keys = st.sampled_from([*make_ref("x").__dataclass_fields__, "_fsqueue", "format", "lock", "pid", "boot_id"])
    objects = st.dictionaries(keys, values, max_size=6)
    whole = json.dumps({**_plain("planted"), "_fsqueue": {"attempts": 1}}).encode()
    return st.one_of(
        st.binary(max_size=60),
        objects.map(lambda value: json.dumps(value).encode()),
        objects.map(lambda value: json.dumps({**_plain("planted"), **value}).encode()),
        st.integers(0, 10_000).map(lambda seed: mutate(whole, random.Random(seed))),
        st.just(DEEP),
    )


def _plain(sample_id: str) -> dict[str, Any]:
    ref = make_ref(sample_id)
    return {name: getattr(ref, name) for name in ref.__dataclass_fields__}


planted = st.lists(st.tuples(st.sampled_from(DIRECTORIES), _names(), _contents()), min_size=1, max_size=4)


def _fuzz_names(files: list[tuple[str, str, bytes]]) -> None:
    with arena() as (path, _):
        for directory, name, data in files:
            _write(path / directory / name, data)
        assert_goods_delivered(Workout(path).run())
        tally.count("fuzzed queues")


def _write(path: Path, data: bytes) -> None:
    """Write a file, unless the name is one that this filesystem, or the queue's own layout, does not allow."""
    if path.name in ("fsqueue.json", "order.lock") or len(os.fsencode(path.name)) > 255 or path.is_dir():
        return
    path.write_bytes(data.replace(DEEP, b"[" * 200_000))


@pytest.mark.timeout(HANG_S)
@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(planted)
def test_names_and_contents(files: list[tuple[str, str, bytes]]) -> None:
    """Files with any names and contents, in any directory, cost no good ref."""
    _fuzz_names(files)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(planted)
def test_names_and_contents_for_long(files: list[tuple[str, str, bytes]]) -> None:
    """The same, further."""
    _fuzz_names(files)


@pytest.fixture(autouse=True)
def unreadable_refs_are_expected() -> Iterator[None]:
    """Bytes that were changed may still be a ref, of another class: a get warns of those."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableRefWarning)
        yield


def _fuzz_bytes(seeds: range) -> None:
    for seed in seeds:
        source = random.Random(seed)
        with arena() as (path, _):
            files = real_files(path)
            chosen = source.sample(files, source.randint(1, 2))
            for file in chosen:
                file.write_bytes(mutate(file.read_bytes(), source))
            try:
                workout = Workout(path).run()
                assert all(str(path) in str(error) for error in workout.errors), workout.errors
                if all(file.name != "fsqueue.json" for file in chosen):
                    assert_goods_delivered(workout)
            except Exception as error:
                raise AssertionError(f"seed {seed}, {[str(file.relative_to(path)) for file in chosen]}") from error
            tally.count("queues with mutated files")


@pytest.mark.timeout(HANG_S)
def test_mutated_files() -> None:
    """Real files with bytes flipped, cut, copied and inserted cost themselves and no good ref."""
    _fuzz_bytes(range(150))


@pytest.mark.slow
def test_mutated_files_for_long() -> None:
    """The same, further."""
    _fuzz_bytes(range(1000, 5000))


def _as_nobody(work: Callable[[], object]) -> str:
    """Run work in a child without privileges; returns the error's class and text, or the result's repr."""
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            text = repr(work())
        except FsQueueError as error:
            text = f"{type(error).__name__}: {error}"
        except BaseException as error:
            text = f"!! {error!r}"
        os.write(tell, text.encode())
        os._exit(0)
    os.close(tell)
    with open(told, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A queue that other users can reach, in a place that they can reach."""
    root = Path(tempfile.mkdtemp(prefix="fsqueue-rights-"))
    root.chmod(0o755)
    make_queue(root / "queue")
    yield root / "queue"
    for directory, _, _ in os.walk(root):
        os.chmod(directory, 0o755)
    shutil.rmtree(root)


def _modes(path: Path, directories: int, files: int) -> None:
    for directory, _, names in os.walk(path, topdown=False):
        for name in names:
            os.chmod(Path(directory, name), files)
        os.chmod(directory, directories)


def _get(path: Path) -> list[str]:
    with FileSampleRefQueue(path) as queue:
        return [ref.sample_id for ref in queue.get(2)]


def _put(path: Path) -> None:
    with FileSampleRefQueue(path) as queue:
        queue.put([make_ref("new")])


@pytest.mark.parametrize("work", [_get, _put])
@pytest.mark.parametrize(("directories", "files"), [(0o555, 0o444), (0o700, 0o600), (0o000, 0o000)])
def test_a_queue_without_rights_gives_one_clear_error(
    shared: Path, work: Callable[[Path], object], directories: int, files: int
) -> None:
    """The error names the queue, the cause and what to check; nothing in the queue changes."""
    before = sorted(str(file) for file in shared.rglob("*"))
    _modes(shared, directories, files)
    text = _as_nobody(lambda: work(shared))
    os.chmod(shared, 0o755)
    for directory in shared.iterdir():
        if directory.is_dir():
            directory.chmod(0o755)
    assert text.startswith("QueueIOError") and str(shared) in text
    assert "EACCES" in text and "heck the owner and mode" in text
    assert sorted(str(file) for file in shared.rglob("*")) == before


@pytest.mark.skipif(os.getuid() != 0, reason="files of another user take privileges")
def test_files_of_another_user_give_one_clear_error(shared: Path) -> None:
    """In directories that all may write, refs that belong to another user cannot be stamped: get says so."""
    _modes(shared, 0o777, 0o644)
    (shared / "order.lock").chmod(0o666)
    text = _as_nobody(lambda: _get(shared))
    assert text.startswith("QueueIOError") and "heck the owner and mode" in text and str(shared) in text
    with FileSampleRefQueue(shared) as queue:
        assert {ref.sample_id for ref in queue.get(10)} == set(GOODS)
