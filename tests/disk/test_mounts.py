"""Mounts: the filesystem that a path lies on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fsqueue.disk.mounts import Mount, containing, mount_of, parse_mountinfo

MOUNTINFO = r"""22 27 0:21 / /proc rw,nosuid,relatime shared:5 - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
36 27 0:35 /sub /mnt/a\040space rw,noatime master:1 shared:2 - nfs4 srv:/export\134x rw,vers=4.2,local_lock=none
40 27 0:40 / /scratch ro,relatime shared:9 - lustre 10.0.0.1@tcp:/fs rw,localflock
41 40 0:41 / /scratch rw,relatime - tmpfs tmpfs rw,size=64k
this line is none
43 27 0:43 / /short rw - ext4
"""


def test_a_mountinfo_line_gives_number_point_type_source_and_options() -> None:
    nfs = parse_mountinfo(MOUNTINFO)[2]
    assert nfs == Mount(36, "/mnt/a space", "nfs4", "srv:/export\\x", nfs.options)
    assert nfs.options == ("rw", "noatime", "vers=4.2", "local_lock=none")


def test_lines_outside_the_format_are_skipped() -> None:
    assert [mount.mount_id for mount in parse_mountinfo(MOUNTINFO)] == [22, 27, 36, 40, 41]


def test_a_mount_is_read_only_when_either_the_mount_or_the_filesystem_is() -> None:
    lustre = parse_mountinfo(MOUNTINFO)[3]
    assert lustre.option("ro") == "" and lustre.option("rw") is None


def test_an_option_has_a_value_or_an_empty_one_or_is_not_set() -> None:
    nfs = parse_mountinfo(MOUNTINFO)[2]
    assert (nfs.option("vers"), nfs.option("noatime"), nfs.option("nolock")) == ("4.2", "", None)


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("/", 27),
        ("/procession", 27),
        ("/proc/self", 22),
        ("/mnt/a space/x", 36),
        ("/scratch", 41),
        ("/scratch/x", 41),
    ],
)
def test_the_longest_mount_point_above_a_path_wins_and_of_equals_the_last(path: str, number: int) -> None:
    found = containing(parse_mountinfo(MOUNTINFO), path)
    assert found is not None and found.mount_id == number


def test_a_path_above_which_nothing_is_mounted_has_no_mount() -> None:
    assert containing([], "/anywhere") is None


@pytest.mark.parametrize(
    ("kind", "source", "remote"),
    [
        ("nfs4", "srv:/q", True),
        ("lustre", "10.0.0.1@tcp:/fs", True),
        ("gpfs", "/dev/gpfs0", True),
        ("ceph", "[fd00::1]:6789:/", True),
        ("cifs", "//srv/share", True),
        ("fuse.sshfs", "me@srv:", True),
        ("fuse.unheard-of", "srv:/volume", True),
        ("newfs", "[fd00::1]:/x", True),
        ("ext4", "/dev/disk/by-path/pci-0000:00", False),
        ("tmpfs", "tmpfs", False),
        ("overlay", "overlay", False),
        ("zfs", "tank/home", False),
    ],
)
def test_a_mount_is_remote_by_its_type_or_a_source_that_names_a_host(kind: str, source: str, remote: bool) -> None:
    assert Mount(1, "/m", kind, source, ()).is_remote is remote


@pytest.mark.skipif(sys.platform != "linux", reason="mountinfo is Linux's")
class TestOnLinux:
    def test_the_mount_of_a_path_is_found(self) -> None:
        found = mount_of("/proc/self")
        assert found is not None and (found.type, found.point) == ("proc", "/proc")

    def test_a_missing_path_lies_where_the_nearest_directory_above_it_does(self, tmp_path: Path) -> None:
        assert mount_of(tmp_path / "not" / "there") == mount_of(tmp_path) is not None

    def test_a_symbolic_link_lies_where_its_target_does(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("/proc")
        found = mount_of(tmp_path / "link")
        assert found is not None and found.type == "proc"

    @pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
    def test_a_mount_that_hides_what_is_below_it_is_the_one_found(self, tmp_path: Path) -> None:
        (tmp_path / "upper" / "lower").mkdir(parents=True)
        try:
            _mount(tmp_path / "upper" / "lower")
            (tmp_path / "upper" / "lower" / "x").mkdir()
            _mount(tmp_path / "upper")
            (tmp_path / "upper" / "lower" / "x").mkdir(parents=True)
            found = mount_of(tmp_path / "upper" / "lower" / "x")
            assert found is not None and found.point == str(tmp_path / "upper")
        finally:
            for directory in (tmp_path / "upper", tmp_path / "upper" / "lower"):
                subprocess.run(["umount", str(directory)], check=False, capture_output=True)


def _mount(directory: Path) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("this root may not mount")
