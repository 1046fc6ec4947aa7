"""The server of the simulated filesystem: what is true, one clock, and the locks that it knows of."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Hashable
from math import inf

from simulation.rules import DEAD_NODE_LOCK_S, Rules


class Inode:
    """A file or a directory.

    Attributes:
        entries: a directory's names; None for a file.
        links: names that it has; 0: removed, and a stale file handle for whoever still knows it.
        change: counts its modifications, as NFS's change attribute does.
        news: what happened last to a name in it: (when, by which node, "came", "went" or "replaced").
        writer: the node that wrote it last.
        torn: it cannot be read any more.
        delegated: the node that may read it without asking.
        contested: names in it that two nodes have linked; each sees its own file until a rename decides.
    """

    __slots__ = (
        "change", "contested", "ctime_ns", "data", "delegated", "entries", "links", "mtime_ns", "news", "number",
        "torn", "writer",
    )  # fmt: skip

    def __init__(self, number: int, directory: bool, now_ns: int) -> None:
        self.number = number
        self.entries: dict[str, Inode] | None = {} if directory else None
        self.data = bytearray()
        self.mtime_ns = self.ctime_ns = now_ns
        self.links = 1
        self.change = 0
        self.news: dict[str, tuple[float, object, str]] = {}
        self.writer: object = None
        self.torn = False
        self.delegated: Hashable = None
        self.contested: set[str] = set()


def failed(code: int, *names: str) -> OSError:
    """The OSError that the system would raise."""
    if len(names) == 2:
        return OSError(code, os.strerror(code), names[0], None, names[1])
    return OSError(code, os.strerror(code), *names)


class Server:
    """The one truth. Each method is one request, done at one instant.

    Attributes:
        renamed: called with (file, old directory, old name, new directory, new name) after each rename.
        removed: called with (directory, name) after each unlink.
        locks: which open file holds the lock on which inode.
        caller: the node whose request it is.
    """

    def __init__(self, clock: Callable[[], float], rules: Rules) -> None:
        self._clock = clock
        self._rules = rules
        self._grain_ns = int(rules.grain_s * 1e9)
        self.caller: object = None
        self._numbers = 0
        self._last_ns = 0
        self.root = self._new(directory=True)
        self.locks: dict[Inode, Hashable] = {}
        self._orphans: dict[Hashable, float] = {}
        self.renamed: Callable[[Inode, Inode, str, Inode, str], None] = lambda *_: None
        self.removed: Callable[[Inode, str], None] = lambda *_: None

    def now_ns(self) -> int:
        """The clock that stamps: "the server's ... never backwards" (nfs-facts.md, "Whose clock stamps?").

        "Time stamps are cut to whole seconds on sshfs, MooseFS, exfat" (filesystems.md, 7).
        """
        self._last_ns = max(self._last_ns, int(self._clock() * 1e9) // self._grain_ns * self._grain_ns)
        return self._last_ns

    def _new(self, directory: bool) -> Inode:
        self._numbers += 1
        return Inode(self._numbers, directory, self.now_ns())

    def _touch_directory(self, directory: Inode, name: str, news: str) -> None:
        """ "A directory's mtime that never moves (goofys, s3fs in reports)" (filesystems.md, 13)."""
        if "frozen-directories" not in self._rules:
            directory.mtime_ns = directory.ctime_ns = self.now_ns()
        directory.change += 1
        directory.news[name] = (self._clock(), self.caller, news)

    def heard(self, directory: Inode, name: str, within_s: float) -> str | None:
        """What another node than the caller has just done to a name: it "came", "went" or was "replaced"."""
        at, by, news = directory.news.get(name, (-inf, None, ""))
        return news if by is not self.caller and self._clock() - at < within_s else None

    @staticmethod
    def entries(directory: Inode) -> dict[str, Inode]:
        if directory.entries is None:
            raise failed(errno.ENOTDIR)
        return directory.entries

    def lookup(self, directory: Inode, name: str) -> Inode | None:
        return self.entries(directory).get(name)

    def create(self, directory: Inode, name: str, is_directory: bool = False) -> Inode:
        inode = self._new(is_directory)
        if (replaced := self.entries(directory).get(name)) is not None:
            self._unlinked(replaced)
        self.entries(directory)[name] = inode
        self._touch_directory(directory, name, "replaced" if replaced else "came")
        return inode

    def mkdir(self, directory: Inode, name: str) -> Inode:
        if name in self.entries(directory):
            raise failed(errno.EEXIST, name)
        return self.create(directory, name, is_directory=True)

    def link(self, inode: Inode, directory: Inode, name: str, replace: bool = False) -> None:
        if (replaced := self.entries(directory).get(name)) is not None:
            if not replace:
                raise failed(errno.EEXIST, name)
            directory.contested.add(name)  # nobody's file: what it replaces stays, for the node that linked it
        self.entries(directory)[name] = inode
        inode.links += 1
        inode.ctime_ns = self.now_ns()
        self._touch_directory(directory, name, "replaced" if replaced else "came")

    def unlink(self, directory: Inode, name: str) -> None:
        inode = self.entries(directory).pop(name, None)
        if inode is None:
            raise failed(errno.ENOENT, name)
        self._unlinked(inode)
        directory.contested.discard(name)
        self._touch_directory(directory, name, "went")
        self.removed(directory, name)

    def _unlinked(self, inode: Inode) -> None:
        inode.links -= 1
        inode.ctime_ns = self.now_ns()

    def rename(self, source: Inode, name: str, target: Inode, new_name: str) -> Inode:
        """Of several that rename a file, one succeeds: "exactly one success each" (nfs-facts.md, row 2)."""
        inode = self.entries(source).get(name)
        if inode is None:
            raise failed(errno.ENOENT, name, new_name)
        replaced = self.entries(target).get(new_name)
        if replaced is inode:
            return inode
        del self.entries(source)[name]
        self.entries(target)[new_name] = inode
        if replaced is not None:
            self._unlinked(replaced)
        target.contested.discard(new_name)
        self._stamp_renamed(inode)
        self._touch_directory(source, name, "went")
        self._touch_directory(target, new_name, "replaced" if replaced else "came")
        self.renamed(inode, source, name, target, new_name)
        return inode

    def _stamp_renamed(self, inode: Inode) -> None:
        """ "ctime does not change by rename on sshfs, SeaweedFS, exfat, rclone, CIFS" (filesystems.md, 7).

        encfs: "rename cuts mtime to the second".
        """
        if "rename-keeps-ctime" not in self._rules:
            inode.ctime_ns = self.now_ns()
        if "rename-cuts-mtime" in self._rules:
            inode.mtime_ns -= inode.mtime_ns % 1_000_000_000

    def stamp(self, inode: Inode, ns: int | None) -> None:
        """Explicit times "are stored as given", else the server's (nfs-facts.md, "Whose clock stamps?")."""
        inode.mtime_ns = self.now_ns() if ns is None else ns // self._grain_ns * self._grain_ns
        self._changed(inode)

    def _changed(self, inode: Inode) -> None:
        inode.ctime_ns = self.now_ns()
        inode.change += 1

    def write(self, inode: Inode, data: bytes, offset: int) -> None:
        if len(inode.data) < offset:
            inode.data.extend(bytes(offset - len(inode.data)))
        inode.data[offset : offset + len(data)] = data
        inode.writer = self.caller
        self.stamp(inode, None)

    def truncate(self, inode: Inode, size: int) -> None:
        del inode.data[size:]
        inode.data.extend(bytes(size - len(inode.data)))
        self.stamp(inode, None)

    def try_lock(self, inode: Inode, holder: Hashable, lost: bool = False) -> bool:
        """Flock excludes between clients, where it reaches the server (nfs-facts.md, first row).

        CIFS: it "can be lost".
        """
        current = self.locks.get(inode)
        if current is not None and (lost or self._orphans.get(current, inf) <= self._clock()):
            del self.locks[inode]
        return self.locks.setdefault(inode, holder) == holder

    def unlock(self, inode: Inode, holder: Hashable) -> None:
        if self.locks.get(inode) == holder:
            del self.locks[inode]

    def orphan(self, holder: Hashable) -> None:
        """ "A client dies holding a flock ... free after 91 s on NFS 4.2" (nfs-facts.md, row 11)."""
        self._orphans[holder] = self._clock() + DEAD_NODE_LOCK_S

    def delegate(self, inode: Inode) -> None:
        """ "Opening a leased file read-only makes the server grant a delegation" (filesystems.md, 10)."""
        if inode.delegated is None:
            inode.delegated = self.caller

    def recall(self, inode: Inode) -> float:
        """Take a delegation back from another node; seconds for which a dead one holds others up (10)."""
        holder = inode.delegated
        if holder is None or holder is self.caller:
            return 0.0
        inode.delegated = None
        return max(0.0, self._orphans.get(holder, 0.0) - self._clock())

    def name_of(self, inode: Inode) -> str:
        """A name that a trace can show."""
        queue = self.walk("queue")
        for folder, directory in [("", queue), *((queue.entries or {}).items() if queue else ())]:
            if directory is inode:
                return folder or "queue"
            for name, entry in (directory.entries or {}).items() if directory else ():
                if entry is inode:
                    return f"{folder}/{name}".lstrip("/")
        return f"inode{inode.number}"

    def walk(self, path: str) -> Inode | None:
        """The inode at a path from the root, as it truly is."""
        inode: Inode | None = self.root
        for part in path.strip("/").split("/"):
            if inode is None or inode.entries is None:
                return None
            inode = inode.entries.get(part) if part else inode
        return inode
