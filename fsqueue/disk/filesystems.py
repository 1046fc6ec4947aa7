"""Say what each kind of filesystem does under a queue, by the type that the kernel gives it.

One list serves whoever has to decide: the engine what it may believe, `Mount` what is remote, the doctor what it tells.
What is not listed is doubted in everything, and a fact that nobody measured or documents stays at the careful side.

Sources: two mounts of one store, measured side by side (sshfs 3.7.3, GlusterFS 10.3, CIFS 3.1.1, NFS 3 and 4.2,
ceph-fuse 16.2, JuiceFS 1.4.2, SeaweedFS 4.48, MooseFS 3.0.117, s3fs 1.90, rclone 1.75, gocryptfs 2.3, encfs 1.9.5,
mergerfs 2.33.5, bindfs, unionfs-fuse, exfat, ntfs-3g), and their type names too. For Lustre mount.lustre(8); for GPFS,
BeeGFS, OCFS2, GFS2, the kernel's CephFS, 9p and virtiofs their manuals. For the other stores of objects and davfs2
their manuals: a rename copies and deletes, or is sent later. JuiceFS moves a directory's mtime ten times a second at
most (--skip-dir-mtime).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial


@dataclass(frozen=True)
class Filesystem:
    """Describe one kind of filesystem; a new one without arguments is an unknown one.

    Attributes:
        title: its name for people.
        local: no other client changes files behind this one's caches, so an ENOENT and a remembered name are true.
        shares_locks: a flock excludes the processes of other mounts and hosts; None: unknown, or up to its options.
        lock_freshens: under a granted flock, what a kept descriptor reads is current.
        opening_asks: opening a directory makes this client ask again about all names in it, also in a rename.
        lists_afresh: a listing through a descriptor that was just opened is current.
        directory_times: a directory's mtime moves with every name that comes or goes.
        rename_stamps: a rename sets the file's ctime.
        step_s: seconds between two time stamps that differ, at most.
        unfit: why no queue can be kept there; None where one can.
        stale_s: for how many seconds a client believes an old name or stamp, by default; 0: never, or unknown.
        durable: what was synced outlives a crash of the host.
        creates_once: an O_EXCL or a link has one winner, whatever the mounts, so that a lock can be built on it; None:
            unknown.
        replaces_at_once: a name that a rename gives to another file is never missing meanwhile, for any mount.
        delegates: the server promises whoever opens a file to read it that others' changes will wait for him.
        remark: what else whoever keeps a queue there should know.
    """

    title: str = "an unknown filesystem"
    local: bool = False
    shares_locks: bool | None = None
    lock_freshens: bool = False
    opening_asks: bool = False
    lists_afresh: bool = False
    directory_times: bool = False
    rename_stamps: bool = False
    step_s: float = 2.0
    unfit: str | None = None
    stale_s: float = 0.0
    durable: bool = True
    creates_once: bool | None = None
    replaces_at_once: bool = False
    delegates: bool = False
    remark: str = ""


UNKNOWN = Filesystem()
_Shared = partial(Filesystem, creates_once=True, lists_afresh=True)
_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs")

_LOCAL = Filesystem(
    local=True, shares_locks=True, lock_freshens=True, opening_asks=True, lists_afresh=True, directory_times=True,
    rename_stamps=True, step_s=0.01, creates_once=True, replaces_at_once=True,
)  # fmt: skip
_MEMORY = replace(_LOCAL, durable=False, remark="held in memory: gone at the next boot, and of this host only")
_OVERLAY = replace(
    _LOCAL, title="overlay",
    remark="the upper layer decides; keep queues of containers on a volume, not in the image",
)  # fmt: skip
_FOREIGN = replace(_LOCAL, rename_stamps=False, step_s=2.0)  # vfat stamps every 2 s, exfat-fuse every second
_NFS = replace(_LOCAL, title="NFS", local=False, stale_s=60.0, delegates=True)
_CIFS = _Shared(
    "CIFS", step_s=0.01, stale_s=1.0,
    remark="SMB locks are mandatory: a locked file cannot be read by others meanwhile; a lock can be lost, and what is "
    "read under it may be old: order may weaken",
)  # fmt: skip
_LAYER = _Shared(shares_locks=False, directory_times=True, rename_stamps=True, step_s=0.01, stale_s=1.0)
_OBJECTS = Filesystem(
    shares_locks=False,
    unfit="a rename is no single step of the store behind it: two processes can both win a ref, and both of their acks "
    "are accepted",
)  # fmt: skip


def _of(pattern: Filesystem, **titles: str) -> dict[str, Filesystem]:
    return {f"fuse.{kind}": replace(pattern, title=title) for kind, title in titles.items()}


_KNOWN: dict[str, Filesystem] = {
    **{kind: replace(_LOCAL, title=kind) for kind in _DISKS},
    **{kind: replace(_MEMORY, title=kind) for kind in ("tmpfs", "ramfs", "devtmpfs")},
    **{kind: replace(_FOREIGN, title=kind) for kind in ("vfat", "exfat", "ntfs3", "fuseblk")},
    "overlay": _OVERLAY,
    **dict.fromkeys(("nfs", "nfs3", "nfs4"), _NFS),
    **dict.fromkeys(("cifs", "smb3", "smbfs"), _CIFS),
    "lustre": _Shared(
        "Lustre", rename_stamps=True,
        remark="files are stamped by the clock of the node that touches them: keep the nodes' clocks in step (NTP), "
        "well within the lease timeout",
    ),
    "gpfs": _Shared("GPFS", remark="Spectrum Scale may keep flock to the node and say nothing"),
    "beegfs": _Shared(
        "BeeGFS", remark="flock reaches other nodes only with tuneUseGlobalFileLocks=true in the client's settings"
    ),
    "ceph": _Shared(
        "CephFS", shares_locks=True, rename_stamps=True, remark="names, attributes and locks are coherent between nodes"
    ),
    **dict.fromkeys(
        ("fuse.ceph", "fuse.ceph-fuse"),
        _Shared(
            "CephFS by ceph-fuse", shares_locks=True, rename_stamps=True, step_s=0.01,
            remark="names and attributes are coherent between nodes; a rewrite of equal size may be read late",
        ),
    ),
    **{kind: _Shared(title, shares_locks=True) for kind, title in (("gfs2", "GFS2"), ("ocfs2", "OCFS2"))},
    "9p": _Shared(
        "9p", lists_afresh=False, remark="what a guest caches (cache=) and locks is up to its mount's options"
    ),
    "virtiofs": _Shared(
        "virtiofs", lists_afresh=False, remark="what a guest caches and locks is up to the options of virtiofsd"
    ),
    "fuse.glusterfs": _Shared(
        "GlusterFS", shares_locks=True, rename_stamps=True, step_s=0.01, stale_s=1.0,
        remark="files are stamped by the clients' clocks: keep them in step (NTP), well within the lease timeout",
    ),
    "fuse.juicefs": _Shared("JuiceFS", shares_locks=True, rename_stamps=True, step_s=0.01, stale_s=1.0),
    "fuse.mfs": _Shared("MooseFS", shares_locks=True, rename_stamps=True, stale_s=1.0),
    "fuse.seaweedfs": Filesystem(
        "SeaweedFS", shares_locks=False, lists_afresh=True, directory_times=True, step_s=0.01, stale_s=1.0,
        creates_once=False,
        remark="O_EXCL and links have two winners: lock='lease' orders nobody there",
    ),
    "fuse.sshfs": _Shared(
        "sshfs", shares_locks=False, lists_afresh=False, stale_s=20.0,
        remark="renames need the server's posix-rename; names are believed for 20 s (mount with dcache_timeout=1)",
    ),
    "fuse.encfs": replace(
        _LAYER, title="encfs", step_s=1.0,
        remark="names end at 175 bytes: keep ids short; a rename cuts the mtime to whole seconds",
    ),
    "ecryptfs": _Shared("eCryptfs", remark="names end at 143 bytes: keep sample ids and owner names short"),
    **_of(_LAYER, gocryptfs="gocryptfs", mergerfs="mergerfs", bindfs="bindfs",
          unionfs="unionfs-fuse", **{"unionfs-fuse": "unionfs-fuse"}),
    **_of(_OBJECTS, s3fs="s3fs", rclone="rclone mount", goofys="goofys", gcsfuse="gcsfuse", geesefs="GeeseFS",
          **{"mountpoint-s3": "Mountpoint for S3"}, ossfs="ossfs", cosfs="COSFS", obsfs="obsfs", blobfuse="BlobFuse",
          blobfuse2="BlobFuse2", davfs="davfs2"),
}  # fmt: skip


class UnfitFilesystemWarning(UserWarning):
    """Warn that a queue lies on a filesystem where its promises cannot be kept."""


def filesystem(kind: str | None) -> Filesystem:
    """Return what is known of the filesystem of this type, by its name in /proc/self/mountinfo."""
    return _KNOWN.get(kind or "", UNKNOWN)


def refusal(kind: str | None) -> str | None:
    """Return why no queue can be kept on a filesystem of this type, and what to do; None where one can, or may."""
    known = filesystem(kind)
    if known.unfit is None:
        return None
    return (
        f"no queue can be kept on {known.title}: {known.unfit}; keep it on a local disk, on NFS or on another "
        "filesystem that `fsqueue doctor` calls fit, and only what the refs point to here"
    )
