"""One process's use of one open queue: everything that a queue object needs, and must not share after fork."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from fsqueue.disk.fileops import FileOps, despite_errors, silently_remove
from fsqueue.disk.parallel import IoThreads, Overlap
from fsqueue.engine import owners
from fsqueue.engine.clock import FilesystemClock, InjectedClock
from fsqueue.engine.layout import Layout
from fsqueue.engine.lock import OrderFile
from fsqueue.engine.moves import Moves
from fsqueue.engine.order import Order
from fsqueue.format.names import ref_file

if TYPE_CHECKING:
    from fsqueue.stream.stream import Stream

_REMEMBERED = 4096

Ending = Literal["settled", "returned", "lost"]


class Held:
    """Which refs this handle leases, and how its latest leases ended.

    The second half fences a late acknowledgement off: a ref that this handle once leased is only settled
    under its own lease, one that it never leased may be settled whoever holds it. What was lost is remembered
    for good (it is rare), what was settled for the last `_REMEMBERED` refs.
    """

    def __init__(self) -> None:
        self._claiming: dict[str, object] = {}
        self._held: dict[str, None] = {}
        self._lost: set[str] = set()
        self._ended: OrderedDict[str, Ending] = OrderedDict()

    def begin(self, stem: str) -> bool:
        """Before claiming a ref; False where another thread of this handle is claiming it."""
        mark = object()
        return self._claiming.setdefault(stem, mark) is mark

    def add(self, stem: str) -> None:
        """The ref is claimed; how earlier leases on it ended does not count any more."""
        self._held[stem] = None
        self._claiming.pop(stem, None)
        self.forget(stem)

    def cancel_claim(self, stem: str) -> None:
        """The claim came to nothing."""
        self._claiming.pop(stem, None)

    def drop(self, stem: str) -> None:
        """A lease that nobody learned of was given back."""
        self._claiming.pop(stem, None)
        self._held.pop(stem, None)

    def end(self, stem: str, how: Ending) -> None:
        """The lease is over: acked or buried, given back to pending/, or lost so that others may have it.

        RACE: a renewal may miss the file that another thread has just settled, and call the lease lost before that
        thread comes here; who settled it knows better.
        """
        self._claiming.pop(stem, None)
        was_held = self._held.pop(stem, False) is not False
        if how == "lost":
            if was_held:
                self._lost.add(stem)
            return
        if not was_held and stem not in self._lost:
            return
        self._lost.discard(stem)
        self._ended[stem] = how
        if len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)

    def ending(self, stem: str) -> Ending | None:
        """How this handle's latest lease on a ref ended; None where it had none, or long ago."""
        return "lost" if stem in self._lost else self._ended.get(stem)

    def forget(self, stem: str) -> None:
        """The ref begins a new life, by a put or a claim of this handle."""
        if self._lost or self._ended:
            self._lost.discard(stem)
            self._ended.pop(stem, None)

    def __contains__(self, stem: str) -> bool:
        return stem in self._held


@dataclass
class ByteCount:
    """How many refs a handle has put with watermarks, and their features' size in bytes."""

    count: int = 0
    total: int = 0


class Handle:
    """The open directories, lock, clock and owner of one queue object in one process.

    Attributes:
        owner: this handle's owner name; in leased/ it marks what the handle leases.
        mutex: held by the thread that reclaims, renews, or settles what this handle does not lease.
        strays: refs that may be leased to this owner though nobody has them, after an error; the next call
            gives them back.
        opened_at: when this handle was opened, monotonic.
        waited_s: how long gets have waited since one last came back with refs, seconds.
        sweep_wanted: refs may lie in pending/ that no line of the order names.
    """

    def __init__(
        self,
        layout: Layout,
        *,
        owner: str,
        durable: bool,
        heartbeat_s: float | None,
        clock: Callable[[], float] | None,
        io_threads: IoThreads = "auto",
    ) -> None:
        self.ops: FileOps = layout.ops
        self.layout = layout
        self.owner = owner
        self.durable = durable
        self.heartbeat_s = heartbeat_s
        self.injected = clock is not None
        self.clock = InjectedClock(self.ops, clock) if clock else FilesystemClock(self.ops, layout.root)
        self.order_file = OrderFile(self.ops, layout.root, layout.settings.lock, layout.remote)
        self.order = Order(self.ops, self.order_file)
        self.overlap = Overlap(self.ops, io_threads, layout.remote)
        self.moves = Moves(layout, self.clock, owner, durable, self.overlap)
        self.held = Held()
        self.mutex = threading.RLock()
        self.strays: dict[str, None] = {}
        self.sweep_wanted = False
        self.waited_s = 0.0
        self.stream: Stream | None = None
        self.put_bytes = ByteCount()
        self.opened_at = self.ops.monotonic()
        self._announced = False
        self._beat_key: int | None = None

    def announce(self) -> None:
        """Write this owner's record, once, before its first lease; start its heartbeat where it keeps one."""
        if self._announced:
            return
        with self.mutex:
            if self._announced:
                return
            self._write_record()
            if self.heartbeat_s is not None:
                self._beat_key = owners.heartbeats.register(self.beat, self.heartbeat_s, self.ops.monotonic)
            self._announced = True

    def show_up(self) -> None:
        """Let a long-lived owner's record not look abandoned."""
        if self._announced:
            self.beat()

    def beat(self) -> None:
        """Prolong all leases of this owner by touching its record; writes it anew where it was deleted."""
        try:
            self.clock.stamp(self.layout.owners, ref_file(self.owner))
        except FileNotFoundError:
            self._write_record()

    def _write_record(self) -> None:
        now = self.clock.now() if self.injected else self.ops.time()
        described = owners.describe_self(self.owner, now, self.heartbeat_s)
        self.moves.write(msgspec.json.encode(described) + b"\n", self.layout.owners, ref_file(self.owner))
        if self.injected:
            self.clock.stamp(self.layout.owners, ref_file(self.owner))

    def stray(self, stems: Iterable[str]) -> None:
        """Note refs that may be leased to this owner though nobody has them."""
        for stem in stems:
            self.strays[stem] = None

    def recover_strays(self) -> None:
        """Give strays back to pending/, as they are.

        RACE: of two threads, the one that holds the mutex gives a stray back, before anybody can claim it anew.
        """
        if not self.strays:
            return
        back: list[str] = []

        def recover(stem: str) -> None:
            if self.moves.give_back(stem):
                back.append(stem)
            self.held.drop(stem)
            self.strays.pop(stem, None)

        with self.mutex:
            try:
                despite_errors(recover, list(self.strays))
            finally:
                self.requeue_order(back)

    def requeue_order(self, stems: Iterable[str]) -> None:
        """Name refs that have come back to pending/ at the order's tail.

        Where the lock cannot be had, a sweep will find them.
        """
        back = list(stems)
        if not back:
            return
        if not self.order_file.acquire_soon():
            self.sweep_wanted = True
            return
        try:
            self.order.append_locked(back)
        except OSError:
            self.sweep_wanted = True  # the order is a hint: the refs are in pending/ all the same
        finally:
            self.order_file.release()

    def close(self) -> None:
        """Stop the heartbeat, give strays back, and close the descriptors.

        The record stays while leases do: it is what tells others that the process is gone.
        """
        if self._beat_key is not None:
            owners.heartbeats.unregister(self._beat_key)
            self._beat_key = None
        try:
            self.recover_strays()
            if self._announced and not any(self.owner in held for held in self.moves.holders().values()):
                silently_remove(self.ops, self.layout.owners.fd, [ref_file(self.owner)])
        finally:
            parts = [self.order_file.close, self.layout.close, *([self.stream.close] if self.stream else [])]
            despite_errors(lambda close: close(), parts)

    def abandon_in_child(self) -> None:
        """After a fork, close the child's copies of the descriptors; locks and leases stay the parent's."""
        self.order_file.abandon_in_child()
        self.layout.close()
        if self.stream is not None:
            self.stream.close()
