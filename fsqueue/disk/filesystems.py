"""Say what each kind of filesystem does under a queue, by the type that the kernel gives it.

One list serves whoever has to decide: the engine what it may believe, the doctor what it tells. What is not listed is
doubted in everything. Measured with two mounts of one store, or taken from the manuals.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Filesystem:
    """Describe one kind of filesystem; a new one without arguments is an unknown one.

    Attributes:
        title: its name for people.
        local: no other client changes files behind this one's caches, so an ENOENT and a remembered name are true.
        shares_locks: a flock excludes the processes of other mounts and hosts; None: unknown, or up to its options.
        lock_freshens: under a granted flock, what a kept descriptor reads is current.
        opening_asks: opening a directory makes this client ask again about all names in it, also in a rename.
        directory_times: a directory's mtime moves with every name that comes or goes.
        rename_stamps: a rename sets the file's ctime.
        step_s: seconds between two time stamps that differ, at most.
        unfit: why no queue can be kept there; None where one can.
    """

    title: str = "an unknown filesystem"
    local: bool = False
    shares_locks: bool | None = None
    lock_freshens: bool = False
    opening_asks: bool = False
    directory_times: bool = False
    rename_stamps: bool = False
    step_s: float = 2.0
    unfit: str | None = None


UNKNOWN = Filesystem()
_NFS = Filesystem("NFS", False, True, True, True, True, True, 0.01)
_LOCAL = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "ramfs", "overlay", "bcachefs")
_KNOWN = {
    **{kind: Filesystem(kind, True, True, True, True, True, True, 0.01) for kind in _LOCAL},
    **dict.fromkeys(("nfs", "nfs3", "nfs4"), _NFS),
}


def filesystem(kind: str | None) -> Filesystem:
    """Return what is known of the filesystem of this type, by its name in /proc/self/mountinfo."""
    return _KNOWN.get(kind or "", UNKNOWN)
