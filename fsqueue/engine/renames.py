"""Rename files of a queue, and say what came of it: the only place that believes or doubts a rename.

Three kinds of target name. A *fresh* one was never used by anybody: a rename to it cannot be a no-op, and a file under
it is the one that was moved. The others may be known to this client, and then its 0 is doubted on every filesystem
that is not local. Where opening a directory makes the client ask again (NFS), both are opened before the rename, which
makes it real; elsewhere the source is opened after it: what still opens was not moved.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Literal

from fsqueue.disk.directory import Directory
from fsqueue.engine.arrival import Stamped, has_arrived, holds, is_gone, patiently, refusal, still_opens
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import Layout
from fsqueue.engine.reserve import is_full

Result = Literal["done", "lost", "undone"]
"""Of a rename: this process made it; the file was gone; it was reported done, and the file is where it was."""


class Renames:
    """Rename files on behalf of one handle.

    Args:
        stamped: returns what tells the file of a lease of this handle's from others that have had its new name, there.
    """

    def __init__(self, layout: Layout, stamped: Callable[[Claim, Directory], Stamped | None]) -> None:
        self._stamped = stamped
        self._ops = layout.ops
        self._layout = layout
        self._remote = layout.remote
        self._opening_asks = layout.filesystem.opening_asks

    def to_fresh(self, source: Directory, name: str, target: Directory, new_name: str) -> bool:
        """Rename to a name that nobody has used; False where the file was gone. Of several processes one gets True."""
        try:
            self._ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
        except OSError as error:
            return self._was_made(error, source, name, target, new_name, lambda: self._ops.exists(target.fd, new_name))
        return True

    def of_new(self, source: Directory, name: str, target: Directory, new_name: str) -> bool:
        """Rename a file that this process has just made: no client knows it under another name."""
        started = self._ops.monotonic()
        try:
            self._ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
        except OSError as error:
            return self._was_made(error, source, name, target, new_name, self._arrival(target, new_name, started, None))
        return True

    def to_known(
        self,
        source: Directory,
        name: str,
        target: Directory,
        new_name: str,
        *,
        doubted: bool = True,
        claim: Claim | None = None,
    ) -> Result:
        """Rename to a name that this client may have known for the same file.

        Args:
            doubted: false where this client has moved the file away from that name itself, so that it remembers none.
                Opening the directories is saved then.
            claim: the lease of this handle's whose file it is; None where it is another one's, or none's.
        """
        ops, started = self._ops, self._ops.monotonic()
        if doubted and self._opening_asks and self._remote:
            source.refresh()
            target.refresh()
        try:
            ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
        except OSError as error:
            arrived = self._arrival(target, new_name, started, self._stamped(claim, target) if claim else None)
            if not self._was_made(error, source, name, target, new_name, arrived):
                return "lost"
        if self._remote and not self._opening_asks and self._is_there(source, name):
            return "undone"
        return "done"

    def _arrival(self, target: Directory, new_name: str, started: float, stamped: Stamped | None) -> Callable[[], bool]:
        return lambda: has_arrived(self._layout, target, new_name, started, stamped)

    def _is_there(self, directory: Directory, name: str) -> bool:
        try:
            return still_opens(self._ops, directory.fd, name)
        except OSError:
            return holds(directory, name)

    def _was_made(
        self,
        error: OSError,
        source: Directory,
        name: str,
        target: Directory,
        new_name: str,
        arrived: Callable[[], bool],
    ) -> bool:
        """Return whether a rename was made that reported an error, at the second try perhaps; False: it was lost.

        NFS: an ENOENT may be a remembered miss, or the answer to a retransmitted rename that was done; a soft mount
        says EIO or ETIMEDOUT of one that it did not wait for. So the directories are opened afresh first.

        Raises:
            OSError: it was refused, and the file is where it was; or the look was.
        """
        if not self._remote and error.errno == errno.ENOENT:
            return False
        while is_full(error) and source not in self._layout.tmps and self._layout.reserve.give_up():
            try:
                self._ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
                return True
            except OSError as again:
                error = again
        patiently(source.refresh)
        patiently(target.refresh)
        if patiently(arrived):
            return True
        if error.errno == errno.ENOENT:
            try:
                self._ops.rename(name, new_name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
                return True
            except OSError as again:
                error = again
        if is_gone(self._layout, source, name, error):
            return False
        raise refusal(error, source, target)
