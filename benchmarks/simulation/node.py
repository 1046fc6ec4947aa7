"""A process on a node of the simulation: the queue's file operations, answered from caches and by the server."""

from __future__ import annotations

import errno
import os
import random
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from simulation.cache import Cache, Status
from simulation.lies import Lies
from simulation.rules import Rules
from simulation.server import Inode, Server, failed

if TYPE_CHECKING:
    from simulation.world import World


class OpenFile:
    """What a descriptor stands for; the lock belongs to it. What is opened with O_DIRECT is not read from the cache."""

    __slots__ = ("direct", "inode", "offset", "process")

    def __init__(self, inode: Inode, process: Process, direct: bool = False) -> None:
        self.inode = inode
        self.offset = 0
        self.process = process
        self.direct = direct


class Process:
    """One process's descriptors, and each system call of `fsqueue.disk.fileops.CALLS` as its kernel answers it.

    Attributes:
        hang_s: how much longer than usual the call that was just made takes.
    """

    def __init__(self, world: World, cache: Cache, rng: random.Random) -> None:
        self.cache = cache
        self.files: dict[int, OpenFile] = {}
        self.hang_s = 0.0
        self._world = world
        self._server: Server = world.server
        self._rules: Rules = world.rules
        self._rng = rng
        self.lies = Lies(world.server, world.rules, rng)
        self._next_fd = 3

    def _file(self, fd: int) -> OpenFile:
        try:
            return self.files[fd]
        except KeyError:
            raise failed(errno.EBADF) from None

    def _directory(self, dir_fd: int | None) -> Inode:
        return self._server.root if dir_fd is None else self._file(dir_fd).inode

    def _parent(self, path: str, dir_fd: int | None) -> tuple[Inode, str]:
        """The directory that a path's last component is in, by this node's cache."""
        directory = self._directory(dir_fd)
        *above, name = ("" if path == "." else path).strip("/").split("/")
        for part in above:
            found = self.cache.lookup(directory, part)
            if found is None:
                raise failed(errno.ENOENT, path)
            directory = found
        return directory, name

    def _find(self, path: str, dir_fd: int | None) -> Inode:
        directory, name = self._parent(path, dir_fd)
        if not name:
            return directory
        self.lies.of_replacement(directory, name)
        inode = self.cache.lookup(directory, name)
        if inode is not None and not inode.links and not self.cache.opened.get(inode):
            inode = self.cache.ask(directory, name)  # the kernel asks once more after ESTALE
        if inode is None:
            raise failed(errno.ENOENT, path)
        return inode

    def _maybe_stale(self, path: str) -> None:
        """ESTALE under churn (pitfall 18)."""
        if self._rng.random() < self._rules.stale_handles:
            raise failed(errno.ESTALE, path)

    def _retransmitted(self) -> bool:
        """ "Is ENOENT from rename the truth? Not always ... operations hung for about 30 s" (row 3)."""
        if self._rng.random() >= self._rules.retransmits:
            return False
        self.hang_s = self._rng.uniform(0.0, 35.0)
        return True

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        self._maybe_stale(path)
        inode = self._create(path, dir_fd, bool(flags & os.O_EXCL)) if flags & os.O_CREAT else self._find(path, dir_fd)
        if flags & os.O_DIRECTORY:
            if inode.entries is None:
                raise failed(errno.ENOTDIR, path)
            self.cache.open_directory(inode)
        if inode.links:  # else: held open by this node, which goes on reading the old text (row 15)
            self.cache.fetch_status(inode)
        if not flags & (os.O_WRONLY | os.O_RDWR):
            if "read-delegations" in self._rules and inode.entries is None and not flags & os.O_DIRECT:
                self._server.delegate(inode)
        elif inode.delegated is not None:
            self._recall(inode)
        if flags & os.O_TRUNC and inode.data:
            self.cache.truncate(inode, 0)
        self._next_fd += 1
        self.files[self._next_fd] = OpenFile(inode, self, bool(flags & os.O_DIRECT))
        self.cache.opened[inode] = self.cache.opened.get(inode, 0) + 1
        return self._next_fd

    def _create(self, path: str, dir_fd: int | None, exclusive: bool) -> Inode:
        """O_CREAT goes to the server: "open(O_CREAT|O_EXCL): EEXIST at once" (row 5)."""
        directory, name = self._parent(path, dir_fd)
        self.lies.of_creation(directory, name, exclusive)
        inode = self.cache.ask(directory, name)
        if inode is not None and exclusive:
            if not self.lies.has_two_creators(directory, name):
                raise failed(errno.EEXIST, path)
            inode = None
        if inode is None:
            inode = self._server.create(directory, name)
            self.cache.learn(directory, name, inode)
        return inode

    def close(self, fd: int) -> None:
        file = self._file(fd)
        is_gone = not file.inode.links
        try:
            self.cache.flush(file.inode)
        finally:
            self._release(file)
            del self.files[fd]
            self._closed(file.inode)
        if is_gone:
            self.lies.of_close()

    def _closed(self, inode: Inode) -> None:
        self.cache.opened[inode] -= 1
        if not self.cache.opened[inode]:
            del self.cache.opened[inode]
            if inode in self.cache.hidden:
                directory, name = self.cache.hidden.pop(inode)
                if self._server.lookup(directory, name) is inode:
                    self._server.unlink(directory, name)

    def read(self, fd: int, count: int) -> bytes:
        file = self._file(fd)
        data = self.pread(fd, count, file.offset)
        file.offset += len(data)
        return data

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        file = self._file(fd)
        inode = file.inode
        if inode.entries is not None:
            raise failed(errno.EISDIR)
        if inode.torn:
            raise failed(errno.EIO)
        if file.direct:
            self.cache.flush(inode)
            self.cache.forget_content(inode)
        return bytes(self.cache.pages(inode).data[offset : offset + count])

    def readinto(self, fd: int, buffer: memoryview, offset: int) -> int:
        data = self.pread(fd, len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    def write(self, fd: int, data: bytes) -> int:
        file = self._file(fd)
        file.offset += self.pwrite(fd, data, file.offset)
        return len(data)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self.cache.write(self._file(fd).inode, bytes(data), offset)
        return len(data)

    def ftruncate(self, fd: int, size: int) -> None:
        self.cache.truncate(self._file(fd).inode, size)

    def fsync(self, fd: int) -> None:
        self.cache.flush(self._file(fd).inode)

    def forget(self, fd: int) -> None:
        """ "`posix_fadvise(DONTNEED)` before the read cures it" (ceph-fuse; filesystems.md, 2)."""
        self.cache.forget_content(self._file(fd).inode)

    def stat(self, path: str, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> Status:
        return self.cache.status(self._find(path, dir_fd))

    def access(self, path: str, mode: int, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> bool:
        try:
            self._find(path, dir_fd)
        except OSError:
            return False
        return True

    def fstat(self, fd: int) -> Status:
        return self.cache.status(self._file(fd).inode)

    def listdir(self, fd: int) -> list[str]:
        """ "Listing: correct at once" (row 4), but not read at one instant.

        Names come in the order of their hashes, in two requests: a name that comes or goes in between may be
        there or not, and a file that is renamed may be seen under both names or under none, as POSIX allows.
        """
        directory = self._file(fd).inode
        self._maybe_stale("")
        entries = self._server.entries(directory)
        if self._rules.listings_s or "listings-keep-names" in self._rules:
            return sorted(self.cache.listing(directory))
        middle = self._rng.getrandbits(32)
        found = sorted(name for name in entries if zlib.crc32(name.encode()) < middle)
        before = directory.change
        self._world.pause_inside(self)
        rest = sorted(name for name in entries if zlib.crc32(name.encode()) >= middle)
        if directory.change != before and found + rest and self._rng.random() < self._rules.repeats:
            victim = self._rng.choice(found + rest)
            if "listing-misses" in self._rules and victim in rest:
                rest.remove(victim)
            else:
                rest.append(victim)
        return found + rest

    def scan_until(self, fd: int, accept: Callable[[str], bool]) -> bool:
        return any(accept(name) for name in self.listdir(fd))

    def rename(self, name: str, new_name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        """Goes to the server ("ENOENT at once", row 4), unless the name is remembered as missing (row 5)."""
        source, target = self._directory(src_dir_fd), self._directory(dst_dir_fd)
        known = self.cache.known(source, name)
        if known == (None,):
            raise failed(errno.ENOENT, name, new_name)
        if self._is_no_op(known, source, name, target, new_name):
            return
        inode = self._server.lookup(source, name)
        if inode is not None and inode.delegated is not None:
            self._recall(inode)
        if self._server.lookup(source, name) is not None:
            self._hide(target, new_name)
        elif "failure-teaches-nothing" not in self._rules:
            self.cache.forget(source, name)
            self.lies.of_loss(source, name, new_name)
        inode = self._server.rename(source, name, target, new_name)
        self.cache.forget_status(inode)
        self.cache.learn(source, name, None)
        self.cache.learn(target, new_name, inode)
        if self._retransmitted():
            raise failed(errno.ENOENT, name, new_name)

    def _is_no_op(
        self, known: tuple[Inode | None] | None, source: Inode, name: str, target: Inode, new_name: str
    ) -> bool:
        """ "The client asks for both names, still believes the old answer ... and sends no rename at all"
        (filesystems.md, 1): rename(2) between two names of one file does nothing and succeeds.
        """
        if "no-op-renames" not in self._rules or (known_there := self.cache.known(target, new_name)) is None:
            return False
        if known_there[0] is None or self._rng.random() >= self._rules.believed:
            return False
        inode = known[0] if known else self.cache.ask(source, name)
        is_no_op = inode is known_there[0] and (source, name) != (target, new_name)
        if is_no_op:
            self._world.say(f"the rename of {name} does nothing: {new_name} is remembered for the same file")
        return is_no_op

    def _recall(self, inode: Inode) -> None:
        """Others run while a dead node's delegation holds this one up."""
        if held_up_s := self._server.recall(inode):
            self._world.wait(held_up_s)
            self._server.caller = self.cache

    def _hide(self, directory: Inode, name: str) -> bool:
        """ "Unlink of a file that is open, by the same client: .nfsXXXX appears in its directory until closed"."""
        inode = self._server.lookup(directory, name)
        if inode is None or not self.cache.opened.get(inode) or inode in self.cache.hidden:
            return False
        hidden = f".nfs{inode.number:016x}"
        self._server.rename(directory, name, directory, hidden)
        self.cache.hidden[inode] = (directory, hidden)
        return True

    def link(self, name: str, new_name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        inode, target = self._find(name, src_dir_fd), self._directory(dst_dir_fd)
        self.cache.forget(target, new_name)
        self._server.link(inode, target, new_name, replace=self.lies.has_two_creators(target, new_name))
        self.cache.linked[target, new_name] = inode
        self.cache.modified(inode)
        if self._retransmitted():
            raise failed(errno.EEXIST, name, new_name)

    def unlink(self, name: str, *, dir_fd: int) -> None:
        directory = self._directory(dir_fd)
        if self.cache.known(directory, name) == (None,):
            raise failed(errno.ENOENT, name)
        inode = self._server.lookup(directory, name)
        if inode is None:
            self.lies.of_loss(directory, name)
        elif inode.delegated is not None:
            self._recall(inode)
        if not self._hide(directory, name):
            self._server.unlink(directory, name)
        self.cache.learn(directory, name, None)
        if "unlink-retransmitted" in self._rules and self._retransmitted():
            raise failed(errno.ENOENT, name)

    def mkdir(self, path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        directory, name = self._parent(path, dir_fd)
        self.cache.forget(directory, name)
        self.cache.learn(directory, name, self._server.mkdir(directory, name))
        if self._retransmitted():
            raise failed(errno.EEXIST, path)

    def utime(
        self, name: str, ns: tuple[int, int] | None = None, *, dir_fd: int | None = None, follow_symlinks: bool = True
    ) -> None:
        """On a name that another node renamed away, it lands on the file wherever it is now (row 4)."""
        inode = self._find(name, dir_fd)
        if not inode.links:
            raise failed(errno.ESTALE, name)
        self.cache.stamped(*self._parent(name, dir_fd))
        self._server.stamp(inode, ns[1] if ns else None)
        self.cache.modified(inode)

    def lock(self, fd: int) -> bool:
        file = self._file(fd)
        if not file.inode.links:
            raise failed(errno.ESTALE)
        if self._rules.lock == "excludes":
            if not self._server.try_lock(file.inode, file, self.lies.a_lock_is_lost()):
                return False
            self.cache.locked(file.inode)
        elif self._rules.lock == "local" and self.cache.local_locks.setdefault(file.inode, file) is not file:
            return False
        self._world.entered(file)
        return True

    def unlock(self, fd: int) -> None:
        file = self._file(fd)
        if "old-under-lock" not in self._rules:
            with suppress(OSError):  # the kernel tells of it at close
                self.cache.flush(file.inode)
        self._release(file)

    def _release(self, file: OpenFile) -> None:
        self._server.unlock(file.inode, file)
        if self.cache.local_locks.get(file.inode) is file:
            del self.cache.local_locks[file.inode]
        self._world.left(file)

    def die(self, node_dies: bool) -> None:
        """The process is killed: its kernel closes its files; or the node dies, and nobody does.

        NFS: "A client dies holding a flock. Stays dead: free after 91 s on NFS 4.2" (row 11).
        """
        if node_dies:
            self._server.orphan(self.cache)
        for fd, file in list(self.files.items()):
            if node_dies:
                self._server.orphan(file)
                self._world.left(file)
                continue
            with suppress(OSError):
                self.close(fd)
        self.files.clear()
