"""The simulated filesystem does what a real NFS mount was seen to do, two clients A and B on one server."""

from __future__ import annotations

import errno
import os

import pytest

from tests.sweeps.two_mounts import FLAGS, FOLDER, Mount, mounts, refused


def test_a_name_that_was_renamed_away_is_believed_for_30_s() -> None:
    """stat, open and utime by name succeed; rename says ENOENT at once; a listing is right at once."""
    a, b = mounts()
    a.write("x")
    b.claim("x")
    assert a.sees("x")
    assert a.read("x") == b"text"
    a.stamp("x")
    assert a.ops.listdir(a.pending) == []
    with refused(errno.ENOENT):
        a.claim("x")
    a, b = mounts()
    a.write("x")
    b.claim("x")
    a.world.wait(31.0)
    assert not a.sees("x")


def test_a_stamp_on_a_believed_name_lands_on_the_file_where_it_is() -> None:
    """It prolongs the lease that another client has on it."""
    a, b = mounts()
    a.write("x")
    b.claim("x")
    a.world.wait(5.0)
    a.stamp("x")
    fd = b.ops.open("x", os.O_RDONLY, dir_fd=b.leased)
    assert b.ops.fstat(fd).st_mtime == pytest.approx(a.world.now, abs=0.1)


def test_a_name_that_was_missing_stays_missing_for_28_s() -> None:
    """stat, open, access, rename and link say ENOENT; O_CREAT goes to the server, opening the directory ends it."""
    a, b = mounts()
    assert not a.sees("x")
    b.write("x")
    assert not a.sees("x")
    for call in (a.read, a.claim, a.mtime, a.stamp, a.link):
        with refused(errno.ENOENT):
            call("x")
    assert a.ops.listdir(a.pending) == ["x"]
    a.ops.fstat(a.pending)
    assert not a.sees("x"), "a stat of the directory does nothing"
    a.ops.close(a.ops.open("/pending", FOLDER))
    assert a.sees("x")
    assert not a.sees("y")
    b.write("y")
    a.write("y", b"same")
    assert len(b.ops.listdir(b.pending)) == 2
    assert not a.sees("z")
    b.write("z")
    a.world.wait(28.5)
    assert a.sees("z")


def test_an_mtime_is_stale_by_stat_and_fresh_by_open() -> None:
    """Attributes are remembered for up to a minute; open + fstat asks the server."""
    a, b = mounts()
    b.write("x")
    before = a.mtime("x")
    a.world.wait(20.0)
    b.stamp("x")
    assert a.mtime("x") == before
    fd = a.ops.open("x", os.O_RDONLY, dir_fd=a.pending)
    assert a.ops.fstat(fd).st_mtime > before + 19
    a.world.wait(5.0)
    b.stamp("x")
    stale = a.ops.fstat(fd).st_mtime
    assert stale < a.world.now - 4, "a kept descriptor is as stale as stat"
    assert a.ops.lock(fd)
    assert a.ops.fstat(fd).st_mtime > stale + 4, "flock on the file + fstat is fresh"


def test_the_server_stamps_and_clocks_differ() -> None:
    """utime, create and write are stamped by one clock, which never runs backwards; an explicit time is kept."""
    a, b = mounts()
    assert a.ops.time() - b.ops.time() == 166.0
    a.write("x")
    b.write("y")
    assert b.mtime("y") - b.mtime("x") < 1.0
    b.ops.utime("x", ns=(7_000_000_000, 7_000_000_000), dir_fd=b.pending)
    assert b.mtime("x") == 7.0


def test_a_kept_descriptor_reads_what_it_read_before() -> None:
    """Unless the file itself is locked: then everything is seen."""
    a, b = mounts()
    a.write("log", b"one ")
    fd = a.ops.open("log", FLAGS, dir_fd=a.pending)
    assert a.ops.pread(fd, 100, 0) == b"one "
    other = b.ops.open("log", FLAGS, dir_fd=b.pending)
    assert b.ops.lock(other)
    b.ops.pwrite(other, b"two ", 4)
    assert not a.ops.lock(fd)
    b.ops.unlock(other)
    assert a.ops.pread(fd, 100, 0) == b"one "
    assert a.ops.lock(fd)
    assert a.ops.pread(fd, 100, 0) == b"one two "


def test_writes_reach_the_server_at_close_fsync_or_unlock() -> None:
    """A file written but not closed when its node dies is empty."""
    a, b = mounts()
    fd = a.ops.open("x", FLAGS, dir_fd=a.pending)
    a.ops.write(fd, b"never sent")
    synced = a.ops.open("y", FLAGS, dir_fd=a.pending)
    a.ops.write(synced, b"sent")
    a.ops.fsync(synced)
    a.process.die(node_dies=True)
    assert (b.read("x"), b.read("y")) == (b"", b"sent")


def test_a_dead_nodes_lock_comes_free_after_90_s_a_dead_processs_at_once() -> None:
    """The kernel of a killed process closes its files; nobody does it for a node."""
    for node_dies, wait_s in ((False, 0.0), (True, 91.0)):
        a, b = mounts()
        mine, other = a.ops.open("lock", FLAGS, dir_fd=a.pending), b.ops.open("lock", FLAGS, dir_fd=b.pending)
        assert a.ops.lock(mine)
        a.process.die(node_dies)
        assert b.ops.lock(other) != node_dies
        a.world.wait(wait_s)
        assert b.ops.lock(other)


def test_locks_that_do_not_exclude() -> None:
    """Local to a node, or not there at all: both clients get it, and the run notes when."""
    for lock in ("local", "absent"):
        a, b = mounts(lock=lock)
        mine, other = a.ops.open("lock", FLAGS, dir_fd=a.pending), b.ops.open("lock", FLAGS, dir_fd=b.pending)
        assert a.ops.lock(mine)
        assert b.ops.lock(other)
        a.ops.unlock(mine)
        assert len(a.world.overlaps) == 1


def test_a_retransmitted_rename_says_enoent_though_it_was_done() -> None:
    """And the call hangs for up to half a minute."""
    a, b = mounts(retransmits=1.0)
    a.write("x")
    began = a.world.now
    with refused(errno.ENOENT):
        a.claim("x")
    assert b.ops.listdir(b.leased) == ["x"]
    assert 0.0 < a.world.now - began < 40.0


def test_a_file_that_another_client_removed_is_a_stale_handle() -> None:
    """Removed by the same client while open, it is kept as .nfsXXXX until it is closed."""
    a, b = mounts()
    a.write("x")
    fd = a.ops.open("x", os.O_RDONLY, dir_fd=a.pending)
    b.ops.unlink("x", dir_fd=b.pending)
    with refused(errno.ESTALE):
        a.ops.lock(fd)
    a.ops.close(fd)
    a.write("y")
    fd = a.ops.open("y", os.O_RDONLY, dir_fd=a.pending)
    a.ops.unlink("y", dir_fd=a.pending)
    (hidden,) = b.ops.listdir(b.pending)
    assert hidden.startswith(".nfs")
    assert a.ops.read(fd, 9) == b"text"
    a.ops.close(fd)
    assert b.ops.listdir(b.pending) == []


def test_a_listing_is_not_read_at_one_instant() -> None:
    """A file that is renamed while its directory is read may be seen under both names or under neither."""
    seen = set()
    for seed in range(300):
        a, b = mounts(latency_s=1.0)
        a.write("old")
        a.process._rng.seed(seed)
        found: list[str] = []

        def look(a: Mount = a, found: list[str] = found) -> None:
            found += a.ops.listdir(a.pending)

        def rename(b: Mount = b) -> None:
            b.world.wait(0.5)
            b.ops.rename("old", "new", src_dir_fd=b.pending, dst_dir_fd=b.pending)

        a.world.run([look, rename])
        assert not a.world.failures
        seen.add(tuple(sorted(found)))
    assert seen >= {("new",), ("old",)}
    assert ("new", "old") in seen or () in seen
