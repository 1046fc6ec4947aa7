"""Serve as a peer process: one task a line on stdin, one answer a line on stdout, both JSON.

    {"task": "status", "arguments": {"directory": "/mnt/q", "name": "x"}}   ->   {"result": ...}
                                                                    or   {"error": "...", "errno": 2}

Only the functions in `TASKS` and the methods of `QueueTasks` can be named. An armed task first answers
``{"result": "ready"}`` and starts ``in_s`` seconds after the next line, so that several peers start at one instant.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import fsqueue
from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.disk.mounts import mount_of
from fsqueue.operate.doctor.probes import create_new
from fsqueue.operate.doctor.queue_tasks import QueueTasks

LOCKED = "locked"
MARKER = "inside"
_PAUSE_S = 0.0005
_FEWEST_ROUNDS = 20
_PATIENCE_S = 120.0  # a server that has just started grants no locks for 90 s
_LEAD_S = 0.0001  # whoever wins rests, so that the others catch up and race for the next one

ops = fileops.current()


def hello(directory: str) -> dict[str, Any]:
    """Say who the peer is, and what it sees under the directory."""
    mount = mount_of(directory)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "fsqueue": fsqueue.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "filesystem": mount.type if mount else None,
        "source": mount.source if mount else None,
        "mount_point": mount.point if mount else None,
        "mount_options": list(mount.options) if mount else [],
        "present": os.path.isdir(directory),
        "time": ops.time(),
    }


def lock_rounds(directory: str, key: str, rounds: int, limit_s: float) -> dict[str, int]:
    """Take the lock again and again; inside, look for another's marker and add one to a counter.

    The counter is in the locked file and read through the locked descriptor, as the queue's order is. Ends after
    limit_s seconds where that is sooner, though not before a few rounds, however slow they are.
    """
    found = {"rounds": 0, "waits": 0, "overlaps": 0}
    soon = ops.monotonic() + limit_s
    late = soon + _PATIENCE_S
    with _opened(directory) as folder, ExitStack() as stack:
        fd = ops.open(LOCKED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=folder.fd)
        stack.callback(ops.close, fd)
        while found["rounds"] < rounds and ops.monotonic() < (soon if found["rounds"] >= _FEWEST_ROUNDS else late):
            if ops.lock(fd):
                found["overlaps"] += _occupy(folder, fd)
                ops.unlock(fd)
                found["rounds"] += 1
            else:
                found["waits"] += 1
            ops.sleep(_PAUSE_S * ops.random())
    return found


def _opened(*path: str) -> closing[Directory]:
    return closing(Directory(ops, os.path.join(*path)))


def _occupy(folder: Directory, fd: int) -> bool:
    """Count one visit; True where somebody else was inside meanwhile."""
    alone = create_new(ops, folder, MARKER)
    counted = read_counter(ops.pread(fd, 32, 0))
    ops.sleep(_PAUSE_S * ops.random())
    ops.pwrite_all(fd, b"%020d" % (counted + 1), 0)
    return not (alone and ops.remove(folder.fd, MARKER))


def read_counter(data: bytes) -> int:
    """Read a counter as `lock_rounds` writes it; 0 where the file is empty or torn."""
    return int(data) if data.isdigit() else 0


def rename_race(directory: str, key: str, count: int) -> list[int]:
    """Try to take each of count files by a rename to a name of one's own; return the numbers of those won."""
    won: list[int] = []
    with _opened(directory, "from") as source, _opened(directory, "to") as target:
        for number in range(count):
            if _renamed(source, str(number), target, f"{number}@{key}"):
                won.append(number)
                ops.sleep(_LEAD_S)
    return won


def create_race(directory: str, key: str, count: int) -> list[int]:
    """Try to create each of count names with O_EXCL; return the numbers of those created."""
    won: list[int] = []
    with _opened(directory, "made") as folder:
        for number in range(count):
            if create_new(ops, folder, str(number)):
                won.append(number)
                ops.sleep(_LEAD_S)
    return won


def make(directory: str, name: str) -> None:
    """Create a file in the way that put does: elsewhere, then renamed to its place."""
    unfinished = f".{name}.{os.getpid()}"
    with _opened(directory) as folder:
        ops.close(ops.create(folder.fd, unfinished, b"x"))
        ops.rename(unfinished, name, src_dir_fd=folder.fd, dst_dir_fd=folder.fd)


def rename(directory: str, name: str, new_name: str) -> bool:
    """Rename a file; False where it is not there."""
    with _opened(directory) as folder:
        return _renamed(folder, name, folder, new_name)


def _renamed(source: Directory, name: str, target: Directory, new_name: str) -> bool:
    try:
        ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
    except FileNotFoundError:
        return False
    return True


def touch(directory: str, name: str) -> dict[str, float]:
    """Stamp a file and read the stamp back; with it, what this host's clock says."""
    before = ops.time()
    ops.utime(os.path.join(directory, name))
    host_s = (before + ops.time()) / 2
    stamp_ns = status(directory, name, fresh=True) or 0
    return {"stamp_ns": stamp_ns, "skew_s": stamp_ns / 1e9 - host_s}


def status(directory: str, name: str, fresh: bool) -> int | None:
    """Return a file's mtime in ns, None where it seems not to exist; fresh: by open and fstat instead of stat."""
    path = os.path.join(directory, name)
    try:
        if not fresh:
            return ops.stat(path).st_mtime_ns
        fd = ops.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return ops.fstat(fd).st_mtime_ns
    finally:
        ops.close(fd)


def listing(directory: str) -> list[str]:
    """List a directory that is opened anew."""
    with _opened(directory) as folder:
        return folder.listing()


TASKS: dict[str, Callable[..., Any]] = {
    task.__name__: task for task in (hello, lock_rounds, rename_race, create_race, make, rename, touch, status, listing)
}


def serve() -> None:
    """Run tasks until stdin ends."""
    queues = QueueTasks()
    try:
        while line := sys.stdin.readline():
            message = json.loads(line)
            if message.get("armed"):
                _answer({"result": "ready"})
                go = sys.stdin.readline()
                if not go:
                    return
                ops.sleep(max(0.0, json.loads(go)["in_s"]))
            _answer(_run(queues, message["task"], message["arguments"]))
    finally:
        queues.close_all()


def _run(queues: QueueTasks, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a task's answer; a failure is an answer too."""
    try:
        task = TASKS[name] if name in TASKS else queues.task(name)
        return {"result": task(**arguments)}
    except OSError as error:
        return {"error": f"{name}: {error}", "errno": error.errno}
    except Exception as error:
        return {"error": f"{name}: {type(error).__name__}: {error}"}


def _answer(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Ctrl-C reaches the whole terminal's group: the one who started this process ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve()
