"""What a peer process does: one task a line on stdin, one answer a line on stdout, both JSON.

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
from typing import Any

import fsqueue
from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.disk.mounts import mount_of
from fsqueue.operate.doctor.queue_tasks import QueueTasks

LOCKED = "locked"
MARKER = "inside"
_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_PAUSE_S = 0.0005
_FEWEST_ROUNDS = 20
_PATIENCE_S = 120.0  # a server that has just started grants no locks for 90 s
_LEAD_S = 0.0001  # whoever wins rests, so that the others catch up and race for the next one

ops = fileops.current()


def hello(directory: str) -> dict[str, Any]:
    """Who the peer is, and what it sees under the directory."""
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
    place = Directory(ops, directory)
    fd = ops.open(LOCKED, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=place.fd)
    soon = ops.monotonic() + limit_s
    late = soon + _PATIENCE_S
    try:
        while found["rounds"] < rounds and ops.monotonic() < (soon if found["rounds"] >= _FEWEST_ROUNDS else late):
            if not ops.lock(fd):
                found["waits"] += 1
                ops.sleep(_PAUSE_S * ops.random())
                continue
            found["overlaps"] += _occupy(place, fd)
            ops.unlock(fd)
            found["rounds"] += 1
            ops.sleep(_PAUSE_S * ops.random())
    finally:
        ops.close(fd)
        place.close()
    return found


def _occupy(place: Directory, fd: int) -> bool:
    """Count one visit; True where somebody else was inside meanwhile."""
    try:
        ops.close(ops.open(MARKER, _EXCLUSIVE, 0o666, dir_fd=place.fd))
        alone = True
    except FileExistsError:
        alone = False
    counted = read_counter(ops.pread(fd, 32, 0))
    ops.sleep(_PAUSE_S * ops.random())
    ops.pwrite_all(fd, b"%020d" % (counted + 1), 0)
    return not (alone and ops.remove(place.fd, MARKER))


def read_counter(data: bytes) -> int:
    """A counter as `lock_rounds` writes it; 0 where the file is empty or torn."""
    return int(data) if data.isdigit() else 0


def rename_race(directory: str, key: str, count: int) -> list[int]:
    """Try to take each of count files by a rename to a name of one's own; the numbers of those that were won."""
    source, target = (Directory(ops, os.path.join(directory, name)) for name in ("from", "to"))
    won: list[int] = []
    for number in range(count):
        try:
            ops.rename(str(number), f"{number}@{key}", src_dir_fd=source.fd, dst_dir_fd=target.fd)
            won.append(number)
            ops.sleep(_LEAD_S)
        except FileNotFoundError:
            continue
    source.close()
    target.close()
    return won


def create_race(directory: str, key: str, count: int) -> list[int]:
    """Try to create each of count names with O_EXCL; the numbers of those that were created."""
    place = Directory(ops, os.path.join(directory, "made"))
    won: list[int] = []
    for number in range(count):
        try:
            ops.close(ops.open(str(number), _EXCLUSIVE, 0o666, dir_fd=place.fd))
            won.append(number)
            ops.sleep(_LEAD_S)
        except FileExistsError:
            continue
    place.close()
    return won


def make(directory: str, name: str) -> None:
    """Create a file in the way that put does: elsewhere, then renamed to its place."""
    place = Directory(ops, directory)
    ops.close(ops.create(place.fd, f".{name}.{os.getpid()}", b"x"))
    ops.rename(f".{name}.{os.getpid()}", name, src_dir_fd=place.fd, dst_dir_fd=place.fd)
    place.close()


def rename(directory: str, name: str, new_name: str) -> bool:
    """Rename a file; False where it is not there."""
    place = Directory(ops, directory)
    try:
        ops.rename(name, new_name, src_dir_fd=place.fd, dst_dir_fd=place.fd)
        return True
    except FileNotFoundError:
        return False
    finally:
        place.close()


def touch(directory: str, name: str) -> dict[str, float]:
    """Stamp a file and read the stamp back; with it, what this host's clock says."""
    before = ops.time()
    ops.utime(os.path.join(directory, name))
    host_s = (before + ops.time()) / 2
    stamp_ns = status(directory, name, fresh=True) or 0
    return {"stamp_ns": stamp_ns, "skew_s": stamp_ns / 1e9 - host_s}


def status(directory: str, name: str, fresh: bool) -> int | None:
    """A file's mtime in ns, None where it seems not to exist; fresh: by open and fstat instead of stat."""
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
    """The names in a directory that is opened anew."""
    place = Directory(ops, directory)
    try:
        return place.listing()
    finally:
        place.close()


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
    """A task's answer; a failure is an answer too."""
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
