"""Find out what one process can about a filesystem, in a scratch directory.

Each probe makes and removes its own files, and ends after some seconds however slow the mount is. None sleeps: where
a timestamp has to move on, a file is touched until it does.
"""

from __future__ import annotations

import errno
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.format import names

NAME_BYTES_NEEDED = names.STEM_LIMIT + len("@") + names.OWNER_NAME_LIMIT + len(".4194304.abcdef") + len(names.SUFFIX)
_NAME_BYTES_TRIED = 255
_CLOCK_READS = 30
_FEWEST_READS = 3
_STEPS_WANTED = 20
_LIMIT_S = 3.0
_WHOLE_SECONDS_S = 2.0  # the longest step of a filesystem that keeps whole seconds: FAT's
_COARSE_TICK_S = 0.011
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES)
_EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


@dataclass(frozen=True)
class RenameFindings:
    """Say what a rename does to a file's times."""

    keeps_mtime: bool
    updates_ctime: bool


@dataclass(frozen=True)
class ClockFindings:
    """Compare the clock that stamps files with this host's.

    Attributes:
        stamped_by: "this_host" where nothing contradicts it on a local filesystem, "another_clock" where the
            stamps lie outside what this host's clock and the filesystem's steps allow, "undecided" on a remote one
            whose clock agrees.
        skew_s: the filesystem's clock minus this host's; exact to uncertainty_s.
        write_skew_s: the same for the stamp that a write makes.
        went_backwards: how many of the touches got a time before the one of the touch before.
    """

    stamped_by: Literal["this_host", "another_clock", "undecided"]
    skew_s: float
    write_skew_s: float
    uncertainty_s: float
    went_backwards: int
    reads: int


@dataclass(frozen=True)
class GranularityFindings:
    """Hold the smallest step seen between two mtimes, in seconds; None where it did not move within some seconds."""

    file_s: float | None
    directory_s: float | None


@dataclass(frozen=True)
class NameFindings:
    """Say what names may be.

    Attributes:
        longest_bytes: the longest name that could be made, at most 255 tried.
        needed_bytes: the longest name that a queue may make.
    """

    case_insensitive: bool
    longest_bytes: int
    needed_bytes: int = NAME_BYTES_NEEDED


def hard_links(ops: FileOps, directory: Directory) -> bool:
    """Tell whether a file can be given a second name."""
    _make(ops, directory, "link-source")
    try:
        ops.link("link-source", "link-target", src_dir_fd=directory.fd, dst_dir_fd=directory.fd)
        return True
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    finally:
        ops.remove(directory.fd, "link-target")
        ops.remove(directory.fd, "link-source")


def exclusive_create(ops: FileOps, directory: Directory) -> bool:
    """Tell whether O_EXCL refuses a name that exists."""
    _make(ops, directory, "exclusive")
    try:
        return not create_new(ops, directory, "exclusive")
    finally:
        ops.remove(directory.fd, "exclusive")


def create_new(ops: FileOps, directory: Directory, name: str) -> bool:
    """Create an empty file with O_EXCL; return False where the name exists."""
    try:
        ops.close(ops.open(name, _EXCLUSIVE, 0o666, dir_fd=directory.fd))
    except FileExistsError:
        return False
    return True


def rename_times(ops: FileOps, source: Directory, target: Directory) -> RenameFindings:
    """Find out what a rename between two directories does to mtime and ctime."""
    _make(ops, source, "renamed")
    before = _fresh_status(ops, source, "renamed")
    _wait_for_tick(ops, source, before.st_ctime_ns)
    ops.rename("renamed", "renamed", src_dir_fd=source.fd, dst_dir_fd=target.fd)
    after = _fresh_status(ops, target, "renamed")
    ops.remove(target.fd, "renamed")
    return RenameFindings(after.st_mtime_ns == before.st_mtime_ns, after.st_ctime_ns > before.st_ctime_ns)


def clock(ops: FileOps, directory: Directory, remote: bool) -> ClockFindings:
    """Touch a file and read its mtime back, again and again, between two looks at this host's clock."""
    _make(ops, directory, "clock")
    looks: list[tuple[float, float]] = []
    stamps: list[int] = []
    deadline = ops.monotonic() + _LIMIT_S
    while len(looks) < _FEWEST_READS or (len(looks) < _CLOCK_READS and ops.monotonic() < deadline):
        before = ops.time()
        ops.utime("clock", dir_fd=directory.fd, follow_symlinks=False)
        looks.append((before, ops.time()))
        stamps.append(_fresh_status(ops, directory, "clock").st_mtime_ns)
    write_skew_s = _write_skew_s(ops, directory)
    ops.remove(directory.fd, "clock")
    tick_s = _COARSE_TICK_S if any(stamp_ns % 10**9 for stamp_ns in stamps) else _WHOLE_SECONDS_S
    outside = sum(
        not before - tick_s <= stamp_ns / 1e9 <= after for stamp_ns, (before, after) in zip(stamps, looks, strict=True)
    )
    stamped_by: Literal["this_host", "another_clock", "undecided"] = "undecided" if remote else "this_host"
    if outside > len(looks) // 2:
        stamped_by = "another_clock"
    return ClockFindings(
        stamped_by=stamped_by,
        skew_s=statistics.median(
            stamp_ns / 1e9 - (before + after) / 2 for stamp_ns, (before, after) in zip(stamps, looks, strict=True)
        ),
        write_skew_s=write_skew_s,
        uncertainty_s=statistics.median(after - before for before, after in looks) / 2 + tick_s,
        went_backwards=sum(1 for earlier, later in pairwise(stamps) if later < earlier),
        reads=len(looks),
    )


def granularity(ops: FileOps, source: Directory, target: Directory) -> GranularityFindings:
    """Find the smallest steps in which a file's and a directory's mtime advance, with the time of a change in them."""
    _make(ops, source, "step")

    def touched() -> int:
        ops.utime("step", dir_fd=source.fd, follow_symlinks=False)
        return _fresh_status(ops, source, "step").st_mtime_ns

    file_s = _smallest_step_s(ops, touched)
    places = [source, target]

    def moved() -> int:
        ops.rename("step", "step", src_dir_fd=places[0].fd, dst_dir_fd=places[1].fd)
        places.reverse()
        return source.changed_at_ns()

    directory_s = _smallest_step_s(ops, moved)
    ops.remove(places[0].fd, "step")
    return GranularityFindings(file_s, directory_s)


def name_limits(ops: FileOps, directory: Directory) -> NameFindings:
    """Find out whether names that differ in case are one, and how long they may be, as far as there is time."""
    _make(ops, directory, "CASE")
    case_insensitive = ops.exists(directory.fd, "case")
    ops.remove(directory.fd, "CASE")
    fits, fails = 1, _NAME_BYTES_TRIED + 1
    length = _NAME_BYTES_TRIED
    deadline = ops.monotonic() + _LIMIT_S
    while fails - fits > 1 and (fits == 1 or ops.monotonic() < deadline):
        if _can_make(ops, directory, "n" * length):
            fits = length
        else:
            fails = length
        length = (fits + fails) // 2
    return NameFindings(case_insensitive, fits)


def _make(ops: FileOps, directory: Directory, name: str) -> None:
    ops.close(ops.create(directory.fd, name, b"x"))


def _can_make(ops: FileOps, directory: Directory, name: str) -> bool:
    try:
        _make(ops, directory, name)
    except OSError as error:
        if error.errno not in (errno.ENAMETOOLONG, errno.EINVAL):
            raise
        return False
    return ops.remove(directory.fd, name)


def _fresh_status(ops: FileOps, directory: Directory, name: str) -> os.stat_result:
    fd = ops.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory.fd)
    try:
        return ops.fstat(fd)
    finally:
        ops.close(fd)


def _wait_for_tick(ops: FileOps, directory: Directory, after_ns: int) -> None:
    """Touch a file until the filesystem's clock has passed after_ns, for some seconds at most."""
    _make(ops, directory, "tick")
    deadline = ops.monotonic() + _LIMIT_S
    while _fresh_status(ops, directory, "tick").st_mtime_ns <= after_ns and ops.monotonic() < deadline:
        ops.utime("tick", dir_fd=directory.fd, follow_symlinks=False)
    ops.remove(directory.fd, "tick")


def _write_skew_s(ops: FileOps, directory: Directory) -> float:
    before = ops.time()
    _make(ops, directory, "clock")
    after = ops.time()
    return _fresh_status(ops, directory, "clock").st_mtime_ns / 1e9 - (before + after) / 2


def _smallest_step_s(ops: FileOps, change: Callable[[], int]) -> float | None:
    """Return the smallest positive difference between the times that change returns."""
    deadline = ops.monotonic() + _LIMIT_S
    steps_ns: list[int] = []
    last_ns = change()
    while len(steps_ns) < _STEPS_WANTED and ops.monotonic() < deadline:
        now_ns = change()
        if now_ns > last_ns:
            steps_ns.append(now_ns - last_ns)
        last_ns = now_ns
    return min(steps_ns) / 1e9 if steps_ns else None
