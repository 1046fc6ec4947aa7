"""What one node believes about the server's files: names, attributes and contents, each for a while."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from typing import NamedTuple

from simulation.rules import Rules
from simulation.server import Inode, Server, failed

_DIRECTORY_MODE = 0o040777
_FILE_MODE = 0o100666
STAMPS_KEEP_S = 25.0
LISTINGS_KEEP_S = 60.0


class Status(NamedTuple):
    """What stat tells, as far as the queue asks."""

    st_mode: int
    st_ino: int
    st_nlink: int
    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_dev: int = 1
    st_uid: int = os.geteuid()
    st_gid: int = os.getegid()

    @property
    def st_mtime(self) -> float:
        return self.st_mtime_ns / 1e9

    @property
    def st_ctime(self) -> float:
        return self.st_ctime_ns / 1e9


class _Pages:
    """A file's content as it was fetched, with this node's own writes in it."""

    __slots__ = ("at", "change", "data", "dirty", "fetched")

    def __init__(self, inode: Inode, at: float) -> None:
        self.data = bytearray(inode.data)
        self.fetched = bytes(inode.data)
        self.change = inode.change
        self.at = at
        self.dirty: list[tuple[int, bytes]] = []


class Cache:
    """The caches of one node's kernel.

    Attributes:
        rules: of the mount; a good day has others.
        opened: how many descriptors of this node are open on each inode.
        linked: the files that this node has linked, by directory and name.
        hidden: files that this node removed while it had them open, and where they are kept until then.
        local_locks: the locks that this node grants by itself.
    """

    def __init__(self, server: Server, rules: Rules, clock: Callable[[], float], rng: random.Random) -> None:
        self._server = server
        self.rules = rules
        self._clock = clock
        self._rng = rng
        self._names: dict[Inode, dict[str, tuple[Inode | None, float]]] = {}
        self._attributes: dict[Inode, tuple[Status, float]] = {}
        self._pages: dict[Inode, _Pages] = {}
        self._first_known: dict[tuple[Inode, str], float] = {}
        self._listings: dict[Inode, tuple[set[str], float]] = {}
        self.opened: dict[Inode, int] = {}
        self.hidden: dict[Inode, tuple[Inode, str]] = {}
        self.linked: dict[tuple[Inode, str], Inode] = {}
        self.local_locks: dict[Inode, object] = {}

    # Names

    def lookup(self, directory: Inode, name: str) -> Inode | None:
        """The file that a name stands for, as this node believes.

        NFS: after another node renamed it away, "stat, open, utime by name: succeed for 30 s" (row 4). After
        another node created what was looked for in vain: "ENOENT for 28 s" (row 5).
        """
        known = self.known(directory, name)
        if known is not None and (known[0] is None or self._rng.random() < self.rules.believed):
            return known[0]
        return self.ask(directory, name)

    def known(self, directory: Inode, name: str) -> tuple[Inode | None] | None:
        """What is remembered of a name: its inode, or None for a miss; nothing where it is to be asked for."""
        remembered = self._names.get(directory, {}).get(name)
        if remembered is None:
            return None
        inode, at = remembered
        bound_s = self.rules.misses_s if inode is None else self.rules.names_s
        return (inode,) if self._clock() - at < bound_s else None

    def ask(self, directory: Inode, name: str) -> Inode | None:
        inode = self._server.lookup(directory, name)
        if name in directory.contested:
            inode = self.linked.get((directory, name), inode)
        self._remember(directory, name, inode)
        return inode

    def _remember(self, directory: Inode, name: str, inode: Inode | None) -> None:
        self._names.setdefault(directory, {})[name] = (inode, self._clock())
        self._first_known.pop((directory, name), None)

    def learn(self, directory: Inode, name: str, inode: Inode | None) -> None:
        """This node has itself made, moved or removed what goes by a name."""
        self._remember(directory, name, inode)
        if directory in self._listings:
            listed, _ = self._listings[directory]
            (listed.discard if inode is None else listed.add)(name)

    def stamped(self, directory: Inode, name: str) -> None:
        """ "utime(oldname) repeated ... goes on succeeding without end on a file that another client renamed"
        (filesystems.md, 9); here with an end, as a queue's stamps are not repeated so often.
        """
        if "stamps-keep-names" in self.rules:
            self._keep(directory, name, STAMPS_KEEP_S)

    def _keep(self, directory: Inode, name: str, bound_s: float) -> None:
        known = self.known(directory, name)
        if known and known[0] is not None:
            first_at = self._first_known.setdefault((directory, name), self._names[directory][name][1])
            if self._clock() - first_at < bound_s:
                self._names[directory][name] = (known[0], self._clock())

    def listing(self, directory: Inode) -> set[str]:
        """A directory's names: "listing 20 s" (sshfs), "does not refresh within 8 s on CIFS" (filesystems.md, 9).

        "On CIFS listing, then stat, keeps a stale name alive for longer than stat alone" (9), without end (1).
        """
        if "listings-keep-names" in self.rules:
            for name in self._names.get(directory, {}):
                self._keep(directory, name, LISTINGS_KEEP_S)
        known = self._listings.get(directory)
        if known is None or self._clock() - known[1] >= self.rules.listings_s:
            known = self._listings[directory] = (set(self._server.entries(directory)), self._clock())
        return known[0]

    def forget(self, directory: Inode, name: str) -> None:
        self._names.get(directory, {}).pop(name, None)

    def open_directory(self, directory: Inode) -> None:
        """ "After os.open() or scandir() of the directory: everything sees it at once" (row 5).

        That was measured for missing names; that it holds for files as well is how the kernel does it: both
        are believed until the directory's change attribute, which opening it fetches, is another one.
        "Opening both directories first helps on NFS, not on CIFS or GlusterFS" (filesystems.md, 1).
        """
        self._attributes.pop(directory, None)
        if "opened-listings-are-old" not in self.rules:
            self._listings.pop(directory, None)
        if "opening-asks-nothing" not in self.rules:
            self._names.get(directory, {}).clear()

    # Attributes

    def status(self, inode: Inode) -> Status:
        """ "stat: median 2 s, up to 3.9 s (longer for idle files, up to the attribute cache's 60 s)" (row 6).

        Raises:
            OSError: ESTALE, the server no longer knows the file.
        """
        known = self._attributes.get(inode)
        if known is not None and self._clock() - known[1] < self.rules.attributes_s:
            return known[0]
        return self.fetch_status(inode)

    def fetch_status(self, inode: Inode) -> Status:
        if not inode.links:
            raise failed(errno.ESTALE)
        pages = self._pages.get(inode)
        if pages is not None and pages.change != inode.change and not pages.dirty and not self._looks_the_same(inode):
            del self._pages[inode]
        mode = _FILE_MODE if inode.entries is None else _DIRECTORY_MODE
        status = Status(mode, inode.number, inode.links, len(inode.data), inode.mtime_ns, inode.ctime_ns)
        self._attributes[inode] = (status, self._clock())
        return status

    def _looks_the_same(self, inode: Inode) -> bool:
        """ceph-fuse: "a rewrite of equal size is stale through a kept descriptor", and "stays stale even so", by a
        second one (filesystems.md, 2).
        """
        kept = "equal-size-stays-old" in self.rules and self.opened.get(inode)
        return bool(kept) and len(self._pages[inode].data) == len(inode.data)

    def forget_status(self, inode: Inode) -> None:
        self._attributes.pop(inode, None)

    # Contents

    def pages(self, inode: Inode) -> _Pages:
        """ "kept descriptor [of a file that is not locked itself]: 1,000 of 1,000 missed" (row 8)."""
        pages = self._pages.get(inode)
        if pages is not None and self._clock() - pages.at >= self.rules.attributes_s and not pages.dirty:
            pages.at = self._clock()
            self.fetch_status(inode)
            pages = self._pages.get(inode)
        if pages is None:
            self.fetch_status(inode)  # comes with what is read
            pages = self._pages[inode] = _Pages(inode, self._clock())
        return pages

    def forget_content(self, inode: Inode) -> None:
        """Drop what was fetched; not what this node has still to send."""
        pages = self._pages.get(inode)
        if pages is not None and not pages.dirty:
            del self._pages[inode]

    def write(self, inode: Inode, data: bytes, offset: int) -> None:
        """Writes stay here until close, fsync or unlock: "a file written but not closed: empty" (row 12)."""
        pages = self.pages(inode)
        if len(pages.data) < offset:
            pages.data.extend(bytes(offset - len(pages.data)))
        pages.data[offset : offset + len(data)] = data
        pages.dirty.append((offset, data))

    def truncate(self, inode: Inode, size: int) -> None:
        self.flush(inode)
        in_step = self.pages(inode).change == inode.change
        self._server.truncate(inode, size)
        self._wrote(inode, in_step)
        pages = self._pages[inode]
        del pages.data[size:]
        pages.data.extend(bytes(size - len(pages.data)))
        pages.fetched = bytes(inode.data)

    def flush(self, inode: Inode) -> None:
        """Send this node's writes to the server.

        Raises:
            OSError: ESTALE, the file is gone there.
        """
        pages = self._pages.get(inode)
        if pages is None or not pages.dirty:
            return
        dirty, pages.dirty = pages.dirty, []
        if not inode.links:
            raise failed(errno.ESTALE)
        in_step = pages.change == inode.change
        if "two-writers-tear" in self.rules and inode.writer is not self and inode.data != pages.fetched:
            inode.torn = True  # gocryptfs: "then order.lock unreadable (EIO) for good" (filesystems.md)
        for offset, data in dirty:
            self._server.write(inode, data, offset)
        pages.fetched = bytes(inode.data)
        self._wrote(inode, in_step)

    def _wrote(self, inode: Inode, in_step: bool) -> None:
        """A node's own modification leaves its cache valid, unless another node's came in between."""
        if in_step and inode in self._pages:
            self._pages[inode].change = inode.change
        self._attributes.pop(inode, None)

    def modified(self, inode: Inode) -> None:
        """This node has changed the inode's attributes itself."""
        in_step = inode in self._pages and self._pages[inode].change + 1 == inode.change
        self._wrote(inode, in_step)

    def locked(self, inode: Inode) -> None:
        """ "Flock on the log itself: a kept descriptor reads everything", "flock on the file + fstat: fresh".

        "Under a granted flock, content read through a kept descriptor may be old" (filesystems.md, 2).
        """
        if "old-under-lock" in self.rules:
            return
        pages = self._pages.get(inode)
        if pages is not None and not pages.dirty and not self._looks_the_same(inode):
            del self._pages[inode]
        self.fetch_status(inode)
