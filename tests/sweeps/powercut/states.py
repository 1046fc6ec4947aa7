"""All states that a disk may be in after a power cut, by two sets of rules.

`journalled`: how ext4 (data=ordered) and XFS do it. Changes of directory entries go through one log and survive
as a prefix of their order; an fsync returns only when the log is on disk up to the last change of what was
synced (ext4: the transaction of the inode's last change is committed; XFS: the log is forced up to the inode's
last LSN). The content of a file that was not synced may be missing, torn at any point, or NUL where the file
grew.

`weakest`: no more than POSIX says of fsync. What was not fsynced may be lost, each directory entry by itself: a
file's fsync says nothing of its name, and a directory's fsync nothing of other directories. One thing is assumed
beyond POSIX: a rename sets the new name before it drops the old one, so that a file which had a durable name keeps
the old name, or has the new one, or both. All filesystems that call themselves crash-safe order it so (soft
updates: "never reset the old pointer to a live resource before the new one has been set"); without that, no program
that renames files between directories can keep any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from random import Random

from tests.sweeps.powercut.journal import BASE, Entries, Record, Synced, Truncate, Write

Tree = dict[int, dict[str, int]]


@dataclass(frozen=True)
class Image:
    """A disk: (path, content, node) for each name; None is a directory. Names of one node are hard links."""

    files: frozenset[tuple[str, bytes | None, int]]


def images(records: Sequence[Record], rules: str, limit: int | None = None) -> Iterator[Image]:
    """Every state that a power cut right after these records may leave.

    Args:
        limit: of the choices of directory entries that `weakest` allows, try so many at random if there are more.
    """
    trees = journalled(records) if rules == "journalled" else weakest(records, limit)
    contents = {node: variants(records, node) for node in _files(records)}
    for tree in trees:
        yield from _with_contents(tree, contents)


def _files(records: Sequence[Record]) -> list[int]:
    created = [record.created for record in records if isinstance(record, Entries) and record.created]
    return [node for node, is_directory in created if not is_directory]


def _apply(tree: Tree, record: Entries) -> None:
    for directory, name, node in record.changes:
        entries = tree.setdefault(directory, {})
        if node is None:
            entries.pop(name, None)
        else:
            entries[name] = node


def journalled(records: Sequence[Record]) -> Iterator[Tree]:
    """Prefixes of the changes of directory entries, not shorter than the syncs allow."""
    changes = [record for record in records if isinstance(record, Entries)]
    for length in range(_durable(records), len(changes) + 1):
        tree: Tree = {BASE: {}}
        for record in changes[:length]:
            _apply(tree, record)
        yield tree


def _durable(records: Sequence[Record]) -> int:
    """Count the changes of entries that are surely on disk."""
    seen = durable = 0
    last_change: dict[int, int] = {}
    for record in records:
        if isinstance(record, Entries):
            seen += 1
            touched = {directory for directory, _, _ in record.changes} | {
                node for _, _, node in record.changes if node
            }
            last_change.update(dict.fromkeys(touched, seen))
        elif isinstance(record, Synced):
            durable = max(durable, last_change.get(record.node, 0))
    return durable


def weakest(records: Sequence[Record], limit: int | None = None) -> Iterator[Tree]:
    """Every choice, for each name, among the values that it had since its directory was last synced."""
    values: dict[_Name, list[int | None]] = {}
    chains = _Chains()
    for record in records:
        if isinstance(record, Entries):
            chains.follow(record)
            for directory, name, node in record.changes:
                values.setdefault((directory, name), [None]).append(node)
        elif isinstance(record, Synced):
            chains.synced(record.node)
            values.update({name: had[-1:] for name, had in values.items() if name[0] == record.node})
    options = {name: list(dict.fromkeys(had)) for name, had in values.items()}
    for chosen in _choices(list(options.values()), limit):
        entries = dict(zip(options, chosen, strict=True))
        if chains.allow(entries):
            yield _tree(entries)


def _choices(options: list[list[int | None]], limit: int | None) -> Iterator[tuple[int | None, ...]]:
    """One of each; all combinations, or a sample of them that is the same every time."""
    if limit is None or prod(map(len, options)) <= limit:
        yield from product(*options)
        return
    rng = Random(limit)
    for _ in range(limit):
        yield tuple(rng.choice(of_one) for of_one in options)


_Name = tuple[int, str]


class _Chains:
    """The names that each file has had, one rename after the other, and from which on one must be there."""

    def __init__(self) -> None:
        self._names: dict[int, list[_Name]] = {}
        self._durable_from: dict[int, int] = {}

    def follow(self, record: Entries) -> None:
        for directory, name, node in record.changes:
            if node is not None:
                self._names.setdefault(node, []).append((directory, name))
        if record.removed is not None:
            self._durable_from.pop(record.removed, None)
            self._names.pop(record.removed, None)

    def synced(self, directory: int) -> None:
        for node, names in self._names.items():
            if names[-1][0] == directory:
                self._durable_from[node] = len(names) - 1

    def allow(self, entries: dict[_Name, int | None]) -> bool:
        """Of a file's names since the last one that is surely on disk, at least one must be there."""
        return all(
            any(entries[name] == node for name in self._names[node][first:])
            for node, first in self._durable_from.items()
        )


def _tree(entries: dict[tuple[int, str], int | None]) -> Tree:
    tree: Tree = {BASE: {}}
    for (directory, name), node in entries.items():
        if node is not None:
            tree.setdefault(directory, {})[name] = node
    return tree


def variants(records: Sequence[Record], node: int) -> list[bytes]:
    """List what a file may hold: the synced content, all that was written, and everything in between."""
    synced = b""
    current = b""
    since: list[Write | Truncate] = []
    for record in records:
        if isinstance(record, (Write, Truncate)) and record.node == node:
            current = _written(current, record)
            since.append(record)
        elif isinstance(record, Synced) and record.node == node:
            synced, since = current, []
    found = [current, synced]
    before = synced
    for record in since:
        found += [_written(synced, record), *_torn(before, record)]
        before = _written(before, record)
        found.append(before)
    return list(dict.fromkeys(found))


def _written(content: bytes, record: Write | Truncate) -> bytes:
    if isinstance(record, Truncate):
        return content[: record.size].ljust(record.size, b"\0")
    return (
        content[: record.offset].ljust(record.offset, b"\0") + record.data + content[record.offset + len(record.data) :]
    )


def _torn(content: bytes, record: Write | Truncate) -> Iterator[bytes]:
    """A write that came through up to some byte, or only from some byte on; NULs where the file only grew."""
    if isinstance(record, Truncate):
        return
    data, offset = record.data, record.offset
    whole = _written(content, record)
    grown = content.ljust(len(whole), b"\0")
    yield grown
    for cut in _cuts(len(data)):
        at = offset + cut
        first, last = Write(record.node, offset, data[:cut]), Write(record.node, at, data[cut:])
        yield _written(content, first)
        yield _written(grown, first)
        yield _written(content, last)


def _cuts(length: int) -> list[int]:
    """Both ends, where formats break, and the middle."""
    return sorted({cut for cut in (1, 2, length // 2, length - 2, length - 1) if 0 < cut < length})


def _with_contents(tree: Tree, contents: dict[int, list[bytes]]) -> Iterator[Image]:
    """All files as they were last synced, all as they were written, and each file's other contents one by one.

    The queue never compares two files, so that what one of them holds is tried beside the extremes of the rest.
    """
    paths = list(_walk(tree, BASE, ""))
    present = {node for _, node in paths if node in contents}
    written = {node: contents[node][0] for node in present}
    synced = {node: contents[node][1 if len(contents[node]) > 1 else 0] for node in present}
    for base in (written, synced):
        yield _image(paths, base)
        for node in present:
            for content in contents[node]:
                yield _image(paths, {**base, node: content})


def _walk(tree: Tree, directory: int, path: str) -> Iterator[tuple[str, int]]:
    for name, node in tree.get(directory, {}).items():
        below = f"{path}{name}"
        yield below, node
        yield from _walk(tree, node, f"{below}/")


def _image(paths: list[tuple[str, int]], contents: dict[int, bytes]) -> Image:
    return Image(frozenset((path, contents.get(node), node) for path, node in paths))
