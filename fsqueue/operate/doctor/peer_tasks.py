"""Serve as a peer process: one task a line on stdin, one answer a line on stdout, both JSON.

    {"task": "create_race", "arguments": {"directory": "/mnt/q", "key": "A", "count": 9}}   ->   {"result": ...}
                                                                                  or   {"error": "...", "errno": 2}

Only the functions in `TASKS` can be named; `learn` adds those of whoever started the peer. An armed task first answers
``{"result": "ready"}`` and starts ``in_s`` seconds after the next line, so that several peers start at one instant.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.operate.doctor.probes import create_new

LOCKED = "locked"
MARKER = "inside"
_PAUSE_S = 0.0005
_FEWEST_ROUNDS = 20
_PATIENCE_S = 120.0  # a server that has just started grants no locks for 90 s
_LEAD_S = 0.0001  # whoever wins rests, so that the others catch up and race for the next one

ops = fileops.current()


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


def _renamed(source: Directory, name: str, target: Directory, new_name: str) -> bool:
    try:
        ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
    except FileNotFoundError:
        return False
    return True


def learn(source: str) -> None:
    """Take up the tasks that a module's source has in a table of its own called ``TASKS``."""
    module: dict[str, Any] = {}
    exec(source, module)
    TASKS.update(module["TASKS"])


TASKS: dict[str, Callable[..., Any]] = {task.__name__: task for task in (lock_rounds, rename_race, create_race, learn)}


def serve() -> None:
    """Run tasks until stdin ends."""
    while line := sys.stdin.readline():
        message = json.loads(line)
        if message.get("armed"):
            _answer({"result": "ready"})
            go = sys.stdin.readline()
            if not go:
                return
            ops.sleep(max(0.0, json.loads(go)["in_s"]))
        _answer(_run(message["task"], message["arguments"]))


def _run(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a task's answer; a failure is an answer too."""
    try:
        if name not in TASKS:
            raise ValueError(f"no such task: {name!r}")
        return {"result": TASKS[name](**arguments)}
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
