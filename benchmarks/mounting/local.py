"""Filesystems of one host, from an image on a loop device or in memory: one mount, which two paths reach."""

from __future__ import annotations

import os
from pathlib import Path

from mounting.tools import Kind, made, pair, run

_IMAGE_BYTES = 4 << 30
_FEW_INODES = 30


def ext4(work: Path) -> tuple[Path, Path]:
    return _imaged(work, "ext4", "mkfs.ext4", "-q")


def xfs(work: Path) -> tuple[Path, Path]:
    return _imaged(work, "xfs", "mkfs.xfs", "-q")


def btrfs(work: Path) -> tuple[Path, Path]:
    return _imaged(work, "btrfs", "mkfs.btrfs", "-q")


def exfat(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    run("mkfs.exfat", _image(work))
    device = run("losetup", "--find", "--show", _image(work)).strip()
    try:
        run("mount.exfat-fuse", device, a)
    finally:
        run("losetup", "--detach", device)  # which waits for the end of the mount
    return _bound(a, b)


def overlay(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    parts = {part: made(work / part) for part in ("lower", "upper", "work")}
    run("mount", "-t", "overlay", "-o", ",".join(f"{part}dir={path}" for part, path in parts.items()), "overlay", a)
    return _bound(a, b)


def tmpfs(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", a)
    return _bound(a, b)


def leave_few_inodes(a: Path) -> None:
    """Let tmpfs run out of inodes soon."""
    found = os.statvfs(a)
    run("mount", "-o", f"remount,nr_inodes={found.f_files - found.f_ffree + _FEW_INODES}", a)


def _imaged(work: Path, kind: str, *make: str) -> tuple[Path, Path]:
    a, b = pair(work)
    image = _image(work)
    run(*make, image)
    run("mount", "-t", kind, "-o", "loop", image, a)
    return _bound(a, b)


def _image(work: Path) -> Path:
    """Return an image file; mounted with -o loop, it frees its loop device when its mount ends."""
    image = work / "image"
    if not image.exists():
        image.touch()
        os.truncate(image, _IMAGE_BYTES)
    return image


def _bound(a: Path, b: Path) -> tuple[Path, Path]:
    run("mount", "--bind", a, b)
    return a, b


KINDS = (
    Kind("ext4", ext4, ("mkfs.ext4",), ("e2fsprogs",), module="ext4", twice=False, own_disk=True),
    Kind("xfs", xfs, ("mkfs.xfs",), ("xfsprogs",), module="xfs", twice=False, own_disk=True),
    Kind("btrfs", btrfs, ("mkfs.btrfs",), ("btrfs-progs",), module="btrfs", twice=False, own_disk=True),
    Kind("overlay", overlay, module="overlay", twice=False),
    Kind("tmpfs", tmpfs, module="tmpfs", twice=False, cramp=leave_few_inodes),
    Kind("exfat", exfat, ("mkfs.exfat", "mount.exfat-fuse"), ("exfat-fuse", "exfatprogs"), twice=False, own_disk=True),
)
