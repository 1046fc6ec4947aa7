"""Network filesystems: a server on this host's loopback device, and two clients of it."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from mounting.namespaces import ADDRESS, hide
from mounting.tools import Kind, made, pair, run, serve, succeeds, until

_SSH_PORT = "2022"


def sshfs(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    store, key, host_key = made(work / "store"), work / "key", work / "host_key"
    for path in (key, host_key):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path)
    config, log = work / "sshd_config", work / "sshd.log"
    config.write_text(
        f"Port {_SSH_PORT}\nListenAddress 127.0.0.1\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\n"
        "StrictModes no\nUsePAM no\nPermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n",
        encoding="ascii",
    )
    made(Path("/run/sshd"))
    serve(log, "sshd", "-D", "-e", "-f", config)
    options = f"IdentityFile={key},UserKnownHostsFile=/dev/null,StrictHostKeyChecking=no,port={_SSH_PORT}"
    for point in (a, b):
        mount = ("sshfs", "-o", options, f"root@127.0.0.1:{store}", point)
        until("an sshd that answers", lambda mount=mount: succeeds(*mount), log)  # type: ignore[misc]
    return a, b


def glusterfs(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    for directory in ("/var/lib/glusterd", "/var/log/glusterfs"):
        hide(work, directory)
    made(Path("/run/gluster"))
    log = work / "glusterd.log"
    serve(log, "glusterd", "--no-daemon", "--log-file", log)
    until("a glusterd that answers", lambda: succeeds("gluster", "--mode=script", "volume", "info"), log)
    host = os.uname().nodename
    run("gluster", "--mode=script", "volume", "create", "q", f"{host}:{work / 'brick'}", "force")
    run("gluster", "--mode=script", "volume", "start", "q")
    for point in (a, b):
        run("mount", "-t", "glusterfs", f"{host}:/q", point)
    return a, b


def moosefs(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    state, store = made(work / "state"), made(work / "store")
    common = f"WORKING_USER = root\nWORKING_GROUP = root\nDATA_PATH = {state}\n"
    (work / "hdd.cfg").write_text(f"{store}\n", encoding="ascii")
    (work / "exports.cfg").write_text("* / rw,alldirs,admin,maproot=0:0\n", encoding="ascii")
    (work / "master.cfg").write_text(f"{common}EXPORTS_FILENAME = {work / 'exports.cfg'}\n", encoding="ascii")
    chunks = (
        f"{common}HDD_CONF_FILENAME = {work / 'hdd.cfg'}\nMASTER_HOST = {ADDRESS}\nHDD_LEAVE_SPACE_DEFAULT = 100MiB\n"
    )
    (work / "chunkserver.cfg").write_text(chunks, encoding="ascii")
    (state / "metadata.mfs").write_text("MFSM NEW", encoding="ascii")  # as the package's own empty one
    log = work / "moosefs.log"
    serve(log, "mfsmaster", "-a", "-f", "-c", work / "master.cfg", "start")
    serve(log, "mfschunkserver", "-f", "-c", work / "chunkserver.cfg", "start")
    for point in (a, b):
        mount = ("mfsmount", "-H", ADDRESS, point)
        until("a MooseFS master that answers", lambda mount=mount: succeeds(*mount), log)  # type: ignore[misc]
    until("a chunk server that takes data", lambda: _takes_data(a), log)
    return a, b


def _takes_data(directory: Path) -> bool:
    """Tell whether a file can be written by now."""
    probe = directory / "probe"
    try:
        probe.write_text("x", encoding="ascii")
        probe.unlink()
    except OSError:
        return False
    return True


def ceph(work: Path) -> tuple[Path, Path]:
    """One monitor, one object server that keeps its objects in memory, one metadata server; nobody authenticates.

    A client's first look at what another one has made waits for the metadata server's next tick, and so does an fsync.
    That comes every five seconds by default, here ten times a second, so that the row takes minutes and not an hour.
    """
    a, b = pair(work)
    config, log, identity = work / "ceph.conf", work / "ceph.log", str(uuid.uuid4())
    config.write_text(_CEPH.format(fsid=identity, work=work, log=log), encoding="ascii")
    use = ("-c", config)
    run("monmaptool", "--create", "--add", "a", "127.0.0.1:6789", "--fsid", identity, work / "monmap")
    for daemon in ("mon-a", "osd-0", "mds-a"):
        made(work / daemon)
    run("ceph-mon", *use, "--mkfs", "-i", "a", "--monmap", work / "monmap")
    serve(log, "ceph-mon", *use, "-f", "-i", "a")
    ask = ("ceph", *use, "--connect-timeout", "30")
    until("a Ceph monitor that answers", lambda: succeeds(*ask, "mon", "stat"), log)
    disk = str(uuid.uuid4())
    run(*ask, "osd", "new", disk)
    run("ceph-osd", *use, "-i", "0", "--mkfs", "--osd-uuid", disk)
    serve(log, "ceph-osd", *use, "-f", "-i", "0")
    for pool in ("data", "metadata"):
        run(*ask, "osd", "pool", "create", pool, "8")
    run(*ask, "fs", "new", "q", "metadata", "data")
    serve(log, "ceph-mds", *use, "-f", "-i", "a")
    until("an active metadata server", lambda: "up:active" in run(*ask, "mds", "stat"), log)
    for point in (a, b):
        run("ceph-fuse", *use, point)
    return a, b


_CEPH = """\
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:6789
public addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
osd max object name len = 256
run dir = {work}
admin socket = {work}/$cluster-$name-$pid.asok
log file = {log}
mon data = {work}/mon-$id
osd data = {work}/osd-$id
mds data = {work}/mds-$id
memstore device bytes = 1073741824
mon pg warn min per osd = 0
mon data avail crit = 1
setuser match path = /
mds tick interval = 0.1
"""


KINDS = (
    Kind("sshfs", sshfs, ("sshfs", "sshd", "ssh-keygen"), ("sshfs", "openssh-server")),
    Kind("glusterfs", glusterfs, ("glusterd", "gluster", "glusterfs"), ("glusterfs-server", "glusterfs-client")),
    Kind(
        "moosefs",
        moosefs,
        ("mfsmaster", "mfschunkserver", "mfsmount"),
        ("moosefs-client", "moosefs-master", "moosefs-chunkserver"),
    ),
    Kind(
        "ceph-fuse",
        ceph,
        ("ceph-fuse", "ceph", "ceph-mon", "ceph-osd", "ceph-mds", "monmaptool"),
        ("ceph-fuse", "ceph-common", "ceph-mon", "ceph-osd", "ceph-mds"),
    ),
)
