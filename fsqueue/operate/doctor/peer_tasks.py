"""Serve as a peer process: one task a line on stdin, one answer a line on stdout, both JSON.

    {"number": 7, "task": "now", "arguments": {}}   ->   {"number": 7, "result": ...}
                                              or   {"number": 7, "error": "...", "errno": 2}

Only functions of a table can be named. An armed task first answers ``{"number": 7, "result": "ready"}`` and starts
``in_s`` seconds after the next line, so that several peers start at one instant.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Any

from fsqueue.disk import fileops
from fsqueue.disk.directory import Directory
from fsqueue.operate.doctor.probes import create_new

LOCKED = "locked"
COUNTER_BYTES = 20
_PAUSE_S = 0.0005
_FEWEST_ROUNDS = 5
_PATIENCE_S = 20.0
_LOOK_S = 0.02
_LEAD_S = 0.0001  # whoever wins rests, so that the others catch up and race for the next one
_READY = {"result": "ready"}

ops = fileops.current()


def now() -> tuple[float, str]:
    """Return this host's monotonic clock, and what tells whether another process reads the same one."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            return ops.monotonic(), f.read().strip()
    except OSError:
        return ops.monotonic(), ""


def lock_rounds(
    directory: str,
    key: str,
    rounds: int,
    limit_s: float,
    name: str = LOCKED,
    stay_s: float = _PAUSE_S,
    anew: bool = False,
) -> dict[str, Any]:
    """Take the lock again and again; inside, add one to the counter in the locked file.

    Ends after limit_s seconds where that is sooner, though not before a few rounds, if they come in bearable time.

    Args:
        stay_s: seconds to stay inside, so that a visit is longer than what two clocks may differ by.
        anew: read the counter through a descriptor opened under the lock, not through the locked one, which is kept.

    Returns:
        how many rounds were done, how often the lock was taken, the times of entering and leaving of each visit, and
        what was written: where two wrote the same, one of the updates was lost.
    """
    waits = 0
    written: list[int] = []
    visits: list[tuple[float, float]] = []
    soon = ops.monotonic() + limit_s
    late = soon + _PATIENCE_S
    with _opened(directory) as folder, ExitStack() as stack:
        fd = _opened_once_seen(folder, name)
        stack.callback(ops.close, fd)
        while len(visits) < rounds and ops.monotonic() < (soon if len(visits) >= _FEWEST_ROUNDS else late):
            if ops.lock(fd):
                entered = ops.monotonic()
                written.append(_count(folder, name, fd, stay_s, anew))
                visits.append((entered, ops.monotonic()))
                ops.unlock(fd)
            else:
                waits += 1
            ops.sleep(_PAUSE_S * ops.random())
    return {"rounds": len(visits), "waits": waits, "visits": visits, "written": written}


def _opened(*path: str) -> closing[Directory]:
    return closing(Directory(ops, os.path.join(*path)))


def _opened_once_seen(folder: Directory, name: str) -> int:
    """Open a file that another mount has just made; creating it again may be refused for a while."""
    deadline = ops.monotonic() + _PATIENCE_S
    while True:
        try:
            return ops.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=folder.fd)
        except OSError:
            if ops.monotonic() >= deadline:
                raise
        ops.sleep(_LOOK_S)


def _count(folder: Directory, name: str, locked_fd: int, stay_s: float, anew: bool) -> int:
    fd = ops.open(name, os.O_RDWR | os.O_CLOEXEC, dir_fd=folder.fd) if anew else locked_fd
    try:
        if anew and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        count = read_counter(ops.pread(fd, 2 * COUNTER_BYTES, 0)) + 1
        ops.sleep(stay_s * (0.5 + ops.random() / 2))
        ops.pwrite_all(fd, b"%0*d" % (COUNTER_BYTES, count), 0)
        if anew:
            ops.fsync(fd)  # as the engine does: GlusterFS writes in the background
        return count
    finally:
        if anew:
            ops.close(fd)


def read_counter(data: bytes) -> int:
    """Read a counter as `lock_rounds` writes it; 0 where the file is empty or torn."""
    return int(data) if data.isdigit() else 0


def rename_race(directory: str, key: str, count: int, limit_s: float) -> dict[str, Any]:
    """Try to take each of count files by a rename to a name of one's own."""
    with _opened(directory, "from") as source, _opened(directory, "to") as target:

        def take(number: int) -> bool:
            ops.rename(str(number), f"{number}@{key}", src_dir_fd=source.fd, dst_dir_fd=target.fd)
            return True

        return _raced(take, count, limit_s)


def create_race(directory: str, key: str, count: int, limit_s: float) -> dict[str, Any]:
    """Try to create each of count names with O_EXCL."""
    with _opened(directory, "made") as folder:
        return _raced(lambda number: create_new(ops, folder, str(number)), count, limit_s)


def _raced(take: Callable[[int], bool], count: int, limit_s: float) -> dict[str, Any]:
    """Return the numbers won, how many were tried until the time was over, and the other errors than ENOENT, by name.

    Those who lose a race are told different things: only a look tells what became of the file.
    """
    won: list[int] = []
    heard: dict[str, int] = {}
    tried = 0
    deadline = ops.monotonic() + limit_s
    while tried < count and (tried == 0 or ops.monotonic() < deadline):
        try:
            if take(tried):
                won.append(tried)
                ops.sleep(_LEAD_S)
        except FileNotFoundError:
            pass
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            heard[name] = heard.get(name, 0) + 1
        tried += 1
    return {"won": won, "tried": tried, "heard": heard}


TASKS: dict[str, Callable[..., Any]] = {task.__name__: task for task in (now, lock_rounds, rename_race, create_race)}


def serve(tasks: Mapping[str, Callable[..., Any]] = TASKS) -> None:
    """Run tasks until stdin ends."""
    # Ctrl-C reaches the whole terminal's group: the one who started this process ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    armed: dict[str, Any] | None = None
    while line := sys.stdin.readline():
        message = json.loads(line)
        if "in_s" not in message:
            armed = message if message.get("armed") else None
            _answer({"number": message.get("number"), **(_READY if armed else _run(tasks, message))})
        elif armed is not None:
            ops.sleep(max(0.0, message["in_s"]))
            _answer({"number": armed.get("number"), **_run(tasks, armed)})


def _run(tasks: Mapping[str, Callable[..., Any]], message: dict[str, Any]) -> dict[str, Any]:
    """Return a task's answer; a failure is an answer too."""
    name = message["task"]
    try:
        if name not in tasks:
            raise ValueError(f"no such task: {name!r}")
        return {"result": tasks[name](**message["arguments"])}
    except OSError as error:
        return {"error": f"{name}: {error}", "errno": error.errno}
    except Exception as error:
        return {"error": f"{name}: {type(error).__name__}: {error}"}


def _answer(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    serve()
