"""Adopting: somebody else's safetensors file becomes a sample's features without a copy, by the store's rules."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fsqueue.errors import QueueIOError
from fsqueue.features import (
    CorruptFeatureError,
    FeatureMissingError,
    SharedDirFeatureStore,
    StaleFeatureError,
    UnfitFileError,
)
from tests.support import Tap
from tests.support.dying import died
from tests.support.features import file_of, ref_of, same, tensors


@pytest.fixture
def store(tmp_path: Path) -> SharedDirFeatureStore:
    return SharedDirFeatureStore(tmp_path / "features")


def written(folder: Path, number: float, name: str = "theirs.safetensors", **metadata: str) -> Path:
    """A file as a server writes it: without the store's metadata."""
    save_file(tensors(number), folder / name, metadata or None)
    return folder / name


def files(store: SharedDirFeatureStore) -> list[str]:
    return sorted(path.name for path in Path(store.root).glob("??/*"))


@pytest.mark.parametrize("options", [{"mapped": True}, {"mapped": False}, {"verify": True}], ids=str)
@pytest.mark.parametrize("metadata", [{}, {"format": "pt"}, {"sample_id": "x", "generation": "y"}], ids=str)
def test_an_adopted_file_is_moved_and_comes_back(
    tmp_path: Path, options: dict[str, bool], metadata: dict[str, str]
) -> None:
    """The very file is in the store; the ref is that of a put of the same tensors, which any reader reads."""
    store = SharedDirFeatureStore(tmp_path / "features", **options)
    theirs = written(tmp_path, 1, **metadata)
    inode, size = theirs.stat().st_ino, theirs.stat().st_size
    stored = store.adopt_file("a/b", theirs)
    assert not theirs.exists() and stored.estimated_bytes == size
    (apart,) = (path for path in Path(store.root).glob("??/*@*"))
    assert apart.stat().st_ino == inode and same(load_file(apart), tensors(1))
    assert same(store.get(ref_of(stored)), tensors(1)) and store.find("a/b") == stored
    assert apart.name.rpartition("@")[2] == f"{stored.feature_store_uri.rpartition('=')[2]}.safetensors"
    elsewhere = SharedDirFeatureStore(tmp_path / "other").put("a/b", tensors(1))
    assert elsewhere.feature_store_uri.rpartition("=")[2] == stored.feature_store_uri.rpartition("=")[2]
    assert elsewhere.feature_specs == stored.feature_specs
    assert os.listdir(Path(store.root) / "tmp") == []


def test_put_and_adopt_replace_each_other(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    """Other content makes refs stale, the same content leaves them valid, whichever way it was published."""
    first = ref_of(store.put("s1", tensors(1)))
    second = ref_of(store.adopt_file("s1", written(tmp_path, 2)))
    with pytest.raises(StaleFeatureError):
        store.get(first)
    assert same(store.get(second), tensors(2))
    assert store.put("s1", tensors(2)).feature_store_uri == second.feature_store_uri
    assert same(store.get(second), tensors(2))
    third = ref_of(store.adopt_file("s1", written(tmp_path, 3)))
    assert same(store.get(third), tensors(3))
    assert store.gc().files == 0, "what nobody names is as young as what is being adopted"
    assert store.gc(unfinished_older_than_s=0).files == 1
    assert same(store.get(third), tensors(3)) and len(files(store)) == 2


def test_release_abort_and_gc_of_adopted_features(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    """Both files go together, and are counted together."""
    refs = [ref_of(store.adopt_file(f"s{number}", written(tmp_path, number))) for number in range(3)]
    size = file_of(store, refs[0]).stat().st_size + refs[0].estimated_bytes
    health = store.health()
    assert (health.samples, health.resident_bytes, health.released, health.unfinished) == (3, 3 * size, 0, 0)
    store.release("s0")
    health = store.health()
    assert (health.samples, health.released, health.released_bytes) == (2, 1, size)
    assert same(store.get(refs[0]), tensors(0)) and store.find("s0") is None
    collected = store.gc()
    assert (collected.files, collected.freed_bytes) == (2, size)
    store.abort("s1")
    store.release("s2")
    store.abort("s2")
    assert files(store) == []
    for ref in refs:
        with pytest.raises(FeatureMissingError):
            store.get(ref)


def test_released_features_that_are_adopted_again_outlive_a_gc(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    ref = ref_of(store.adopt_file("s1", written(tmp_path, 1)))
    store.release("s1")
    assert ref_of(store.adopt_file("s1", written(tmp_path, 1))) == ref
    assert store.gc().files == 1 and same(store.get(ref), tensors(1))


def test_tensors_that_are_named_in_the_midst_of_a_gc_stay(tmp_path: Path) -> None:
    """RACE: a gc that has seen tensors unnamed finds, once they lie aside, that somebody adopted the same ones."""
    store = SharedDirFeatureStore(tmp_path / "features")
    store.adopt_file("s1", written(tmp_path, 1))
    (apart,) = Path(store.root).glob("??/*@*")
    shutil.copy(apart, tmp_path / "kept")
    store.abort("s1")
    shutil.move(tmp_path / "kept", apart)
    tap = Tap()
    adopted: list[Any] = []

    def adopt_meanwhile(operation: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if operation == "rename" and args[0] == apart.name and not adopted:
            adopted.append(True)
            adopted.append(ref_of(store.adopt_file("s1", written(tmp_path, 1))))

    tap.before = adopt_meanwhile
    with tap.here():
        assert SharedDirFeatureStore(store.root).gc(unfinished_older_than_s=0).files == 0
    assert same(store.get(adopted[1]), tensors(1)) and len(files(store)) == 2


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("operation", ["rename", "utime"])
def test_what_cannot_be_moved_is_copied_and_removed(tmp_path: Path, code: int, operation: str) -> None:
    tap = Tap()
    with tap.here():
        store = SharedDirFeatureStore(tmp_path / "features")
    theirs = written(tmp_path, 1)

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == operation and args[0] == theirs.name:
            raise OSError(code, os.strerror(code))

    tap.before = refuse
    ref = ref_of(store.adopt_file("s1", theirs))
    assert not theirs.exists() and same(store.get(ref), tensors(1))
    assert files(store) == ["s1.safetensors"]


def make_torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def make_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("spoil", [make_torn, make_link, make_fifo, make_folder])
def test_what_holds_no_tensors_stays_where_it_is(store: SharedDirFeatureStore, tmp_path: Path, spoil: Any) -> None:
    """Torn files, links, FIFOs and directories are refused by name, and what is stored already stays."""
    ref = ref_of(store.put("s1", tensors(0)))
    theirs = written(tmp_path, 1)
    spoil(theirs)
    before = theirs.lstat().st_ino
    with pytest.raises(UnfitFileError) as caught:
        store.adopt_file("s1", theirs)
    assert str(theirs) in str(caught.value) and "'s1'" in str(caught.value)
    assert theirs.lstat().st_ino == before and same(store.get(ref), tensors(0))
    assert os.listdir(Path(store.root) / "tmp") == []


def test_a_file_that_is_not_there(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    with pytest.raises(QueueIOError, match="adopting features into"):
        store.adopt_file("s1", tmp_path / "nothing.safetensors")
    assert store.find("s1") is None


def test_an_adoption_that_dies_leaves_all_or_nothing(tmp_path: Path) -> None:
    """After a death at each file operation the sample has no features, or whole ones; adopting them anew succeeds."""
    number, finished = 0, False
    while not finished:
        folder = tmp_path / f"{number}"
        folder.mkdir()
        SharedDirFeatureStore(folder / "features").put("s1", tensors(0))
        written(folder, 1)
        finished = not died(
            lambda at: SharedDirFeatureStore(at / "features").adopt_file("s1", at / "theirs.safetensors"),
            folder,
            number,
        )
        store = SharedDirFeatureStore(folder / "features", verify=True)
        found = store.find("s1")
        assert found is not None
        assert any(same(store.get(ref_of(found)), tensors(content)) for content in (0, 1))
        ref = ref_of(store.adopt_file("s1", written(folder, 1)))
        store.gc(unfinished_older_than_s=0)
        assert same(store.get(ref), tensors(1))
        assert len(files(store)) == 2 and os.listdir(folder / "features" / "tmp") == []
        number += 1
    assert number > 12


def test_old_files_are_as_young_as_their_adoption(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    """What a server wrote long ago is nothing that a gc may take for the leftover of a dead writer."""
    theirs = written(tmp_path, 1)
    os.utime(theirs, (0, 0))
    store.adopt_file("s1", theirs)
    (apart,) = Path(store.root).glob("??/*@*")
    assert apart.stat().st_mtime > time.time() - 3600


@pytest.mark.parametrize(
    "metadata",
    [
        {"tensors": "apart", "generation": "../../../etc"},
        {"tensors": "apart", "generation": "0" * 32, "more": "x"},
        {"tensors": "elsewhere", "generation": "0" * 32},
    ],
    ids=str,
)
def test_files_that_name_what_is_not_theirs(
    store: SharedDirFeatureStore, tmp_path: Path, metadata: dict[str, str]
) -> None:
    """A generation that is none leads nowhere; a file with tensors that says they lie apart is damaged."""
    ref = ref_of(store.put("s1", tensors(0)))
    content = {"x": torch.zeros(2)} if "more" in metadata else {}
    save_file(content, file_of(store, ref), {"sample_id": "s1"} | metadata)
    with pytest.raises(CorruptFeatureError):
        store.find("s1")
    with pytest.raises(CorruptFeatureError):
        store.get(ref)


def test_tensors_that_are_gone_count_as_not_stored(store: SharedDirFeatureStore, tmp_path: Path) -> None:
    ref = ref_of(store.adopt_file("s1", written(tmp_path, 1)))
    (apart,) = Path(store.root).glob("??/*@*")
    apart.unlink()
    assert store.find("s1") is None
    with pytest.raises(FeatureMissingError):
        store.get(ref)
