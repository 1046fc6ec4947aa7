"""Say what a mount's type and options mean for a queue: pure functions of a `Mount`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

from fsqueue.disk.filesystems import UNKNOWN
from fsqueue.disk.mounts import Mount

NFS_TYPES = ("nfs", "nfs3", "nfs4")
SMB_TYPES = ("cifs", "smb3", "smbfs")


class Note(NamedTuple):
    """Say what one option, or the type itself, means.

    Attributes:
        option: the option as mounted, or the filesystem's type.
    """

    option: str
    level: Literal["info", "warning"]
    text: str


def notes(mount: Mount) -> list[Note]:
    """Return everything worth knowing about a mount, the most general first."""
    found: list[Note] = []
    if mount.option("ro") is not None:
        found.append(Note("ro", "warning", "mounted read-only: no queue can work here"))
    known = mount.filesystem
    if known.remark:
        found.append(Note(mount.kind, "info" if known.shares_locks and known.durable else "warning", known.remark))
    if mount.type in _BY_TYPE:
        found += _BY_TYPE[mount.type](mount)
    elif known.shares_locks is False and known.unfit is None:
        found.append(Note(mount.kind, "warning", _MOUNT_LOCAL))
    elif known == UNKNOWN and mount.is_remote:
        found.append(
            Note(mount.kind, "warning", "a filesystem nothing is known about here, perhaps a shared one: what follows "
                 "was measured through one mount; --second-mount and --peer try two")
        )  # fmt: skip
    return found


def attribute_cache_s(mount: Mount) -> float:
    """Return for how many seconds, at most, this client may believe an old mtime or name without asking."""
    usual_s = mount.filesystem.stale_s
    if mount.type in SMB_TYPES:
        return _number(mount, "actimeo", usual_s)
    if mount.type not in NFS_TYPES:
        return usual_s
    if mount.option("noac") is not None:
        return 0.0
    if mount.option("actimeo") is not None:
        return _number(mount, "actimeo", usual_s)
    return max(_number(mount, name, usual_s) for name in ("acregmax", "acdirmax"))


def lock_is_node_local(mount: Mount) -> bool:
    """Tell whether the mount's options or type say that flock does not reach other nodes."""
    if mount.type in NFS_TYPES:
        return mount.option("nolock") is not None or mount.option("local_lock") in ("flock", "all")
    if mount.type in SMB_TYPES:
        return mount.option("nobrl") is not None
    if mount.type == "lustre":
        return mount.option("localflock") is not None
    return mount.type == "gpfs" or mount.filesystem.shares_locks is False


def _number(mount: Mount, name: str, default: float) -> float:
    value = mount.option(name)
    try:
        return float(value) if value else default
    except ValueError:
        return default


def _nfs(mount: Mount) -> list[Note]:
    return [*_nfs_version(mount), *_nfs_lock(mount), *_nfs_cache(mount)]


def _nfs_version(mount: Mount) -> list[Note]:
    version = mount.option("vers") or mount.option("nfsvers") or ""
    found = [Note(mount.type, "info", "the server's clock stamps files: leases are measured by it, whatever hosts say")]
    if version.startswith(("2", "3")):
        text = "a rename that a restarted server had done may be reported as failed; a node that dies keeps its lock"
        found.append(Note(f"vers={version}", "warning", f"{text} for minutes: NFS 4.1 or later is better"))
    elif version:
        text = "renames are done once (sessions)" if version not in ("4", "4.0") else "no sessions: prefer 4.1 or later"
        found.append(Note(f"vers={version}", "info", f"{text}; a node that dies keeps its lock for about 90 s"))
    if mount.option("soft") is not None or mount.option("softerr") is not None:
        text = "operations give up while the server is away, and may be done after all: mount with hard"
        found.append(Note("soft", "warning", text))
    return found


def _nfs_lock(mount: Mount) -> list[Note]:
    local = mount.option("local_lock")
    if mount.option("nolock") is not None:
        return [Note("nolock", "warning", _NODE_LOCAL)]
    if local in ("flock", "all"):
        return [Note(f"local_lock={local}", "warning", _NODE_LOCAL)]
    if local is not None:
        return [Note(f"local_lock={local}", "info", "flock goes to the server and excludes other nodes")]
    return []


def _nfs_cache(mount: Mount) -> list[Note]:
    found = []
    if mount.option("nosharecache") is not None:
        text = "two such mounts of one export on this host do not see each other's writes, not even under a lock"
        found.append(Note("nosharecache", "warning", f"{text}: let all processes of a host use one mount"))
    if mount.option("noac") is not None:
        found.append(Note("noac", "info", "nothing is cached: always fresh, and slow"))
    for name in ("actimeo", "acregmin", "acregmax", "acdirmin", "acdirmax"):
        value = mount.option(name)
        if value:
            found.append(Note(f"{name}={value}", "info", _CACHED[name].format(value)))
    if not any(note.option.startswith(("ac", "noac")) for note in found):
        text = "defaults: stat may be up to 60 s old; the queue opens files and directories anew where it matters"
        found.append(Note("acregmin..acdirmax", "info", text))
    lookups = mount.option("lookupcache")
    meaning = _LOOKUPS.get(lookups or "all", "unknown to this version")
    found.append(Note(f"lookupcache={lookups or 'all'}", "info", meaning))
    return found


def _lustre(mount: Mount) -> list[Note]:
    if mount.option("localflock") is not None:
        return [Note("localflock", "warning", _NODE_LOCAL)]
    if mount.option("noflock") is not None:
        return [Note("noflock", "warning", "flock fails with ENOSYS: mount with -o flock, or use lock='lease'")]
    if mount.option("flock") is not None:
        return [Note("flock", "info", "flock excludes between all nodes that also mount with flock")]
    return [Note("flock unset", "info", "the client's default decides: on for recent clients, off for old")]


def _smb(mount: Mount) -> list[Note]:
    found = []
    if mount.option("nobrl") is not None:
        found.append(Note("nobrl", "warning", _NODE_LOCAL))
    if mount.option("nocase") is not None:
        found.append(Note("nocase", "warning", "ids that differ only in case are one file here"))
    return found


_NODE_LOCAL = (
    "flock excludes only processes of this node: between nodes FIFO order weakens, and an id that two nodes put at "
    "the same moment may be queued twice; nothing is lost"
)
_MOUNT_LOCAL = (
    "flock excludes only the processes of one mount: let all processes of a host use the same one; between hosts or "
    "mounts FIFO order weakens, and an id that is put twice at the same moment may be queued twice; nothing is lost"
)
_CACHED = {
    "actimeo": "attributes of files and directories are believed for {} s",
    "acregmin": "a file's attributes are believed for at least {} s",
    "acregmax": "a file's attributes are believed for at most {} s",
    "acdirmin": "a directory's attributes are believed for at least {} s",
    "acdirmax": "a directory's attributes are believed for at most {} s",
}
_LOOKUPS = {
    "all": "found and missing names are remembered; the queue opens a directory anew where that would mislead it",
    "pos": "only found names are remembered",
    "positive": "only found names are remembered",
    "none": "no names are remembered: fresher, and more round trips",
}
_BY_TYPE: dict[str, Callable[[Mount], list[Note]]] = {
    **dict.fromkeys(NFS_TYPES, _nfs),
    **dict.fromkeys(SMB_TYPES, _smb),
    "lustre": _lustre,
}
