"""Lock order.lock, which orders put and get: by filelock's own primitive, polled, never waited on for good.

No promise but FIFO order and deduplication rests on it. Where it cannot be had, get goes on without it, and
put replaces the file, whose lock a dead node may keep for minutes, by a fresh one. Where the file cannot be used at
all, and not be replaced either, both go on without.

Modes: ``flock`` locks order.lock itself; ``lease`` takes filelock's SoftFileLease on order.lease; ``none`` takes
nothing.
"""

from __future__ import annotations

import errno
import os
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.filesystems import Filesystem
from fsqueue.engine import order_access
from fsqueue.engine.counters import Counters
from fsqueue.engine.layout import ORDER
from fsqueue.engine.lock_pace import LockPace
from fsqueue.engine.order_access import Shown, put_fresh
from fsqueue.engine.order_content import STUCK_FOR_S, OrderContent, StaleLockWarning
from fsqueue.engine.reserve import is_full
from fsqueue.errors import LockUnsupportedError

if TYPE_CHECKING:
    from fsqueue.engine.order_lease import OrderLease

GET_PATIENCE_S = 2.0
PUT_TIMEOUT_S = 30.0
_BRISK_LOSSES = 3
_MOST_LOSSES = 50
_UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


class Hold:
    """Take the lock at the beginning of a with block and give it back at its end; its value says whether it is held.

    Nothing else takes or gives it. An exception in the midst of either lets go of everything.
    """

    __slots__ = ("_give", "_take")

    def __init__(self, take: Callable[[], bool], give: Callable[[], None]) -> None:
        self._take = take
        self._give = give

    def __enter__(self) -> bool:
        return self._take()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._give()


class OrderFile:
    """Lock order.lock, and give access to what it holds.

    Attributes:
        content: its descriptors; valid while the lock is held, and to be used by its holder alone.
        soon: holds the lock for a with block, or lets it go on without where it cannot be had in `GET_PATIENCE_S`
            seconds. After one such failure it is only tried, not waited for, for `STUCK_FOR_S` seconds, unless its
            holder moves on.
        to_take: does as soon does, for whoever only takes places: on NFS, a look at whether the file still goes by its
            name is made once a second, since claims exclude each other without the lock.
        surely: holds the lock for a with block, and replaces its file where a holder has not moved on for
            `PUT_TIMEOUT_S` seconds. It goes on without only where the file can neither be used nor replaced. Raises
            a LockTimeoutError in mode ``lease``, where a dead holder's claim expires and a live one's does not.
        tick: called with every look at a lock that is not free: who waits is not stopped.
    """

    def __init__(
        self, ops: FileOps, root: Directory, mode: str, filesystem: Filesystem, counters: Counters | None = None
    ) -> None:
        self.ops = ops
        self.root = root
        self._counters = counters or Counters()
        self.content = OrderContent(ops, root, filesystem, mode == "flock")
        self._remote = not filesystem.local
        self._mode = mode
        self.soon = Hold(self._take_soon, self._give)
        self.to_take = Hold(partial(self._take_soon, to_take=True), self._give)
        self.surely = Hold(self._take_surely, self._give)
        self.tick: Callable[[], object] = bool
        self._mutex = threading.RLock()
        self._inside: set[int] = set()  # the threads that take, hold or give the lock
        self._stuck_until = 0.0
        self._stuck_at: Shown | None = None
        self._pace = LockPace()
        self._lease: OrderLease | None = None
        if mode == "lease":
            from fsqueue.engine.order_lease import OrderLease

            self._lease = OrderLease(ops, root)

    def _take_soon(self, to_take: bool = False) -> bool:
        stuck = self._stuck_at is not None and self._is_still_stuck()
        if self._take_if_room(0.0 if stuck else GET_PATIENCE_S, to_take):
            self._stuck_at = None
            return True
        if not stuck:
            self._stuck_at, self._stuck_until = self.look(), self.ops.monotonic() + STUCK_FOR_S
            if self._lease is not None:
                self._lease.break_stale()
        return False

    def _is_still_stuck(self) -> bool:
        return self.ops.monotonic() < self._stuck_until and self.look() == self._stuck_at

    def _take_if_room(self, patience_s: float, to_take: bool = False) -> bool:
        """Do as `_take`; a full disk that has no room for the file that is to be locked counts as a lock not had."""
        try:
            return self._take(patience_s, to_take=to_take)
        except OSError as error:
            if not is_full(error):
                raise
            return False

    def _take_surely(self) -> bool:
        rounds = 0
        while not self._take(PUT_TIMEOUT_S, after_threads=True):
            if self.content.is_unusable():
                return False
            rounds += 1
            self._replace(rounds)
        return True

    def _take(self, patience_s: float, after_threads: bool = False, to_take: bool = False) -> bool:
        """Take the lock within patience_s seconds of its holder's last sign of life, or return False.

        Args:
            after_threads: wait for other threads of this process in any case: what they hold is not stuck.

        Raises:
            LockUnsupportedError: the mount has no such lock.
        """
        thread = threading.get_ident()
        if thread in self._inside:
            self.drop_leftovers()
        self._inside.add(thread)
        try:
            if not self._mutex.acquire(timeout=-1 if after_threads else patience_s):
                self._inside.discard(thread)
                return False
            if self._lease is None and self._try_lock(0.0) and self.content.is_current(to_take):
                self._pace.free += 1
                return True
            if self._take_counting(patience_s):
                return True
            self._leave(thread)
            return False
        except BaseException:
            self.drop_leftovers()
            raise

    def _give(self) -> None:
        thread = threading.get_ident()
        if thread not in self._inside:
            return  # it was not had; or a signal handler that ran in the midst of the block has let go of it
        try:
            content, locked_fd = self.content, self.content.locked_fd
            if not content.locked:
                # NFS: without a lock on this very file, a kept descriptor would go on showing old content.
                content.drop()
            elif locked_fd >= 0:
                if content.fd != locked_fd:
                    content.close_second()
                self.ops.unlock(locked_fd)
            if self._lease is not None:
                self._lease.release()
        except BaseException:
            self.drop_leftovers()
            raise
        self._leave(thread)

    def _leave(self, thread: int) -> None:
        try:
            self._mutex.release()
        except RuntimeError:
            if thread in self._inside:
                raise
            return  # a signal handler that ran just now has closed this
        self._inside.discard(thread)

    def drop_leftovers(self) -> None:
        """Let go of what an interrupted call of this thread has left locked, if anything.

        An exception may come between any two lines: a signal handler's, for instance. Closing the descriptor drops its
        lock too, whatever state it was left in.
        """
        thread = threading.get_ident()
        try:
            if thread in self._inside and self._mutex.acquire(blocking=False):
                self._unlock_quietly()
        finally:
            with suppress(RuntimeError):  # as often as it was acquired; an RLock says when it is not held any more
                while True:
                    self._mutex.release()
            self._inside.discard(thread)

    def probe(self) -> None:
        """Find out whether the mount has the lock at all.

        Raises:
            LockUnsupportedError: it has not.
        """
        if self._take_if_room(0.0):
            self._give()

    def close(self) -> None:
        """Close the descriptor; never wait for this thread itself, which a signal handler may have interrupted."""
        self.drop_leftovers()
        mine = self._mutex.acquire(timeout=GET_PATIENCE_S)
        try:
            self.content.drop()
        finally:
            if mine:
                self._mutex.release()

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):  # a handle that was dropped without close()
            self.content.drop()

    def abandon_in_child(self) -> None:
        """Close the child's copy of the descriptor, without the mutex that a thread of the parent may hold.

        Closing it does not unlock: the lock belongs to the open file, which the parent still has.
        """
        self.content.drop()

    def peek(self) -> tuple[int, int] | None:
        """Return which file it is (by inode) and its size, without the lock; None where that cannot be told."""
        return order_access.peek(self.ops, self.root, self._remote)

    def look(self) -> Shown | None:
        """Return what a holder that moves on changes, without the lock; None where it cannot be read just now."""
        return order_access.look(self.ops, self.root)

    def _take_counting(self, patience_s: float) -> bool:
        """Do as `_take_within`, and count that and for how long the lock was waited for."""
        began, counters = self.ops.monotonic(), self._counters
        counters.add("lock_waits")
        taken = self._take_within(patience_s)
        counters.add("lock_wait_s", max(0.0, self.ops.monotonic() - began))
        if not taken:
            counters.add("lock_not_had")
        return taken

    def _take_within(self, patience_s: float) -> bool:
        """Take the lock, or return False when its holder has not moved on for patience_s seconds."""
        monotonic = self.ops.monotonic
        started = monotonic()
        deadline = started + patience_s
        seen, looked, losses = None, False, 0
        while True:
            if self._try_lock(max(0.0, deadline - monotonic())):
                if self.content.is_current():
                    now = monotonic()
                    self._pace.taken(now, now - started)
                    return True
                # The file was deleted or replaced under this handle: its lock excludes nobody any more.
                self._unlock_dropped()
                losses += 1
                if losses == _MOST_LOSSES:
                    self.content.give_up()
                elif losses < _BRISK_LOSSES:
                    continue
            if self.content.is_unusable():
                return False
            now = monotonic()
            if patience_s and not looked and now >= deadline - patience_s / 2:
                seen, looked = self.look(), True
            if now >= deadline:
                if self.content.was_replaced():
                    self.content.drop()
                else:
                    before, seen = seen, self.look()
                    if not patience_s or seen == before:
                        return False
                deadline = monotonic() + patience_s
                continue
            self.ops.sleep(self._pace.pause_s(now - started) * (0.5 + self.ops.random()))
            self.tick()

    def _try_lock(self, patience_s: float) -> bool:
        content = self.content
        if self._lease is not None and not self._lease.acquire(patience_s):
            return False
        if content.locked_fd < 0 and not content.open():
            if self._lease is not None:
                self._lease.release()
            return False
        if not content.locked:
            return True
        try:
            return self.ops.lock(content.locked_fd)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise LockUnsupportedError(os.path.join(self.root.path, ORDER), error) from error
            content.fail(error)
            return False

    def _unlock_dropped(self) -> None:
        self.content.drop()
        if self._lease is not None:
            self._lease.release()

    def _unlock_quietly(self) -> None:
        """Unlock first: an interrupt within `drop` leaves a descriptor open that nobody knows any more."""
        with suppress(OSError):
            if self.content.locked_fd >= 0 and self.content.locked:
                self.ops.unlock(self.content.locked_fd)
        self.content.drop()
        if self._lease is not None:
            self._lease.release(force=True)

    def _replace(self, rounds: int) -> None:
        """Put a fresh copy of the order file in the place of one whose lock does not come free.

        RACE: waiters that come second find another inode and wait for its lock. Two that replace at the same instant
        may both go on, which costs order and deduplication, nothing else.
        """
        if self._lease is not None:
            self._lease.break_stale(rounds, rounds * PUT_TIMEOUT_S)
            return
        if self.content.was_replaced():
            self.content.drop()
            return
        put_fresh(self.ops, self.root)
        self._counters.add("lock_replaced")
        self.content.drop()
        path = os.path.join(self.root.path, ORDER)
        warnings.warn(
            f"the lock on {path} was held by another process for {PUT_TIMEOUT_S:.0f} s, perhaps on a node that died; "
            "replaced it and went on",
            StaleLockWarning,
            stacklevel=2,
        )
