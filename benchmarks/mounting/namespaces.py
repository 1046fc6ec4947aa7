"""Run a filesystem's mounts, servers and processes in namespaces of their own, which take all of them with them."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

_NODE_A, _NODE_B = "node-a", "node-b"
_ALL = ("unshare", "--mount", "--pid", "--net", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
_NODE = ("unshare", "--mount", "--pid", "--uts", "--fork", "--kill-child", "--mount-proc")
_RENAMED = f'hostname {_NODE_B} && exec "$@"'
_SET_FLAGS, _SET_ADDRESS, _UP = 0x8914, 0x8916, 0x1  # netdevice(7): SIOCSIFFLAGS, SIOCSIFADDR, IFF_UP
ADDRESS = "10.0.0.1"


def hindrance() -> str | None:
    """Say why nothing can be mounted here; None where it can."""
    if os.geteuid() != 0:
        return "mounting needs root"
    if shutil.which(_ALL[0]) is None:
        return "there is no unshare command (util-linux)"
    done = subprocess.run([*_ALL, "true"], capture_output=True, text=True, check=False)
    return f"no namespaces can be made: {done.stderr.strip()}" if done.returncode else None


def apart(command: Sequence[str]) -> list[str]:
    """Return a command that runs another one as the first process of new namespaces; its end is the end of all."""
    return [*_ALL, *command]


def on_second_node(command: Sequence[str]) -> list[str]:
    """Return a command that runs another one as on a second node: a host name and pids of its own, the same mounts."""
    return [*_NODE, "sh", "-c", _RENAMED, "sh", *command]


def furnish(work: Path) -> None:
    """Make the new namespaces habitable: a name, a loopback device that is up, names for both nodes, an empty /run.

    Nothing of it is seen outside. The device gets a second address, `ADDRESS`, for servers that refuse 127.0.0.1.
    """
    socket.sethostname(_NODE_A)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for device, address in ((b"lo", "127.0.0.1"), (b"lo:1", ADDRESS)):
            bound = struct.pack("16shH4s8x", device, socket.AF_INET, 0, socket.inet_aton(address))
            fcntl.ioctl(any_socket, _SET_ADDRESS, bound)
            fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", device, _UP))
    hosts = work / "hosts"
    hosts.write_text(f"127.0.0.1 localhost {_NODE_A} {_NODE_B}\n", encoding="utf-8")
    subprocess.run(["mount", "--bind", str(hosts), "/etc/hosts"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)


def hide(work: Path, directory: str) -> None:
    """Put an empty directory over one of the system's, for a server that keeps its state there."""
    fresh = work / directory.strip("/").replace("/", "-")
    fresh.mkdir()
    Path(directory).mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", str(fresh), directory], check=True)


def child_of(pid: int) -> int | None:
    """Return the only child of a process, by its pid here; None where it has none (yet)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return None
    return int(children[0]) if children else None
