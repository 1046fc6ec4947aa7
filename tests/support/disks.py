"""Disks of a test's own, small enough to fill: loop mounts and tmpfs."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_MEGABYTE = 1 << 20
_MKFS = {
    "ext4": (32, ["mkfs.ext4", "-q", "-F", "-m", "0"], ["-N", "512"]),
    "xfs": (320, ["mkfs.xfs", "-q", "-f"], ["-i", "maxpct=1"]),
}
KINDS = ("tmpfs", *_MKFS)
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def mounted(kind: str, folder: Path, few_inodes: bool = False) -> Iterator[Path]:
    """A filesystem of this kind, mounted in a folder; skips the test where that cannot be had."""
    point = folder / "disk"
    point.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", f"size=4m,nr_inodes={600 if few_inodes else 4000}", "tmpfs", str(point))
    else:
        size, make, scarce = _MKFS[kind]
        image = folder / "image"
        with open(image, "wb") as file:
            file.truncate(size * _MEGABYTE)
        _run(*make, *(scarce if few_inodes else ()), str(image))
        _run("mount", "-o", "loop", str(image), str(point))
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True, timeout=60)


def _run(*command: str) -> None:
    if os.geteuid() or shutil.which(command[0]) is None:
        pytest.skip(f"this needs root and {command[0]}")
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.skip(f"{' '.join(command)} failed: {done.stderr.strip()}")


def use_up_blocks(disk: Path) -> list[Path]:
    """Fill a disk to the last block; returns the files that do."""
    ballast = disk / "ballast"
    fd = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    size, piece = 0, 64 * _MEGABYTE
    while piece >= 512:
        try:
            os.posix_fallocate(fd, size, piece)
            size += piece
        except OSError as error:
            assert error.errno in FULL
            piece //= 2
    os.close(fd)
    return [ballast, *_small_files(disk / "small", b"x")]


def use_up_inodes(disk: Path) -> list[Path]:
    """Make files until no more can be made; returns them."""
    return list(_small_files(disk / "many", b""))


def _small_files(folder: Path, data: bytes) -> Iterator[Path]:
    """Make files, until one fails for want of a block or an inode; the folder is made before."""
    with _expecting_full():
        folder.mkdir(exist_ok=True)
        for number in range(1_000_000):
            file = folder / f"{number}"
            yield file
            file.write_bytes(data)


@contextmanager
def _expecting_full() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        assert error.errno in FULL


def free(files: list[Path]) -> None:
    """Remove what fills a disk."""
    for file in files:
        file.unlink(missing_ok=True)
