"""The list of filesystems: who is doubted, who is refused, and that opening a queue on a refused one warns."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, UnfitFilesystemWarning
from fsqueue.disk.fileops import FileOps, using
from fsqueue.disk.filesystems import UNKNOWN, filesystem, refusal
from fsqueue.disk.mounts import Mount


def lying_on(kind: str) -> FileOps:
    """File operations that take every path for one on this kind of filesystem."""
    ops = FileOps()
    ops.filesystem_type = lambda path: kind
    return ops


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "exfat", "fuseblk"])
def test_one_hosts_own_filesystems_are_believed(kind: str) -> None:
    assert filesystem(kind).local and filesystem(kind).lock_freshens and refusal(kind) is None


@pytest.mark.parametrize(
    "kind",
    ["nfs4", "cifs", "lustre", "gpfs", "beegfs", "ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.juicefs", "fuse.mfs",
     "fuse.seaweedfs", "fuse.sshfs", "fuse.mergerfs", "fuse.gocryptfs", "fuse.encfs", "fuse.unionfs", "fuse.bindfs",
     "9p", "virtiofs", "ecryptfs", "fuse", "fuse.unheard-of"],
)  # fmt: skip
def test_what_others_may_change_is_doubted_and_not_refused(kind: str) -> None:
    assert not filesystem(kind).local and refusal(kind) is None


@pytest.mark.parametrize("kind", ["fuse.seaweedfs", "fuse.sshfs", "fuse.gocryptfs", "fuse.encfs", "fuse.mergerfs"])
def test_locks_that_end_at_the_mount_are_known(kind: str) -> None:
    assert filesystem(kind).shares_locks is False


@pytest.mark.parametrize(
    "kind", ["fuse.s3fs", "fuse.rclone", "fuse.goofys", "fuse.gcsfuse", "fuse.mountpoint-s3", "fuse.blobfuse2"]
)
def test_stores_of_objects_are_refused_with_the_reason_and_a_way_out(kind: str) -> None:
    reason = refusal(kind)
    assert reason is not None and "two processes can both win" in reason and "keep it on" in reason


def test_what_is_not_listed_is_doubted_in_everything() -> None:
    assert filesystem("newfs") is filesystem(None) is UNKNOWN
    assert not (UNKNOWN.local or UNKNOWN.shares_locks or UNKNOWN.lock_freshens or UNKNOWN.directory_times)


@pytest.mark.parametrize(
    ("source", "kind"),
    [("mfs#10.0.0.1:9421", "fuse.mfs"), ("mountpoint-s3", "fuse.mountpoint-s3"), ("https://srv/dav", "fuse.davfs"),
     ("/srv/store", "fuse")],
)  # fmt: skip
def test_a_plain_fuse_mount_is_known_by_its_source(source: str, kind: str) -> None:
    assert Mount(1, "/m", "fuse", source, ()).kind == kind


def test_creating_a_queue_where_none_can_be_kept_warns_once_and_opens_it(tmp_path: Path) -> None:
    with using(lying_on("fuse.s3fs")):
        with pytest.warns(
            UnfitFilesystemWarning, match=r"queue .*q: no queue can be kept on s3fs: .* keep it on"
        ) as seen:
            FileSampleRefQueue(tmp_path / "q", lock="none").close()
        assert len(seen) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            FileSampleRefQueue(tmp_path / "q").close()


def test_a_second_queue_there_is_warned_about_too(tmp_path: Path) -> None:
    with using(lying_on("fuse.rclone")):
        for name in ("a", "b"):
            with pytest.warns(UnfitFilesystemWarning, match=f"{name}: no queue"):
                FileSampleRefQueue(tmp_path / name, lock="none").close()


def test_a_filesystem_that_is_only_weaker_does_not_warn(tmp_path: Path) -> None:
    with using(lying_on("fuse.sshfs")), warnings.catch_warnings():
        warnings.simplefilter("error")
        FileSampleRefQueue(tmp_path / "q").close()
