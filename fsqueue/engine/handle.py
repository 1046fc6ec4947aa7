"""Hold one process's use of an open queue: the owner, and what it works with; after a fork, none of it is shared."""

from __future__ import annotations

import weakref
from collections.abc import Callable

from fsqueue.disk.fileops import FileOps, despite_errors
from fsqueue.disk.filesystems import Filesystem
from fsqueue.disk.mutex import Mutex
from fsqueue.disk.parallel import IoThreads, Overlap
from fsqueue.engine.awake import Awake, gap_s
from fsqueue.engine.clock import Clock, FilesystemClock, InjectedClock, OnlookersClock
from fsqueue.engine.counters import Counters
from fsqueue.engine.held import Held
from fsqueue.engine.layout import Layout
from fsqueue.engine.lock import OrderFile
from fsqueue.engine.moves import Moves
from fsqueue.engine.order import Order
from fsqueue.engine.pausing import PauseSign
from fsqueue.engine.presence import Presence
from fsqueue.engine.strays import Strays
from fsqueue.errors import QueueClosedError, ReadOnlyError

_LOCAL_POLL_S = 0.05
_SHARED_POLL_S = 3.0
_DOUBTED_POLL_S = 6.0


def default_poll_interval_s(filesystem: Filesystem) -> float:
    """Return the longest pause between two looks of a waiting get where nobody chose one, seconds."""
    if filesystem.local:
        return _LOCAL_POLL_S
    return _SHARED_POLL_S if filesystem.lists_afresh else _DOUBTED_POLL_S


class Use:
    """Mark a call that needs a handle's descriptors for as long as it runs."""


class Handle:
    """Hold the open directories, the lock, the clock and the owner of one queue object in one process.

    Attributes:
        owner: this handle's owner name; in leased/ it marks what the handle leases.
        mutex: held by the thread that reclaims, renews, or settles what this handle does not lease.
        held: what it leases.
        strays: what it may lease though nobody has it.
        pause: whether the queue is paused.
        notes_ages: a claim notes since when the ref was pending, which costs a stat of it.
        read_only: it writes nothing; what would, raises.
        poll_interval_s: the longest pause between two looks of a waiting get, seconds.
        awake: since when its process has been running.
        counters: what it has done, in numbers.
        presence: its record and heartbeat.
        closed: once True, a get ends with a QueueClosedError, and leases nothing.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        owner: str,
        durable: bool = True,
        heartbeat_s: float | None = None,
        clock: Callable[[], float] | None = None,
        io_threads: IoThreads = "auto",
        read_only: bool = False,
        poll_interval_s: float | None = None,
    ) -> None:
        self.ops: FileOps = layout.ops
        self.layout = layout
        self.owner = owner
        self.durable = durable
        self.mutex = Mutex()
        self.read_only = read_only
        self.poll_interval_s = poll_interval_s or default_poll_interval_s(layout.filesystem)
        if clock is not None:
            self.clock: Clock = InjectedClock(self.ops, clock)
        else:
            self.clock = (OnlookersClock if read_only else FilesystemClock)(self.ops, layout.root)
        self.counters = Counters()
        self.order_file = OrderFile(self.ops, layout.root, layout.settings.lock, layout.filesystem, self.counters)
        self.order = Order(self.ops, self.order_file)
        self.overlap = Overlap(self.ops, io_threads, layout.remote, layout.filesystem.durable)
        self.moves = Moves(layout, self.clock, owner, durable, self.overlap)
        self.held = Held()
        self.pause = PauseSign(layout)
        self.notes_ages = False
        self.strays = Strays(self.moves, self.held, self.order, self.mutex)
        self.awake = Awake(self.ops, gap_s(heartbeat_s, layout.settings.lease_timeout_s))
        self.order_file.tick = self.awake.tick
        self.presence = Presence(layout, self.clock, self.moves, self.held, owner, heartbeat_s, self.awake)
        self.closed = False
        self._uses: dict[int, weakref.ref[Use]] = {}
        self._open = {"mark": True}

    def require_writable(self, call: str) -> None:
        """Raise a ReadOnlyError where this handle is to write nothing."""
        if self.read_only:
            raise ReadOnlyError(self.layout.path, call)

    def begin_use(self) -> Use:
        """Keep the descriptors open until `end_use`, or until the use is gone with the frame of an interrupted call."""
        use = Use()
        self._uses[id(use)] = weakref.ref(use)
        if self.closed:
            self.end_use(use)
            raise QueueClosedError(self.layout.path)
        return use

    def end_use(self, use: Use) -> None:
        """End a use; the last one after a close closes."""
        self._uses.pop(id(use), None)
        if self.closed:
            self._close_unused()

    def close(self) -> None:
        """Stop the heartbeat, give strays back, and close the descriptors, once nobody uses them any more.

        This waits for nobody: it may run in a signal handler, on top of the very call that it ends.
        """
        self.closed = True
        self.presence.stop_beating()
        for reference in list(self._uses.values()):
            if (use := reference()) is not None:
                weakref.finalize(use, self._close_unused).atexit = False
        use = None  # the loop would keep the last one alive, and with it the descriptors
        self._close_unused()

    def _close_unused(self) -> None:
        if any(reference() is not None for reference in list(self._uses.values())):
            return
        mark = False
        try:
            mark = self._open.pop("mark", False)
            if mark:  # RACE: of several threads, the one that took the mark closes
                steps = [self.strays.recover, self.presence.remove, self.order_file.close, self.layout.close]
                despite_errors(lambda step: step(), steps)
        except OSError:
            raise
        except BaseException:
            if mark:
                self._open["mark"] = True  # whoever closes this again completes it
            raise

    def drop_leftovers(self) -> None:
        """Let go of every lock that an interrupted call of this thread has left held."""
        self.order_file.drop_leftovers()
        for mutex in (self.mutex, self.presence.mutex, self.layout.reopening):
            mutex.drop_leftovers()

    def abandon_in_child(self) -> None:
        """Close a forked child's copies of the descriptors; locks and leases stay the parent's."""
        self.order_file.abandon_in_child()
        self.layout.close()
