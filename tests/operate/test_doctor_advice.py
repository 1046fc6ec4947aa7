"""The doctor's advice: from the findings of one process and from the mount's options."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.mounts import Mount
from fsqueue.operate.doctor import probes
from fsqueue.operate.doctor.advice import advise, rounded_up
from fsqueue.operate.doctor.costs import Cost
from fsqueue.operate.doctor.findings import Diagnosis
from fsqueue.operate.doctor.notes import attribute_cache_s, lock_is_node_local, notes
from fsqueue.operate.doctor.probes import ClockFindings, GranularityFindings, NameFindings
from fsqueue.operate.doctor.races import LockFindings, RaceFindings


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Directory]:
    """An open, empty directory."""
    directory = Directory(FileOps(), str(tmp_path))
    yield directory
    directory.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Directory]:
    """Another one, inside the first."""
    (tmp_path / "other").mkdir()
    directory = Directory(FileOps(), str(tmp_path / "other"))
    yield directory
    directory.close()


def ops_with(**calls: Any) -> FileOps:
    ops = FileOps()
    for name, call in calls.items():
        setattr(ops, name, call)
    return ops


def mount(kind: str, *options: str) -> Mount:
    return Mount(1, "/mnt", kind, "srv:/q", ("rw", *options))


def found(*, kind: str = "ext4", options: tuple[str, ...] = (), **facts: Any) -> Diagnosis:
    """A diagnosis without a fault, but for the facts given."""
    usual: dict[str, Any] = {
        "lock": LockFindings(True, None, 2, rounds=100, waits=50),
        "rename_race": RaceFindings(2, 10, 10, 0, 0, 0, (5, 5)),
        "exclusive_create": True,
        "clock": ClockFindings("this_host", 0.0, 0.0, 0.01, 0, 30),
        "granularity": GranularityFindings(0.001, 0.001),
        "names": NameFindings(False, 255),
        "costs": {"stat": Cost(10.0, 20.0, 100), "rename": Cost(50.0, 90.0, 100)},
    }
    source = "/dev/vda" if kind in ("ext4", "tmpfs") else "srv:/q"
    mounted = replace(mount(kind, *options), source=source)
    return Diagnosis("/mnt/q", mounted, **{**usual, **facts})


class TestProbes:
    def test_the_skew_of_another_clock_is_measured(self, place: Directory) -> None:
        ops = FileOps()

        def ahead(name: str, **where: Any) -> None:
            stamp_ns = int((ops.time() + 3600) * 1e9)
            os.utime(name, ns=(stamp_ns, stamp_ns), **where)

        seen = probes.clock(ops_with(utime=ahead), place, remote=True)
        assert seen.stamped_by == "another_clock" and 3000 < seen.skew_s < 4200
        assert abs(seen.write_skew_s) < 600 and seen.went_backwards == 0

    def test_a_clock_that_goes_back_is_noticed(self, place: Directory) -> None:
        stamps_ns = iter(range(10**18, 0, -(10**9)))

        def backwards(name: str, **where: Any) -> None:
            stamp_ns = next(stamps_ns)
            os.utime(name, ns=(stamp_ns, stamp_ns), **where)

        seen = probes.clock(ops_with(utime=backwards), place, remote=True)
        assert seen.went_backwards == seen.reads - 1

    def test_a_remote_clock_that_agrees_proves_nothing(self, place: Directory) -> None:
        assert probes.clock(FileOps(), place, remote=True).stamped_by == "undecided"

    def test_stamps_in_whole_seconds_are_no_other_clock(self, place: Directory) -> None:
        def whole(name: str, **where: Any) -> None:
            stamp_ns = int(os.stat(name, dir_fd=where["dir_fd"]).st_ctime) * 10**9
            os.utime(name, ns=(stamp_ns, stamp_ns), **where)

        seen = probes.clock(ops_with(utime=whole), place, remote=False)
        assert seen.stamped_by == "this_host" and seen.uncertainty_s >= 1.0

    def test_coarse_timestamps_are_measured(self, place: Directory, other: Directory) -> None:
        step_ns = 20_000_000
        ticks = iter(range(10**9))

        def coarse(name: str, **where: Any) -> None:
            stamp_ns = 10**18 + next(ticks) // 3 * step_ns
            os.utime(name, ns=(stamp_ns, stamp_ns), **where)

        seen = probes.granularity(ops_with(utime=coarse), place, other)
        assert seen.file_s == pytest.approx(0.02)

    def test_an_mtime_that_never_moves_has_no_granularity(self, place: Directory) -> None:
        minutes = iter(range(0, 10**6, 60))
        ops = ops_with(utime=lambda *_, **__: None, monotonic=lambda: float(next(minutes)))
        assert probes.granularity(ops, place, place).file_s is None

    @pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
    def test_refused_hard_links_are_no_hard_links(self, place: Directory, code: int) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(code, "no links")

        assert probes.hard_links(FileOps(), place)
        assert not probes.hard_links(ops_with(link=refuse), place)

    def test_names_that_ignore_case_and_are_short_are_noticed(self, place: Directory) -> None:
        def folding(name: str, *args: Any, **where: Any) -> int:
            if len(name) > 143:
                raise OSError(errno.ENAMETOOLONG, name)
            return os.open(name.lower(), *args, **where)

        ops = ops_with(
            open=folding,
            stat=lambda name, **where: os.stat(name.lower(), **where),
            unlink=lambda name, **where: os.unlink(name.lower(), **where),
        )
        if hasattr(ops, "access"):
            ops.access = lambda name, *args, **where: os.access(name.lower(), *args, **where)
        assert probes.name_limits(ops, place) == NameFindings(True, 143)

    def test_names_here_are_long_enough_for_a_queue(self, place: Directory) -> None:
        seen = probes.name_limits(FileOps(), place)
        assert seen.longest_bytes >= seen.needed_bytes and not seen.case_insensitive


class TestNotes:
    @pytest.mark.parametrize(
        ("mounted", "option", "level", "words"),
        [
            (mount("nfs", "vers=3", "nolock"), "nolock", "warning", "only processes of this node"),
            (mount("nfs", "vers=3"), "vers=3", "warning", "minutes"),
            (mount("nfs4", "vers=4.2", "local_lock=none"), "vers=4.2", "info", "90 s"),
            (mount("nfs4", "vers=4.2", "local_lock=none"), "local_lock=none", "info", "excludes other nodes"),
            (mount("nfs4", "local_lock=all"), "local_lock=all", "warning", "only processes of this node"),
            (mount("nfs4", "acregmin=1"), "acregmin=1", "info", "at least 1 s"),
            (mount("nfs4", "actimeo=5"), "actimeo=5", "info", "believed for 5 s"),
            (mount("nfs4", "lookupcache=none"), "lookupcache=none", "info", "fresher"),
            (mount("nfs4", "soft"), "soft", "warning", "hard"),
            (mount("nfs4", "nosharecache"), "nosharecache", "warning", "one mount"),
            (mount("nfs4", "nosharecache"), "acregmin..acdirmax", "info", "60 s"),
            (mount("nfs4", "noac"), "noac", "info", "nothing is cached"),
            (mount("lustre", "flock"), "flock", "info", "all nodes"),
            (mount("lustre", "localflock"), "localflock", "warning", "only processes of this node"),
            (mount("lustre", "noflock"), "noflock", "warning", "ENOSYS"),
            (mount("lustre"), "lustre", "warning", "NTP"),
            (mount("cifs", "nobrl"), "nobrl", "warning", "only processes of this node"),
            (mount("gpfs"), "gpfs", "warning", "say nothing"),
            (mount("beegfs"), "beegfs", "warning", "tuneUseGlobalFileLocks"),
            (mount("ceph"), "ceph", "info", "coherent"),
            (mount("tmpfs"), "tmpfs", "warning", "next boot"),
            (mount("fuse.seaweedfs"), "fuse.seaweedfs", "warning", "two winners"),
            (mount("fuse.mergerfs"), "fuse.mergerfs", "warning", "processes of one mount"),
            (mount("fuse.glusterfs"), "fuse.glusterfs", "info", "clients' clocks"),
            (mount("fuse.unheard-of"), "fuse.unheard-of", "warning", "--second-mount"),
            (Mount(1, "/", "ext4", "/dev/vda", ("ro",)), "ro", "warning", "read-only"),
        ],
    )
    def test_an_option_that_matters_is_explained(self, mounted: Mount, option: str, level: str, words: str) -> None:
        note = next(note for note in notes(mounted) if note.option == option)
        assert note.level == level and words in note.text

    def test_an_ordinary_local_mount_needs_no_note(self) -> None:
        assert notes(Mount(1, "/", "ext4", "/dev/vda", ("rw", "relatime"))) == []

    @pytest.mark.parametrize(
        ("mounted", "seconds"),
        [
            (mount("nfs4"), 60.0),
            (mount("nfs4", "actimeo=3"), 3.0),
            (mount("nfs4", "acregmax=10", "acdirmax=20"), 20.0),
            (mount("nfs4", "noac"), 0.0),
            (mount("nfs4", "actimeo=garbage"), 60.0),
            (mount("cifs"), 1.0),
            (mount("lustre"), 0.0),
            (mount("fuse.sshfs"), 20.0),
        ],
    )
    def test_the_longest_time_that_attributes_are_believed(self, mounted: Mount, seconds: float) -> None:
        assert attribute_cache_s(mounted) == seconds

    @pytest.mark.parametrize(
        ("mounted", "local"),
        [
            (mount("nfs", "nolock"), True),
            (mount("nfs", "local_lock=posix"), False),
            (mount("nfs4", "local_lock=flock"), True),
            (mount("lustre", "flock"), False),
            (mount("lustre", "localflock"), True),
            (mount("gpfs"), True),
            (mount("ceph"), False),
            (mount("fuse.seaweedfs"), True),
            (mount("fuse.gocryptfs"), True),
            (mount("fuse.mfs"), False),
        ],
    )
    def test_a_mount_tells_whether_its_locks_stay_on_the_node(self, mounted: Mount, local: bool) -> None:
        assert lock_is_node_local(mounted) is local


class TestAdvice:
    def test_a_local_disk_takes_short_leases_and_the_lock(self) -> None:
        advice = advise(found())
        assert (advice.lease_timeout_s, advice.heartbeat_s, advice.poll_interval_s) == (2.0, 0.5, 0.05)
        assert (advice.lock, advice.durable) == ("flock", True)

    def test_leases_on_nfs_outlast_what_clients_remember(self) -> None:
        advice = advise(found(kind="nfs4", options=("vers=4.2", "local_lock=none")))
        assert (advice.lease_timeout_s, advice.lock, advice.poll_interval_s) == (120.0, "flock", 3.0)
        assert any("--peer" in remark for remark in advice.remarks)

    def test_leases_on_any_shared_mount_outlast_a_restart_of_the_server(self) -> None:
        assert advise(found(kind="nfs4", options=("actimeo=1",))).lease_timeout_s == 90.0

    def test_slow_operations_lengthen_leases_and_pauses(self) -> None:
        slow = {"stat": Cost(20_000.0, 40_000.0, 100), "rename": Cost(50_000.0, 250_000.0, 100)}
        advice = advise(found(costs=slow))
        assert (advice.lease_timeout_s, advice.poll_interval_s) == (300.0, 0.5)

    def test_locks_that_stay_on_the_node_are_not_advised_for_several(self) -> None:
        assert advise(found(kind="nfs", options=("nolock", "vers=3"))).lock == "lease"

    def test_without_exclusive_creation_either_no_lock_is_advised(self) -> None:
        assert advise(found(lock=LockFindings(False, "ENOLCK", 2), exclusive_create=False)).lock == "none"

    def test_nothing_is_durable_in_memory(self) -> None:
        assert not advise(found(kind="tmpfs")).durable

    @pytest.mark.parametrize(
        ("facts", "words"),
        [
            ({"names": NameFindings(True, 255)}, "differ only in case"),
            ({"names": NameFindings(False, 143)}, "names end at 143 bytes"),
            ({"clock": ClockFindings("another_clock", 120.0, 120.0, 0.01, 0, 30)}, "+120.0 s"),
            ({"clock": ClockFindings("another_clock", 0.0, 0.0, 0.01, 3, 30)}, "went back in time"),
            ({"lock": LockFindings(True, None, 2, rounds=100, waits=0)}, "never met"),
        ],
    )
    def test_what_deserves_a_remark_gets_one(self, facts: dict[str, Any], words: str) -> None:
        assert any(words in remark for remark in advise(found(**facts)).remarks)

    def test_a_diagnosis_without_any_finding_still_gets_advice(self) -> None:
        assert advise(Diagnosis("/mnt/q", None)).lock == "none"

    def test_durations_are_rounded_up_to_ones_a_person_would_choose(self) -> None:
        assert [rounded_up(seconds) for seconds in (0.01, 2.0, 61.0, 1e5)] == [0.05, 2.0, 90.0, 1e5]
