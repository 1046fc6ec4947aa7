"""Records what the file operations of a script do to the disk, in their order.

A real queue in a real directory is worked on; the recorder sees each operation and keeps a model of who stands
for what, so that states which never were on this disk can be made from the record.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsqueue.disk.fileops import FileOps, wrapped


@dataclass(frozen=True)
class Entries:
    """One change of directory entries: atomic in a journal. (directory, name, node or None) after it.

    Attributes:
        created: the node that came into being, and whether it is a directory.
        removed: the node that lost its name for good: by an unlink, or by another file renamed over it.
    """

    changes: tuple[tuple[int, str, int | None], ...]
    created: tuple[int, bool] | None = None
    removed: int | None = None


@dataclass(frozen=True)
class Write:
    node: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Truncate:
    node: int
    size: int


@dataclass(frozen=True)
class Synced:
    """An fsync of a file or a directory has returned."""

    node: int


@dataclass(frozen=True)
class Moment:
    """Where the script is: "put begins", "put returned", "return begins" (a rewind or requeue), "removal begins",
    "ack returned", "final fail returned", "producer joined", "producer leaves".

    Attributes:
        ids: of a call that has returned, those that it did not report as lost; of a producer, its name.
    """

    what: str
    ids: tuple[str, ...]


Record = Entries | Write | Truncate | Synced | Moment
BASE = 0


class Journal:
    """The record of what happened below one directory.

    Attributes:
        records: everything, in order.
        on_sync: called before each fsync with the name of what is synced, to let others act at that moment.
    """

    def __init__(self, base: Path) -> None:
        self.records: list[Record] = []
        self.on_sync: Callable[[str], None] | None = None
        self._base = str(base)
        self._directories: dict[int, dict[str, int]] = {BASE: {}}
        self._names = {BASE: ""}
        self._next = 1
        self._open: dict[int, int] = {}
        self._positions: dict[int, int] = {}
        self.ops: FileOps = wrapped(_quiet(), self._around)

    def mark(self, what: str, ids: list[str]) -> None:
        self.records.append(Moment(what, tuple(ids)))

    def _around(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if name == "fsync" and self.on_sync is not None:
            self.on_sync(self._names[self._open[args[0]]])
        if name == "open":
            return self._opened(call, *args, **kwargs)
        result = call(*args, **kwargs)
        note = getattr(self, f"_{name}", None)
        if note is not None:
            note(result, *args, **kwargs)
        return result

    def _place(self, path: str, dir_fd: int | None) -> tuple[int, str]:
        """The directory and the name that a path means."""
        if dir_fd is not None:
            return self._open[dir_fd], "" if path == "." else path
        relative = os.path.relpath(path, self._base)
        directory, parts = BASE, [] if relative == "." else relative.split("/")
        for part in parts[:-1]:
            directory = self._directories[directory][part]
        return directory, parts[-1] if parts else ""

    def _opened(
        self, call: Callable[..., int], path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        fd = call(path, flags, mode, dir_fd=dir_fd)
        directory, name = self._place(path, dir_fd)
        node = self._directories[directory].get(name) if name else directory
        if node is None:
            node = self._new(directory, name, is_directory=False)
        elif flags & os.O_TRUNC:
            self.records.append(Truncate(node, 0))
        self._open[fd] = node
        self._positions[fd] = 0
        return fd

    def _new(self, directory: int, name: str, is_directory: bool) -> int:
        node, self._next = self._next, self._next + 1
        if is_directory:
            self._directories[node] = {}
        self._names[node] = name
        self._directories[directory][name] = node
        self.records.append(Entries(((directory, name, node),), created=(node, is_directory)))
        return node

    def _mkdir(self, _: None, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._new(*self._place(path, dir_fd), is_directory=True)

    def _write(self, count: int, fd: int, data: bytes) -> None:
        self._pwrite(count, fd, data, self._positions[fd])
        self._positions[fd] += count

    def _pwrite(self, count: int, fd: int, data: bytes, offset: int) -> None:
        self.records.append(Write(self._open[fd], offset, bytes(data[:count])))

    def _ftruncate(self, _: None, fd: int, size: int) -> None:
        self.records.append(Truncate(self._open[fd], size))

    def _fsync(self, _: None, fd: int) -> None:
        self.records.append(Synced(self._open[fd]))

    def _rename(self, _: None, name: str, new_name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        source, target = self._open[src_dir_fd], self._open[dst_dir_fd]
        node = self._directories[source].pop(name)
        replaced = self._directories[target].get(new_name)
        self._directories[target][new_name] = node
        self.records.append(Entries(((source, name, None), (target, new_name, node)), removed=replaced))

    def _link(self, _: None, name: str, new_name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        node, target = self._directories[self._open[src_dir_fd]][name], self._open[dst_dir_fd]
        self._directories[target][new_name] = node
        self.records.append(Entries(((target, new_name, node),)))

    def _unlink(self, _: None, name: str, *, dir_fd: int) -> None:
        directory = self._open[dir_fd]
        node = self._directories[directory].pop(name)
        linked = any(node in entries.values() for entries in self._directories.values())
        self.records.append(Entries(((directory, name, None),), removed=None if linked else node))


def _quiet() -> FileOps:
    """Real operations whose fsync costs nothing: this disk is not the one that loses power."""
    ops: Any = FileOps()
    ops.fsync = lambda fd: None
    ops.each = lambda work, items, threads: [work(item) for item in items]
    quiet: FileOps = ops
    return quiet
