"""FUSE layers over one directory of this host, mounted twice: two processes with caches of their own."""

from __future__ import annotations

from pathlib import Path

from mounting.tools import Kind, made, pair, run

_PASSWORD = "correct horse\n"


def bindfs(work: Path) -> tuple[Path, Path]:
    store = made(work / "store")
    return _each(work, "bindfs", store)


def mergerfs(work: Path) -> tuple[Path, Path]:
    branches = [made(work / branch) for branch in ("one", "two")]
    return _each(work, "mergerfs", "-o", "minfreespace=0", ":".join(map(str, branches)))


def unionfs(work: Path) -> tuple[Path, Path]:
    return _each(work, "unionfs", "-o", "cow", f"{made(work / 'one')}=RW:{made(work / 'two')}=RO")


def gocryptfs(work: Path) -> tuple[Path, Path]:
    store, password = made(work / "store"), work / "password"
    password.write_text(_PASSWORD, encoding="ascii")
    run("gocryptfs", "-q", "-init", "-scryptn", "10", "-passfile", password, store)
    return _each(work, "gocryptfs", "-q", "-sharedstorage", "-passfile", password, store)


def encfs(work: Path) -> tuple[Path, Path]:
    a, b = pair(work)
    store = made(work / "store")
    for point in (a, b):
        run("encfs", "--standard", "--stdinpass", store, point, text=_PASSWORD)
    return a, b


def _each(work: Path, *command: str | Path) -> tuple[Path, Path]:
    """Run a command once for each mount point, which is its last argument."""
    a, b = pair(work)
    for point in (a, b):
        run(*command, point)
    return a, b


KINDS = (
    Kind("bindfs", bindfs, ("bindfs",), ("bindfs",)),
    Kind("mergerfs", mergerfs, ("mergerfs",), ("mergerfs",)),
    Kind("unionfs-fuse", unionfs, ("unionfs",), ("unionfs-fuse",)),
    Kind("gocryptfs", gocryptfs, ("gocryptfs",), ("gocryptfs",)),
    Kind("encfs", encfs, ("encfs",), ("encfs",)),
)
