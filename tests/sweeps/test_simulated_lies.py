"""Each lie that real filesystems were seen to tell, switched on alone, does on the simulated one what was seen."""

from __future__ import annotations

import errno
import os
from contextlib import nullcontext

import pytest

from fsqueue.disk.filesystems import filesystem
from simulation.kinds import KINDS
from tests.sweeps.two_mounts import FLAGS, mounts, refused


def test_a_rename_to_a_name_that_is_remembered_for_the_file_does_nothing() -> None:
    """It says 0. Opening both directories first makes it real on NFS and not elsewhere; an unused name, everywhere."""
    nfs, other = ("no-op-renames",), ("no-op-renames", "opening-asks-nothing")
    for lies, opens, moves in ((nfs, False, False), (nfs, True, True), (other, True, False)):
        a, b = mounts(lies=lies)
        a.write("x")
        b.claim("x")
        if opens:
            a.reopen()
        a.give_back("x")
        assert b.ops.listdir(b.pending) == (["x"] if moves else [])
    assert a.ops.listdir(a.leased) == ["x"], "the source still opens"
    a.ops.rename("x", "unused", src_dir_fd=a.leased, dst_dir_fd=a.pending)
    assert b.ops.listdir(b.pending) == ["unused"]


def test_a_rename_is_real_again_when_the_name_is_forgotten() -> None:
    """After the name cache's time."""
    a, b = mounts(lies=("no-op-renames", "opening-asks-nothing"), names_s=1.2)
    a.write("x")
    b.claim("x")
    a.give_back("x")
    assert b.ops.listdir(b.pending) == []
    a.world.wait(1.3)
    a.give_back("x")
    assert b.ops.listdir(b.pending) == ["x"]


def test_opening_a_directory_may_end_nothing() -> None:
    """Neither a name that is gone nor one that was missing is asked for again."""
    a, b = mounts(lies=("opening-asks-nothing",))
    a.write("x")
    assert not a.sees("y")
    b.claim("x")
    b.write("y")
    a.reopen()
    assert a.sees("x")
    assert not a.sees("y")


def test_names_are_kept_alive_by_what_looks_at_them() -> None:
    """By stamps for up to 25 s on GlusterFS, by listings on CIFS; looks alone keep none."""
    for lie, kept_s in (("", 1.0), ("stamps-keep-names", 25.0), ("listings-keep-names", 60.0)):
        a, b = mounts(lies=(lie,), names_s=1.0)
        a.write("x")
        b.claim("x")
        gone_after_s = 0.0
        while a.sees("x"):
            if lie.startswith("stamps"):
                a.stamp("x")
            if lie.startswith("listings"):
                a.ops.listdir(a.pending)
            a.world.wait(0.5)
            gone_after_s += 0.5
        assert gone_after_s == pytest.approx(kept_s, abs=1.5)


def test_a_lock_may_make_nothing_fresh() -> None:
    """What a kept descriptor reads, and its size, is old; one opened under the lock reads all; a close sends all."""
    a, b = mounts(lies=("old-under-lock",), attributes_s=1.0)
    a.write("log", b"one ")
    kept, other = a.opened("log"), b.opened("log")
    assert a.ops.pread(kept, 100, 0) == b"one "
    assert b.ops.lock(other)
    b.ops.pwrite(other, b"two ", 4)
    b.ops.unlock(other)
    assert a.read("log") == b"one ", "an unlock sends nothing"
    assert b.ops.lock(other)
    b.ops.close(other)
    assert a.ops.lock(kept)
    assert a.ops.pread(kept, 100, 0) == b"one "
    assert a.ops.fstat(kept).st_size == 4
    assert a.read("log") == b"one two "


def test_what_a_kept_descriptor_reads_is_old_for_as_long_as_attributes_are() -> None:
    """A second on most; then the client notices that the file is another one."""
    a, b = mounts(lies=("old-under-lock",), attributes_s=1.0)
    a.write("log", b"one")
    kept = a.opened("log")
    assert a.ops.pread(kept, 9, 0) == b"one"
    b.write("log", b"two")
    assert a.ops.pread(kept, 9, 0) == b"one"
    a.world.wait(1.1)
    assert a.ops.pread(kept, 9, 0) == b"two"


def test_a_rewrite_of_equal_size_may_not_be_seen() -> None:
    """Under the lock, through a kept descriptor and by a second one; another size is seen."""
    a, b = mounts(lies=("equal-size-stays-old",))
    a.write("log", b"one")
    kept = a.opened("log")
    assert a.ops.pread(kept, 9, 0) == b"one"
    b.write("log", b"two")
    assert a.ops.lock(kept)
    assert a.ops.pread(kept, 9, 0) == b"one"
    assert a.read("log") == b"one"
    a.ops.forget(kept)
    assert a.ops.pread(kept, 9, 0) == b"two", "posix_fadvise(DONTNEED) cures it"
    b.write("log", b"one")
    assert a.ops.pread(kept, 9, 0) == b"two"
    direct = a.opened("log", os.O_RDONLY | os.O_DIRECT)
    assert a.ops.pread(direct, 9, 0) == b"one", "and O_DIRECT asks"
    b.write("log", b"two")
    a.ops.close(direct)
    a.ops.close(kept)
    assert a.read("log") == b"two"
    kept = a.opened("log")
    b.write("log", b"longer")
    assert a.ops.lock(kept)
    assert a.ops.pread(kept, 9, 0) == b"longer"


@pytest.mark.parametrize("loser", ["EIO", "EXDEV", "EPERM", "ESTALE", "EBADF"])
def test_a_loser_may_hear_another_errno(loser: str) -> None:
    """Of rename and unlink, for a second after another mount took the name; later the name is missing, as it is."""
    heard = set()
    for seed in range(20):
        a, b = mounts(seed, loser=loser, names_s=0.0, misses_s=0.0)
        a.write("x")
        b.claim("x")
        for lose in (a.claim, a.remove):
            with pytest.raises(OSError) as caught:
                lose("x")
            heard.add(caught.value.errno)
    assert heard == {getattr(errno, loser), errno.ENOENT}
    a.world.wait(1.1)
    with refused(errno.ENOENT):
        a.claim("x")


@pytest.mark.parametrize("creation", ["EEXIST", "ENOENT"])
def test_o_creat_may_fail_for_a_second_after_another_mount_changed_the_name(creation: str) -> None:
    """Created, replaced or removed; O_EXCL, and the node that did it, hear no such thing."""
    heard = set()
    for seed in range(20):
        a, b = mounts(seed, creation=creation)
        b.write("x")
        b.write("x")
        try:
            a.write("x")
        except OSError as error:
            heard.add(error.errno)
        a.world.wait(1.1)
        a.write("x")
    assert heard == {getattr(errno, creation)}
    with refused(errno.EEXIST):
        a.ops.open("x", FLAGS | os.O_EXCL, dir_fd=a.pending)


def test_close_may_say_that_the_file_is_gone() -> None:
    """ESTALE, and the descriptor is closed all the same."""
    heard = set()
    for seed in range(10):
        a, b = mounts(seed, lies=("close-says-stale",))
        a.write("x")
        fd = a.opened("x")
        b.ops.unlink("x", dir_fd=b.pending)
        try:
            a.ops.close(fd)
        except OSError as error:
            heard.add(error.errno)
        with refused(errno.EBADF):
            a.ops.close(fd)
    assert heard == {errno.ESTALE}


@pytest.mark.parametrize("two", [False, True])
def test_o_excl_and_link_may_have_two_winners(two: bool) -> None:
    """For a second; without that lie the second one hears EEXIST."""
    a, b = mounts(lies=("two-creators",) if two else ())
    a.write("x")
    a.link("x")
    for create in (lambda: b.opened("x", FLAGS | os.O_EXCL), lambda: b.link("x")):
        with nullcontext() if two else refused(errno.EEXIST):
            create()
    b.world.wait(1.1)
    with refused(errno.EEXIST):
        a.opened("x", FLAGS | os.O_EXCL)


def test_whoever_has_linked_a_file_goes_on_seeing_it_until_a_rename_decides() -> None:
    """Of two links to one name; a third mount sees the later."""
    a, b = mounts(lies=("two-creators",), names_s=0.0)
    for mount, name in ((a, "a"), (b, "b")):
        mount.write(name, name.encode())
        mount.ops.link(name, "x", src_dir_fd=mount.pending, dst_dir_fd=mount.pending)
    a.world.wait(20.0)
    assert (a.read("x"), b.read("x")) == (b"a", b"b")
    b.write("c", b"c")
    b.rename("c", "x")
    assert (a.read("x"), b.read("x")) == (b"c", b"c")


def test_a_directorys_stamps_may_never_move() -> None:
    """Without that lie, each name that comes or goes moves them."""
    for lies, moves in (((), True), (("frozen-directories",), False)):
        a, _ = mounts(lies=lies)
        before = a.ops.stat("/pending")
        a.world.wait(5.0)
        a.write("x")
        a.cache.forget_status(a.process.files[a.pending].inode)
        after = a.ops.stat("/pending")
        assert (after.st_mtime_ns > before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns) == (moves, moves)


def test_a_rename_may_leave_the_ctime_and_cut_the_mtime() -> None:
    """On NFS it sets the one and keeps the other."""
    for lies, sets, cuts in (((), True, False), (("rename-keeps-ctime", "rename-cuts-mtime"), False, True)):
        a, _ = mounts(lies=lies)
        a.world.wait(0.5)
        a.write("x")
        a.world.wait(5.0)
        before = a.ops.stat("x", dir_fd=a.pending)
        a.rename("x", "y")
        after = a.ops.stat("y", dir_fd=a.pending)
        assert (after.st_ctime_ns > before.st_ctime_ns) == sets
        assert (after.st_mtime_ns == before.st_mtime_ns // 10**9 * 10**9) == cuts


def test_stamps_may_be_cut_to_whole_seconds() -> None:
    """Of files and directories, the server's own and explicit ones."""
    a, _ = mounts(grain_s=1.0)
    a.world.wait(0.7)
    a.write("x")
    assert a.mtime("x") == int(a.world.now)
    a.ops.utime("x", ns=(7_900_000_000, 7_900_000_000), dir_fd=a.pending)
    assert a.mtime("x") == 7.0


def test_a_file_that_is_replaced_may_be_missing_for_an_instant() -> None:
    """For other mounts; the one that replaces it always sees it."""
    heard = set()
    for seed in range(60):
        a, b = mounts(seed, lies=("missing-while-replaced",), names_s=0.0)
        a.write("x", b"old")
        b.write("new", b"new")
        b.rename("new", "x")
        assert b.read("x") == b"new"
        try:
            assert a.read("x") == b"new"
        except OSError as error:
            heard.add(error.errno)
        a.world.wait(0.2)
        assert a.read("x") == b"new"
    assert heard == {errno.ENOENT, errno.ESTALE, errno.EBADF}


def test_a_dead_nodes_delegation_holds_up_a_rename() -> None:
    """For 90 s, if it opened the file to read it; O_DIRECT and writing give it none, and a live node returns it."""
    for flags, dies, waits_s in (
        (os.O_RDONLY, True, 90.0),
        (os.O_RDONLY | os.O_DIRECT, True, 0.0),
        (os.O_WRONLY, True, 0.0),
        (os.O_RDONLY, False, 0.0),
    ):
        a, b = mounts(lies=("read-delegations",))
        a.write("x")
        a.opened("x", flags)
        if dies:
            a.process.die(node_dies=True)
        began = b.world.now
        b.claim("x")
        assert b.world.now - began == pytest.approx(waits_s, abs=0.1)


def test_a_lock_may_be_lost() -> None:
    """Its holder hears nothing of it, another one gets it, and the run notes when."""
    a, b = mounts(lies=("locks-get-lost",))
    mine, other = (mount.ops.open("lock", FLAGS, dir_fd=mount.pending) for mount in (a, b))
    assert a.ops.lock(mine)
    tries = 0
    while not b.ops.lock(other):
        tries += 1
    assert 0 < tries < 500
    assert len(a.world.overlaps) == 1
    a.ops.unlock(mine)
    assert not a.ops.lock(mine), "an unlock gives back no lock of somebody else"


@pytest.mark.parametrize("torn", [False, True])
def test_a_file_that_two_mounts_write_at_once_may_become_unreadable(torn: bool) -> None:
    """For good, and to everybody; one after the other they do no harm."""
    a, b = mounts(lies=("two-writers-tear",))
    a.write("x", b"old")
    a.world.wait(1.0)
    fds = []
    for mount in (a, b):
        fd = mount.opened("x")
        assert mount.ops.pread(fd, 9, 0) == (b"old" if torn or mount is a else b"new")
        mount.ops.pwrite(fd, b"new", 0)
        fds.append((mount, fd))
        if not torn:
            mount.ops.close(fd)
    for mount, fd in fds if torn else ():
        mount.ops.close(fd)
    a.world.wait(100.0)
    if torn:
        with refused(errno.EIO):
            a.read("x")
    else:
        assert a.read("x") == b"new"


@pytest.mark.parametrize("lie", ["", "opened-listings-are-old"])
def test_a_listing_may_be_old(lie: str) -> None:
    """It shows what this node did itself; what others did when it is read again, or when the directory is opened."""
    a, b = mounts(listings_s=8.0, lies=(lie,))
    assert a.ops.listdir(a.pending) == []
    a.write("mine")
    b.write("other")
    assert a.ops.listdir(a.pending) == ["mine"]
    a.reopen()
    assert a.ops.listdir(a.pending) == (["mine"] if lie else ["mine", "other"])
    a.world.wait(8.1)
    assert a.ops.listdir(a.pending) == ["mine", "other"]


@pytest.mark.parametrize("mount", sorted(KINDS))
def test_a_kind_of_filesystem_does_not_contradict_what_the_queue_knows_of_it(mount: str) -> None:
    """What fsqueue.disk.filesystems promises of a type, no lie of its kind breaks."""
    rules, known = KINDS[mount], filesystem(KINDS[mount].type)
    assert not known.local
    assert known.unfit is None
    if known.shares_locks is not None:
        assert known.shares_locks == (rules.lock == "excludes")
    promises = {
        "lock_freshens": {"old-under-lock", "equal-size-stays-old"},
        "opening_asks": {"opening-asks-nothing"},
        "directory_times": {"frozen-directories"},
        "rename_stamps": {"rename-keeps-ctime"},
    }
    for promise, lies in promises.items():
        assert not (getattr(known, promise) and lies & set(rules.lies)), promise
    assert known.step_s >= rules.grain_s
