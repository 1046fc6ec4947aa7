"""One process's use of one open queue: everything that a queue object needs, and must not share after fork."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from fsqueue import owners
from fsqueue.clock import FilesystemClock, InjectedClock
from fsqueue.fileops import FileOps, silently_remove
from fsqueue.layout import Layout
from fsqueue.lock import OrderFile
from fsqueue.moves import Moves
from fsqueue.names import ref_file
from fsqueue.order import Order

_REMEMBERED = 4096


class Held:
    """Which refs this handle leases, and how its latest leases ended.

    The second half fences a late acknowledgement off: a ref that this handle once leased is only settled
    under its own lease, one that it never leased may be settled whoever holds it.
    """

    def __init__(self) -> None:
        self._held: dict[str, None] = {}
        self._ended: OrderedDict[str, bool] = OrderedDict()

    def add(self, stem: str) -> None:
        self._held[stem] = None
        self._ended.pop(stem, None)

    def end(self, stem: str, lost: bool) -> None:
        """The lease is over; lost: others may have had the ref since."""
        if self._held.pop(stem, False) is None:
            self._ended[stem] = lost
            if len(self._ended) > _REMEMBERED:
                self._ended.popitem(last=False)

    def was_lost(self, stem: str) -> bool | None:
        """How this handle's latest lease on a ref ended; None where it had none, or long ago."""
        return self._ended.get(stem)

    def forget(self, stem: str) -> None:
        """The ref begins a new life: this handle has put it."""
        self._ended.pop(stem, None)

    def stems(self) -> list[str]:
        return list(self._held)

    def __contains__(self, stem: str) -> bool:
        return stem in self._held

    def __len__(self) -> int:
        return len(self._held)


class Handle:
    """The open directories, lock, clock and owner of one queue object in one process.

    Attributes:
        owner: this handle's owner name; in leased/ it marks what the handle leases.
        undelivered: stems leased by a get that an error ended, by the partition it asked for.
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
    ) -> None:
        self.ops: FileOps = layout.ops
        self.layout = layout
        self.owner = owner
        self.durable = durable
        self.heartbeat_s = heartbeat_s
        self.injected = clock is not None
        self.clock = InjectedClock(self.ops, clock) if clock else FilesystemClock(self.ops, layout.root)
        self.order_file = OrderFile(self.ops, layout.root, layout.settings.lock)
        self.order = Order(self.ops, self.order_file)
        self.moves = Moves(layout, self.clock, owner, durable)
        self.held = Held()
        self.sweep_wanted = False
        self.undelivered: dict[tuple[int, int] | None, list[str]] = {}
        self._announced = False
        self._beat_key: int | None = None

    def announce(self) -> None:
        """Write this owner's record, once, before its first lease; start its heartbeat where it keeps one."""
        if self._announced:
            return
        self._write_record()
        self._announced = True
        if self.heartbeat_s is not None:
            self._beat_key = owners.heartbeats.register(self.beat, self.heartbeat_s, self.ops.monotonic)

    def beat(self) -> None:
        """Prolong all leases of this owner by touching its record; writes it anew where it was deleted."""
        try:
            self.clock.stamp(self.layout.owners, ref_file(self.owner))
        except FileNotFoundError:
            self._write_record()

    def _write_record(self) -> None:
        now = self.clock.now() if self.injected else self.ops.time()
        described = owners.describe_self(self.owner, now, self.heartbeat_s)
        owners.write_record(self.ops, self.layout.owners, self.layout.tmp, described)
        if self.injected:
            self.clock.stamp(self.layout.owners, ref_file(self.owner))

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

    def stop_beating(self) -> None:
        if self._beat_key is not None:
            owners.heartbeats.unregister(self._beat_key)
            self._beat_key = None

    def close(self) -> None:
        """Stop the heartbeat and close the descriptors.

        The record stays while leases do: it is what tells others that the process is gone.
        """
        self.stop_beating()
        if self._announced and not self.held:
            silently_remove(self.ops, self.layout.owners.fd, [ref_file(self.owner)])
        self.order_file.close()
        self.layout.close()

    def abandon_in_child(self) -> None:
        """After a fork, close the child's copies of the descriptors; locks and leases stay the parent's."""
        self.order_file.abandon_in_child()
        self.layout.close()
