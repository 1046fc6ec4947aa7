"""The shared-directory feature store: what is published is whole, stays inside, and is what its ref says."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from fsqueue import DataFlowController, FeatureSpec, FileMetadataStore, FileSampleRefQueue, QueueIOError, SampleRef
from fsqueue.disk.directory import UNREACHABLE
from fsqueue.disk.fileops import using
from fsqueue.errors import FsQueueError, InvalidArgumentError, InvalidRefError
from fsqueue.features import (
    CorruptFeatureError,
    FeatureError,
    FeatureMissingError,
    FeatureSpecError,
    FeatureStoreError,
    ForeignFeatureError,
    SharedDirFeatureStore,
    StaleFeatureError,
    encoding,
)
from fsqueue.features.tensorfile import STORABLE
from tests.support import GUARD_S, ROOT, Tap, fill, wait_until
from tests.support.dying import died
from tests.support.features import file_of, publish, ref_of, same, tensors
from tests.support.stale import Stale, settled


@pytest.fixture
def store(tmp_path: Path) -> SharedDirFeatureStore:
    return SharedDirFeatureStore(tmp_path / "features")


@pytest.fixture(params=["by one call", "in pieces"])
def written(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have also the smallest sample be written as a small one, or as a large one is."""
    if request.param == "in pieces":
        monkeypatch.setattr(encoding, "SMALL_BYTES", -1)


def open_tapped(tap: Tap, path: Path, **options: Any) -> SharedDirFeatureStore:
    with tap.here():
        return SharedDirFeatureStore(path, **options)


def leftovers(store: SharedDirFeatureStore) -> list[str]:
    return os.listdir(Path(store.root) / "tmp")


@pytest.mark.parametrize("options", [{"mapped": True}, {"mapped": False}, {"verify": True}], ids=str)
def test_what_is_put_comes_back(tmp_path: Path, options: dict[str, bool]) -> None:
    """Every type and shape comes back equal, views, aliases, empty and scalar tensors too, and safetensors agrees."""
    store = SharedDirFeatureStore(tmp_path / "features", **options)
    sample = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in STORABLE}
    whole = torch.arange(24.0).reshape(4, 6)
    sample |= {"transposed": whole.t(), "slice": whole[1:3], "alias": whole, "again": whole}
    sample |= {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "grad": torch.ones(2, requires_grad=True)}
    stored = store.put("a/b ü", sample)
    found = store.get(ref_of(stored))
    assert found.keys() == sample.keys()
    for name, tensor in sample.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].tolist() == tensor.tolist()
    path = file_of(store, ref_of(stored))
    assert load_file(path).keys() == sample.keys()
    assert stored.estimated_bytes == path.stat().st_size
    assert store.find("a/b ü") == stored and store.find("other") is None
    found["alias"].zero_()
    assert torch.equal(store.get(ref_of(stored))["alias"], whole), "writing into what was read changes no file"


@dataclass(frozen=True)
class TheirSpec:
    name: str
    shape: tuple[int, ...]
    dtype: str
    target_meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TheirRef:
    sample_id: str
    feature_store_uri: str
    feature_keys: dict[str, str]
    feature_specs: dict[str, TheirSpec]
    estimated_bytes: int
    note: str = ""


def test_refs_of_any_class(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    """A ref of a controller's own class holds specs of its own class, passes through a queue, and is loaded."""
    ref = store.put("s1", tensors(1)).ref(TheirRef, note="mine")
    assert ref.feature_specs["hidden"] == TheirSpec("hidden", (4, 3), "float32") and ref.note == "mine"
    queue = FileSampleRefQueue(tmp_path / "q", ref_type=TheirRef)
    queue.put([ref])
    (back,) = queue.get(1)
    assert back == ref and same(store.get(back), tensors(1))


def test_features_under_another_name(store: SharedDirFeatureStore) -> None:
    """A ref may call a stored tensor otherwise, and name only some; the id need not be that of the file."""
    ref = ref_of(store.put("chunk", tensors(1)), sample_id="second-pass", feature_keys={"x": "hidden"})
    ref = replace(ref, feature_specs={"x": FeatureSpec("x", (4, 3), "float32")})
    assert same(store.get(ref), {"x": tensors(1)["hidden"]})


def test_generations(store: SharedDirFeatureStore) -> None:
    """The same content published again leaves refs valid; other content makes them stale, and the error names both."""
    first = ref_of(store.put("s1", tensors(1)))
    again = ref_of(pickle.loads(pickle.dumps(store)).put("s1", dict(reversed(tensors(1).items()))))
    assert again == first
    second = ref_of(store.put("s1", tensors(2)))
    with pytest.raises(StaleFeatureError) as caught:
        store.get(first)
    assert (caught.value.expected, caught.value.found) == tuple(
        ref.feature_store_uri.rpartition("=")[2] for ref in (first, second)
    )
    assert not caught.value.retryable and same(store.get(second), tensors(2))


def test_a_generation_does_not_depend_on_how_tensors_lie_in_memory(store: SharedDirFeatureStore) -> None:
    """Nor on their order; what is not in the order of its elements, and large, is put into it part by part."""
    wide = torch.arange(3 << 20, dtype=torch.int64).reshape(1, 3, -1)
    turned = wide.transpose(1, 2)
    assert turned.nbytes > 1 << 20 and not turned.is_contiguous()
    first = store.put("s1", {"a": turned, "b": torch.ones(3, dtype=torch.uint8)})
    assert torch.equal(store.get(ref_of(first))["a"], turned)
    again = store.put("s1", {"b": torch.ones(3, dtype=torch.uint8), "a": turned.contiguous()})
    assert again.feature_store_uri == first.feature_store_uri
    flipped = torch.tensor([1 + 2j, 3 - 1j], dtype=torch.complex64).conj()
    assert torch.equal(store.get(ref_of(store.put("s2", {"x": flipped})))["x"], flipped)


def test_a_generation_does_not_depend_on_how_it_was_written(
    store: SharedDirFeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small sample is written by one call and a large one in pieces: the same tensors make the same file."""
    files = []
    for sizes in ({"SMALL_BYTES": 1 << 30}, {"SMALL_BYTES": -1, "LOCAL_PIECE_BYTES": 1000}):
        for name, value in sizes.items():
            monkeypatch.setattr(encoding, name, value)
        sample = {"even": torch.arange(3000.0).reshape(60, 50), "odd": torch.arange(5001, dtype=torch.uint8)}
        sample |= {"columns": sample["even"].t(), "empty": torch.zeros(0, 3)}
        files.append(file_of(store, ref_of(SharedDirFeatureStore(store.root).put("s1", sample))).read_bytes())
    assert files[0] == files[1]


def test_a_large_sample_is_written_in_pieces_that_end_at_multiples_of_their_size(tmp_path: Path) -> None:
    """Except for the last one, and the header, which comes after it."""
    tap, ends = Tap(), []
    store = open_tapped(tap, tmp_path / "features")
    tap.before = lambda name, args, kwargs: ends.append(args[2] + len(args[1])) if name == "pwrite" else None
    size = encoding.LOCAL_PIECE_BYTES
    stored = store.put("s1", {"hidden": torch.zeros(3 * size, dtype=torch.uint8)})
    whole = stored.estimated_bytes
    assert ends == [size, 2 * size, 3 * size, whole, whole - 3 * size]


def test_features_with_the_digest_of_earlier_versions(store: SharedDirFeatureStore) -> None:
    """A file whose generation is a SHA-256 is read, checked, and refused once it is damaged."""
    sample = tensors(1)
    generation = encoding.digest(sample, "sha256")
    ref = ref_of(store.put("s1", sample))
    path = file_of(store, ref)
    path.write_bytes(save(sample, {"sample_id": "s1", "generation": generation}))
    old = replace(ref, feature_store_uri=ref.feature_store_uri.rpartition("=")[0] + "=" + generation)
    careful = SharedDirFeatureStore(store.root, verify=True)
    assert same(careful.get(old), sample)
    path.write_bytes(save(tensors(2), {"sample_id": "s1", "generation": generation}))
    assert same(store.get(old), tensors(2))
    with pytest.raises(CorruptFeatureError, match="does not have the content"):
        careful.get(old)


_MEMORY = """
import resource, sys, torch
from fsqueue.features import SharedDirFeatureStore
store = SharedDirFeatureStore(sys.argv[1], durable=False, mapped=False)
store.put("warm", {"x": torch.zeros(4)})
big = torch.ones(10_000, 10_000)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for sample in ({"x": big}, {"x": big.t()}):
    before = peak()
    store.put("big", sample)
    print((peak() - before) >> 10)
"""


def test_a_put_needs_no_copy_of_the_tensors(tmp_path: Path) -> None:
    """Storing 381 MiB takes up to 16 MiB more than they do, in whatever order they lie in memory."""
    run = subprocess.run([sys.executable, "-c", _MEMORY, str(tmp_path / "f")], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    plain, turned = map(int, run.stdout.split())
    assert plain <= 16 and turned <= 16, f"{plain} and {turned} MiB"


_MEMORY_OF_GETS = """
import sys, torch
from fsqueue.features import SharedDirFeatureStore
options = {"durable": False, "mapped": False, "verify": sys.argv[2] == "verify"}
store = SharedDirFeatureStore(sys.argv[1], **options)
def put(name, width):
    sample = {"x": torch.ones(10_000, width), "y": torch.ones(width, 10_000, dtype=torch.bfloat16)}
    return store.put(name, sample).ref(run_id="r", source_task_id=None, strategy="s")
warm, big, other = put("warm", 100), put("big", 5_000), put("other", 5_300)
status = lambda key: int(open("/proc/self/status").read().split(key + ":")[1].split()[0]) >> 10
store.get(warm)
for ref in (big, other, big):
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")
    found = store.get(ref)
    print(status("VmHWM") - before - (ref.estimated_bytes >> 20))
    del found
    print(status("VmRSS") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process had in memory")
@pytest.mark.parametrize("careful", ["verify", ""])
def test_a_get_that_reads_needs_one_buffer(tmp_path: Path, careful: str) -> None:
    """Reading 286 MiB takes up to 16 MiB more than they do, and gives it all back once the tensors are gone."""
    command = [sys.executable, "-c", _MEMORY_OF_GETS, str(tmp_path / "f"), careful]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    beyond = list(map(int, run.stdout.split()))
    assert len(beyond) == 6 and max(beyond) <= 16, f"{beyond} MiB"


def test_replaced_and_removed_under_a_mapping(store: SharedDirFeatureStore) -> None:
    """Features that were read stay as they were when its file is replaced, and when it is removed."""
    found = store.get(ref_of(store.put("s1", tensors(1))))
    store.put("s1", tensors(2))
    assert same(found, tensors(1))
    store.abort("s1")
    store.close()
    assert same(found, tensors(1))


def test_release_abort_gc(store: SharedDirFeatureStore) -> None:
    """Released features can be read until gc, aborted ones cannot; both calls may be repeated and know unknown ids."""
    refs = publish(store, 4)
    for _ in range(2):
        store.release("s000")
        store.abort("s001", reason="reconciled")
        store.release("never there")
        store.abort("never there")
    assert same(store.get(refs[0]), tensors(0))
    with pytest.raises(FeatureMissingError) as caught:
        store.get(refs[1])
    assert caught.value.retryable and isinstance(caught.value, FileNotFoundError) and "s001" in str(caught.value)
    size = file_of(store, refs[2]).stat().st_size
    health = store.health()
    assert (health.samples, health.resident_bytes, health.released, health.released_bytes) == (2, 2 * size, 1, size)
    assert store.gc(released_older_than_s=3600).files == 0
    assert (collected := store.gc()).files == 1 and collected.freed_bytes == size
    with pytest.raises(FeatureMissingError):
        store.get(refs[0])
    store.release("s002")
    store.abort("s002")
    assert store.health().released == 0
    store.release("s003")
    store.put("s003", tensors(9))
    assert store.gc().files == 1 and store.health().samples == 1, "what is published anew is not released"
    found = store.find("s003")
    assert found is not None and same(store.get(ref_of(found)), tensors(9))


def test_released_features_are_not_found(store: SharedDirFeatureStore) -> None:
    """What gc may remove is nothing to put a ref to: it is stored anew, and a gc leaves that where it is."""
    (ref,) = publish(store, 1)
    store.release("s000")
    assert store.find("s000") is None and same(store.get(ref), tensors(0))
    again = store.find("s000") or store.put("s000", tensors(0))
    assert store.gc().files == 1
    assert ref_of(again) == ref and same(store.get(ref), tensors(0)) and store.find("s000") == again


@pytest.mark.parametrize("operation", ["rename", "fsync"])
def test_a_release_in_the_midst_of_a_put(tmp_path: Path, operation: str) -> None:
    """Features that are released as soon as they are published, while put goes on, can be read until gc."""
    tap = Tap()
    store = open_tapped(tap, tmp_path / "features")
    other = SharedDirFeatureStore(store.root)

    def release(name: str, args: Any, kwargs: Any) -> None:
        if name == operation:
            other.release("s1")

    tap.after = release
    ref = ref_of(store.put("s1", tensors(1)))
    assert store.health().released == 1 and same(store.get(ref), tensors(1))


def test_gc_of_what_dead_writers_left(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    """Unfinished files go once they are old enough by the filesystem's clock; what is not the store's stays."""
    (ref,) = publish(store, 1)
    old, young, stranger = (Path(store.root, name) for name in ("tmp/h.1.abcdef", "tmp/h.2.abcdef", "README"))
    for path in (old, young, stranger):
        path.write_bytes(b"x" * 10)
    os.utime(old, (1, 1))
    os.utime(file_of(store, ref), (1, 1))
    assert (store.health().unfinished, store.health().unfinished_bytes) == (2, 20)
    assert store.gc().files == 1
    assert not old.exists() and young.exists() and stranger.exists() and same(store.get(ref), tensors(0))


@pytest.mark.usefixtures("written")
def test_a_writer_that_dies_at_any_operation(tmp_path: Path) -> None:
    """Killed before or after any file operation of a put, the old features or the new ones are there, whole."""
    for after in (False, True):
        number = 0
        while True:
            path = tmp_path / f"{after}{number}"
            store = SharedDirFeatureStore(path)
            before = ref_of(store.put("s1", tensors(1)))
            store.release("s1")
            if not died(lambda path: SharedDirFeatureStore(path).put("s1", tensors(2)), path, number, after):
                break
            found = store.find("s1")
            assert same(store.get(ref_of(found) if found else before), tensors(2 if found else 1))
            store.gc(unfinished_older_than_s=0.0)
            assert leftovers(store) == []
            assert same(store.get(ref_of(store.put("s1", tensors(3)))), tensors(3))
            number += 1
        assert number > 10


def test_a_store_whose_creator_dies(tmp_path: Path) -> None:
    """Killed at any operation of creating a store, the next one to open it completes it."""
    number = 0
    while died(lambda path: SharedDirFeatureStore(path).close(), path := tmp_path / str(number), number):
        assert same(store_content(path), tensors(1))
        number += 1
    assert number > 5


def store_content(path: Path) -> dict[str, torch.Tensor]:
    store = SharedDirFeatureStore(path)
    return store.get(ref_of(store.put("s1", tensors(1))))


def write_for_ever(path: Path) -> None:
    store, number = SharedDirFeatureStore(path, durable=False), 0
    while True:
        store.put(f"s{number % 5}", {"hidden": torch.full((200_000,), float(number))})
        number += 1


def test_a_writer_killed_at_random_instants(tmp_path: Path) -> None:
    """After SIGKILL in the midst of puts, every sample that is there is whole, with the content of its generation."""
    path = tmp_path / "features"
    store = SharedDirFeatureStore(path, verify=True)
    for round_ in range(5):
        pid = os.fork()
        if pid == 0:
            try:
                write_for_ever(path)
            finally:
                os._exit(1)
        try:
            wait_until(lambda: store.find("s4") is not None, "five samples")
            time.sleep(random.Random(round_).random() / 50)
        finally:
            os.kill(pid, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        for number in range(5):
            stored = store.find(f"s{number}")
            assert stored is not None and torch.unique(store.get(ref_of(stored))["hidden"]).numel() == 1
            store.abort(f"s{number}")
        assert store.health().samples == 0


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_every_operation_of_a_put_fails_once(tmp_path: Path, code: int) -> None:
    """A put whose n-th operation fails names cause and path, leaves what was there, and can be repeated."""
    failures = number = 0
    while True:
        tap = Tap()
        store = open_tapped(tap, tmp_path / str(number))
        before = ref_of(store.put("s1", tensors(1)))
        countdown = [number]

        def fail_one(name: str, args: Any, kwargs: Any, countdown: list[int] = countdown) -> None:
            countdown[0] -= 1
            if countdown[0] == -1:
                raise OSError(code, os.strerror(code))

        tap.before = fail_one
        try:
            store.put("s1", tensors(2))
        except QueueIOError as error:
            failures += 1
            assert error.errno == code and store.root in str(error)
            tap.before = None
            found = store.find("s1")
            assert found is not None
            assert same(store.get(ref_of(found)), tensors(1 if ref_of(found) == before else 2))
        tap.before = None
        assert same(store.get(ref_of(store.put("s1", tensors(2)))), tensors(2))
        if countdown[0] >= 0:
            break
        number += 1
    assert failures > 5


def test_a_rename_that_lies(tmp_path: Path) -> None:
    """A rename that was done and reports an error, as NFS does, is taken for done; one that was not is an error."""
    tap = Tap()
    store = open_tapped(tap, tmp_path / "features")

    def lie(name: str, args: Any, kwargs: Any) -> None:
        if name == "rename":
            raise FileNotFoundError(errno.ENOENT, "it is gone")

    tap.after = lie
    assert same(store.get(ref_of(store.put("s1", tensors(1)))), tensors(1))
    tap.before, tap.after = lie, None
    with pytest.raises(QueueIOError):
        store.put("s1", tensors(2))
    tap.before = None
    found = store.find("s1")
    assert leftovers(store) == [] and found is not None and same(store.get(ref_of(found)), tensors(1))


def test_no_descriptor_to_map_with(tmp_path: Path) -> None:
    """Where a file can be opened but not mapped, for lack of descriptors, it is read; one that cannot be opened is an
    error that a loader takes for retryable."""
    tap = Tap()
    store = open_tapped(tap, tmp_path / "features", mapped=True)
    (ref,) = publish(store, 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def exhaust(name: str, args: Any, kwargs: Any) -> None:
        if name == "pread":
            resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))

    tap.after = exhaust
    try:
        assert same(store.get(ref), tensors(0)) and tap.counts["readinto"] > 0
        with pytest.raises(QueueIOError, match="EMFILE"):
            store.get(ref)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_stale_handles(tmp_path: Path) -> None:
    """A read that meets ESTALE opens the file anew; one that meets nothing else says what to do."""
    tap = Tap()
    store = open_tapped(tap, tmp_path / "features", mapped=False)
    (ref,) = publish(store, 1)
    left = [2]

    def stale(name: str, args: Any, kwargs: Any) -> None:
        if name == "readinto" and left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "stale")

    tap.before = stale
    assert same(store.get(ref), tensors(0)) and left == [0]
    left[0] = 10**6
    with pytest.raises(QueueIOError, match="ESTALE"):
        store.get(ref)


@pytest.mark.parametrize("code", UNREACHABLE)
@pytest.mark.parametrize("first", ["put", "get", "find", "release", "abort", "gc", "health"])
def test_a_store_with_a_stale_descriptor_is_opened_by_its_path_again(tmp_path: Path, code: int, first: str) -> None:
    """Whichever call comes first finds it out; the one after it works, as a new process's would."""
    stale = Stale()
    with using(stale.ops):
        store = SharedDirFeatureStore(tmp_path / "features")
    kept, used, dropped = publish(store, 3)
    stale.errno = code
    calls: dict[str, Callable[[], Any]] = {
        "put": lambda: store.put("new", tensors(9)),
        "get": lambda: same(store.get(kept), tensors(0)),
        "find": lambda: store.find(kept.sample_id),
        "release": lambda: store.release(used.sample_id),
        "abort": lambda: store.abort(dropped.sample_id),
        "gc": lambda: store.gc(released_older_than_s=60.0),
        "health": lambda: store.health().samples >= 0,
    }
    settled(calls[first])
    assert all((calls["put"](), calls["get"](), calls["find"](), calls["health"]()))
    for call in ("release", "abort", "gc"):
        calls[call]()
    assert (store.health().samples, store.health().released) == (2, 1)
    store.close()


@pytest.mark.parametrize("there", ["another", "nothing", "an empty directory"])
def test_a_stale_descriptor_is_not_traded_for_another_store(tmp_path: Path, there: str) -> None:
    """Where the mount is not back yet nothing is made in its place; another store is told from the former."""
    stale, path = Stale(), tmp_path / "features"
    with using(stale.ops):
        store = SharedDirFeatureStore(path)
    (ref,) = publish(store, 1)
    os.rename(path, tmp_path / "unmounted")
    if there == "another":
        SharedDirFeatureStore(path).close()
    elif there != "nothing":
        path.mkdir()
    stale.errno = errno.ESTALE
    expected: type[FsQueueError] = FeatureStoreError if there == "another" else QueueIOError
    for _ in range(2):
        with pytest.raises(expected):
            store.get(ref)
        with pytest.raises(expected):
            store.put("new", tensors(1))
    assert there == "another" or not path.exists() or os.listdir(path) == []
    if path.exists():
        shutil.rmtree(path)
    os.rename(tmp_path / "unmounted", path)
    assert same(store.get(ref), tensors(0)) and store.put("new", tensors(1))
    store.close()


@pytest.mark.parametrize(
    ("slip", "expected"),
    [
        (lambda store: store.get("s000"), "store.get"),
        (lambda store: store.get(None), "store.get"),
        (lambda store: store.put("a", torch.zeros(2)), "store.put"),
        (lambda store: store.put("a", ["hidden"]), "store.put"),
    ],
)
def test_slips_are_told_in_the_caller_s_words(
    store: SharedDirFeatureStore, slip: Callable[[SharedDirFeatureStore], Any], expected: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=expected):
        slip(store)


def test_a_full_disk(disk: Path) -> None:
    """A put on a full disk is an error that says so, leaves nothing, and can be repeated once there is room."""
    store = SharedDirFeatureStore(disk / "features")
    before = ref_of(store.put("s1", tensors(1)))
    ballast = fill(disk, 3 * 4096)
    large = {"hidden": torch.ones(100_000)}
    for sample_id in ("s1", "s2"):
        with pytest.raises(QueueIOError) as caught:
            store.put(sample_id, large)
        assert caught.value.errno == errno.ENOSPC and "free space" in str(caught.value)
    assert leftovers(store) == [] and same(store.get(before), tensors(1)) and store.find("s2") is None
    store.release("s1")
    assert store.gc().files == 1, "making room needs none"
    ballast.unlink()
    assert same(store.get(ref_of(store.put("s2", large))), large)


@pytest.mark.parametrize(
    "change",
    [
        lambda uri: uri.replace("features://", "file://"),
        lambda uri: uri.replace("features://", "http://"),
        lambda uri: uri.replace("features://", "features://evil@"),
        lambda uri: "features://" + "0" * 16 + uri[len("features://") + 16 :],
        lambda uri: uri.replace("s000.safe", "../s000.safe"),
        lambda uri: uri.replace("s000.safe", "..%2f..%2fs000.safe"),
        lambda uri: uri.replace("s000.safe", "%2E%2E/s000.safe"),
        lambda uri: uri.replace("/s000", "//etc/passwd"),
        lambda uri: uri.replace("s000.safetensors", "s000@released.safetensors"),
        lambda uri: uri.replace("/s000", "/s001"),
        lambda uri: uri.replace("s000", ".s000"),
        lambda uri: uri.replace("s000", "s\0"),
        lambda uri: uri.partition("?")[0],
        lambda uri: uri + "\n",
        lambda uri: uri + "&x=1",
        lambda uri: uri.upper(),
        lambda uri: "",
    ],
)
def test_addresses_stay_inside(store: SharedDirFeatureStore, change: Any) -> None:
    """An address that is not exactly one of this store's is refused, whatever lies where it leads."""
    (ref,) = publish(store, 1)
    bad = replace(ref, feature_store_uri=change(ref.feature_store_uri))
    assert bad != ref
    with pytest.raises(ForeignFeatureError) as caught:
        store.get(bad)
    assert caught.value.uri == bad.feature_store_uri and not caught.value.retryable


@pytest.mark.parametrize(
    "sample_id", ["../../up", "/etc/passwd", ".hidden", "a\0b", "x" * 500, "Ü/ö", "a.released", "~"]
)
def test_ids_stay_inside(store: SharedDirFeatureStore, sample_id: str) -> None:
    """Every id's features lie in the store and come back, as do those of an id that looks like it."""
    refs = [ref_of(store.put(name, tensors(n))) for n, name in enumerate((sample_id, sample_id + "@released"))]
    assert [same(store.get(ref), tensors(n)) for n, ref in enumerate(refs)] == [True, True]
    assert file_of(store, refs[0]).resolve().is_relative_to(store.root)
    store.release(sample_id)
    store.abort(sample_id + "@released")
    assert same(store.get(refs[0]), tensors(0))


@pytest.mark.parametrize("sample_id", ["", None, 3, "\ud800"])
def test_unusable_ids(store: SharedDirFeatureStore, sample_id: Any) -> None:
    """An id that can name nothing is refused before anything is written."""
    with pytest.raises(InvalidRefError):
        store.put(sample_id, tensors(1))
    assert store.health().samples == 0 and leftovers(store) == []


@pytest.mark.parametrize("bad", [[1.0], 3, None, torch.ones(2).to_sparse(), torch.ones(2, dtype=torch.complex128)])
def test_what_is_no_tensor(store: SharedDirFeatureStore, bad: Any) -> None:
    """A tensor that safetensors cannot hold is refused before anything is written, and the error names it."""
    with pytest.raises(FeatureSpecError, match="'bad'"):
        store.put("s1", {**tensors(1), "bad": bad})
    assert store.health().samples == 0 and leftovers(store) == []


def test_a_header_too_long(store: SharedDirFeatureStore) -> None:
    """More names than a header holds are refused before anything is written, and what was there stays."""
    before = ref_of(store.put("s1", tensors(1)))
    names = [f"{number:0200}" for number in range(4500)]
    with pytest.raises(FeatureSpecError, match=r"4501 names.* of at most 1048576") as caught:
        store.put("s1", dict.fromkeys([*names, "x" * 201], torch.zeros(0)))
    assert caught.value.feature == "x" * 201
    assert same(store.get(before), tensors(1)) and store.health().samples == 1 and leftovers(store) == []


def test_planted_files(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    """Nothing is read or written through a symbolic link, and no FIFO or directory is taken for features."""
    (ref,) = publish(store, 1)
    path = file_of(store, ref)
    outside = tmp_path / "outside"
    path.rename(outside)
    plants: list[Callable[[], None]] = [lambda: path.symlink_to(outside), lambda: os.mkfifo(path), path.mkdir]
    for plant in plants:
        plant()
        with pytest.raises(CorruptFeatureError):
            store.get(ref)
        with pytest.raises(CorruptFeatureError):
            store.find("s000")
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    folder = tmp_path / "folder"
    path.parent.rename(folder)
    outside.rename(folder / path.name)
    path.parent.symlink_to(folder)
    with pytest.raises(CorruptFeatureError):
        store.get(ref)
    with pytest.raises(QueueIOError):
        store.put("s000", tensors(5))
    with pytest.raises(QueueIOError):
        store.abort("s000")
    assert os.listdir(folder) == [path.name] and leftovers(store) == [] and store.health().samples == 0


@pytest.mark.parametrize("mapped", [True, False])
def test_torn_files(store: SharedDirFeatureStore, mapped: bool) -> None:
    """A file cut at any byte, or with bytes behind its end, is an error of its own, not retryable."""
    reader = SharedDirFeatureStore(store.root, mapped=mapped)
    (ref,) = publish(store, 1)
    path = file_of(store, ref)
    whole = path.read_bytes()
    for content in [*(whole[:length] for length in range(len(whole))), whole + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(CorruptFeatureError) as caught:
            reader.get(ref)
        assert caught.value.path == str(path.relative_to(store.root)) and not caught.value.retryable
    path.write_bytes(whole)
    assert same(reader.get(ref), tensors(0))


@pytest.mark.parametrize("seed", range(2))
def test_mutated_files(store: SharedDirFeatureStore, seed: int) -> None:
    """Mutated bytes are a feature error or harmless; with verify, what is returned is what was stored."""
    random_ = random.Random(seed)
    plain, careful = SharedDirFeatureStore(store.root), SharedDirFeatureStore(store.root, verify=True)
    (ref,) = publish(store, 1)
    path = file_of(store, ref)
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(random_.choice((1, 1, 2, 8))):
            at = random_.randrange(len(data))
            data[at] = random_.choice((data[at] ^ 1 << random_.randrange(8), random_.randrange(256), 0, ord("9")))
        path.write_bytes(data)
        for reader in (plain, careful):
            try:
                found = reader.get(ref)
            except FeatureError:
                refused += 1
            else:
                assert found.keys() == ref.feature_specs.keys()
                assert reader is plain or same(found, tensors(0))
    assert refused > 200


def test_specs_are_checked(store: SharedDirFeatureStore) -> None:
    """A feature of another shape or type than the ref says, or none at all, is an error unless it is not required."""
    (ref,) = publish(store, 1)
    spec = ref.feature_specs["hidden"]
    for wrong in (replace(spec, shape=(3, 4)), replace(spec, shape=(12,)), replace(spec, dtype="float16")):
        with pytest.raises(FeatureSpecError, match="hidden") as caught:
            store.get(replace(ref, feature_specs={"hidden": wrong}))
        assert caught.value.feature == "hidden" and not caught.value.retryable
    lacking = {**ref.feature_specs, "logits": FeatureSpec("logits", (1,), "float32")}
    with pytest.raises(FeatureSpecError, match="lacking"):
        store.get(replace(ref, feature_specs=lacking))
    lacking["logits"] = replace(lacking["logits"], required=False)
    assert same(store.get(replace(ref, feature_specs=lacking)), tensors(0))


def test_directories_that_are_no_store(tmp_path: Path, store: SharedDirFeatureStore) -> None:
    """A directory with something else in it is not adopted, and an unknown format is left alone."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").touch()
    with pytest.raises(FeatureStoreError, match=r"thesis\.tex"):
        SharedDirFeatureStore(tmp_path / "precious")
    settings = Path(store.root, "features.json")
    whole = settings.read_text()
    for content in (whole.replace('"format":1', '"format":2'), whole[:20], "[]"):
        settings.write_text(content)
        with pytest.raises(FeatureStoreError):
            SharedDirFeatureStore(store.root)
        assert settings.read_text() == content


def test_reconciling_frees_what_was_trained(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    """A controller that reconciles removes the features of acknowledged samples, and no others."""
    refs = publish(store, 6)
    with (
        FileSampleRefQueue(tmp_path / "q") as queue,
        FileMetadataStore[SampleRef](tmp_path / "ledger") as ledger,
    ):
        controller: DataFlowController[SampleRef] = DataFlowController("r1", sample_queue=queue, metadata_store=ledger)
        controller.commit_samples("rollout", refs)
        leased = controller.lease_train_refs("trainer", 2)
        controller.ack_train_refs("trainer", [ref.sample_id for ref in leased], global_step=1, optimizer_durable=True)
        controller.reconcile_on_restart(feature_store=store)
    assert [store.find(ref.sample_id) is None for ref in refs] == [ref in leased for ref in refs]


def test_without_torch() -> None:
    """Importing the package needs no torch; asking for what does says which extra to install."""
    program = (
        "import sys\n"
        "for name in ('torch', 'safetensors', 'numpy'): sys.modules[name] = None\n"
        "import fsqueue, fsqueue.features as f\n"
        "f.StoredFeatures, f.FeatureDataLoader, f.FeatureMissingError\n"
        "for name in ('SharedDirFeatureStore', 'FeatureDataset', 'stack'):\n"
        "    try: getattr(f, name)\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=GUARD_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pip install 'fsqueue-shared[features]'") == 3


@pytest.mark.parametrize(
    "error",
    [
        FeatureMissingError("s1", "is not there"),
        StaleFeatureError("s1", "a" * 32, "b" * 32),
        CorruptFeatureError("s1", "xx/s1.safetensors", "has no header"),
        FeatureSpecError("s1", "hidden", "is lacking"),
        ForeignFeatureError("s1", "file:///etc/passwd", "features://"),
        FeatureStoreError("/features", "is no store"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_travel(error: FsQueueError) -> None:
    """Each error pickles with its facts and text, and is also the built-in that fits."""
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))
    assert isinstance(back, FileNotFoundError if isinstance(error, FeatureMissingError) else ValueError)
