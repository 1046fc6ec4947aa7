"""Wait for a ref on a shared mount, where every look is a request to a server that a thousand others ask, too.

A look is one listing of the first names in pending/, made anew: it is current on every mount but some (see
`Filesystem.lists_afresh`), shows whatever has come, in whichever way, and costs three operations, of which NFS sends
one. While it shows nothing there is nothing to lease, so neither the lock nor the order is touched. What else a get
does, reclaiming first of all, comes ever less often while nothing happens; but a lease that was seen is looked at when
its time has come, and one whose process was on this host within a second of its end, which costs no operation here.
"""

from __future__ import annotations

from math import inf

from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.handle import Handle
from fsqueue.engine.refused import SWEEP_S
from fsqueue.engine.waiting import SHARE, Look, Pace, StopEvent, Waiting
from fsqueue.format import names

_FIRST_PAUSE_S = 0.01  # a request takes about a millisecond
_MOST_ROUNDS = 15
_JUST_NOW_S = 0.05
_NEIGHBOURS_S = 1.0
_UNNAMED_S = 1.0
_NAMES_A_LOOK = 64


def pace_of(handle: Handle, reclaimer: Reclaimer) -> Pace | Lookout:
    """Return how the gets of a handle wait on its mount."""
    return Lookout(handle, reclaimer) if handle.layout.remote else Pace(handle, reclaimer.idle_s)


class Lookout:
    """Look for refs on behalf of all gets of one handle that wait, in whichever threads: one look serves them all.

    Threads share it without a lock: at worst two of them look at the same moment.

    A pause between two looks lasts for a fifth of the time that was waited, up to the handle's poll_interval_s.

    Attributes:
        shown: the names of refs that the last look showed.
        sees_some: it showed any.
        looked_at: when that was, monotonic.
        arrivals: how many looks have shown something new.
        full_at: when to look at leases and at what no line of the order names; inf: that has just been done.
        unnamed_at: when to do so if what was seen to arrive is pending still, and could not be leased by the order.
    """

    def __init__(self, handle: Handle, reclaimer: Reclaimer) -> None:
        self.shown: frozenset[str] = frozenset()
        self.sees_some = False
        self.looked_at = -inf
        self.arrivals = 0
        self.full_at = inf
        self.unnamed_at = inf
        self._handle = handle
        self._reclaimer = reclaimer
        self._waited_s = 0.0
        self._ticked_at = self._neighbours_at = -inf
        self._order: tuple[int, int] | None = None
        self._by_order = not handle.layout.filesystem.lists_afresh
        self._peeked_at = -inf
        self._swept_at = -inf
        self._is_blind = False  # the last look has failed

    def waiter(self, timeout_s: float | None, stop: StopEvent | None) -> Waiting:
        return _SharedWaiter(self._handle, timeout_s, self, stop)

    def restart(self) -> None:
        """Note that a get came back with refs."""
        self._waited_s = 0.0
        self.full_at = self.unnamed_at = inf

    @property
    def is_fresh(self) -> bool:
        """True where no get has waited since one came back with refs."""
        return not self._waited_s

    @property
    def is_first_look(self) -> bool:
        """True before a handle's first look, where one is enough to know that nothing is pending.

        So a thousand handles that are opened at once, and find nothing, do not queue for the lock.
        """
        return self.looked_at == -inf and not self._by_order

    @property
    def pause_s(self) -> float:
        return min(max(_FIRST_PAUSE_S, SHARE * self._waited_s), self._handle.poll_interval_s)

    def has_just_looked(self) -> bool:
        return self._handle.ops.monotonic() - self.looked_at < min(_JUST_NOW_S, self.pause_s / 2)

    def plan(self) -> None:
        """Set when the next full look is due, after one was made: once as much time again was waited, if not before."""
        if self.full_at == inf:
            rounds = min(max(1.0, self._waited_s), _MOST_ROUNDS)
            self.full_at = self._handle.ops.monotonic() + self._reclaimer.idle_s(rounds)

    def tick(self) -> bool:
        """Note that time is spent waiting; return whether a full look is due at once, since a neighbour's process died.

        Of several threads that wait, the time counts once.
        """
        now = self._handle.ops.monotonic()
        self._waited_s += min(max(0.0, now - self._ticked_at), 2 * _JUST_NOW_S + self.pause_s)
        self._ticked_at = now
        if now - self._neighbours_at >= _NEIGHBOURS_S:
            self._neighbours_at = now
            if self._reclaimer.misses_a_neighbour():
                self.full_at = now
                return True
        return False

    def begin(self) -> None:
        """Note that a get begins to wait now."""
        self._ticked_at = self._handle.ops.monotonic()

    def look(self) -> None:
        """Look at what is pending; where that fails, a full look comes next, and says why.

        NFS: where a server tells of a change by a coarse time stamp, a client may believe an old listing until the
        directory changes again. So the order is looked at, too, once a minute.
        """
        before, order_before = self.shown, self._order
        self.looked_at = self._handle.ops.monotonic()
        try:
            found = self._handle.layout.pending.some_names(_NAMES_A_LOOK, _is_of_a_ref)
        except OSError:
            self.full_at, self._swept_at, self._is_blind = self.looked_at, -inf, True
            return
        self._is_blind = False
        self.shown, self.sees_some = frozenset(found), bool(found)
        if self._by_order or self.looked_at - self._peeked_at >= SWEEP_S:
            self._order, self._peeked_at = self._handle.order_file.peek(), self.looked_at
        first = order_before is None and not self._by_order
        if not self.shown <= before or (self._order != order_before and not first):
            self.arrivals += 1
            self.unnamed_at = self.looked_at + _UNNAMED_S

    def made_full(self) -> Look:
        """Return the full look that is to be made now; what shows after it shows anew."""
        shown, self.shown, now = self.shown, frozenset[str](), self._handle.ops.monotonic()
        self.full_at = self.unnamed_at = inf
        doubted = self._by_order or self._is_blind
        if not shown and not (doubted and now - self._swept_at >= SWEEP_S):
            return Look.LEASES
        self._swept_at = now
        return Look.ALL


class _SharedWaiter(Waiting):
    """Pace one waiting get on a shared mount."""

    def __init__(self, handle: Handle, timeout_s: float | None, lookout: Lookout, stop: StopEvent | None) -> None:
        super().__init__(handle, timeout_s, stop)
        self._lookout = lookout
        self._arrivals = lookout.arrivals

    def first(self) -> Look:
        """Return what to look at: no more than while waiting, where the get before has waited in vain."""
        lookout = self._lookout
        if self._deadline is None or self._handle.strays or (lookout.is_fresh and not lookout.is_first_look):
            lookout.full_at = lookout.unnamed_at = inf
            return Look.ALL
        if lookout.is_first_look:
            lookout.full_at = self._ops.monotonic()
        return Look.NOTHING if lookout.has_just_looked() else self._look()

    def wait(self) -> Look:
        assert self._deadline is not None
        lookout, pause = self._lookout, self._handle.pause
        lookout.begin()
        while True:
            lookout.plan()
            pause_s = lookout.pause_s
            next_at = lookout.looked_at + pause_s * (0.9 + 0.1 * self._ops.random())
            if self._deadline - next_at < pause_s / 4:
                next_at = self._deadline  # one look then, instead of two
            self._sleep_until(min(lookout.full_at, next_at), self._is_awaited)
            self._over = self._ops.monotonic() >= self._deadline
            if pause.found is not None:
                found = self._look_for_the_end_of_a_pause()
            elif lookout.has_just_looked() and lookout.full_at > self._ops.monotonic():
                found = self._new(Look.NOTHING)
            else:
                found = self._look()
            if self._over and found is Look.NOTHING and lookout.shown and pause.found is None:
                found = lookout.made_full()  # what shows may be one that the order does not name
            if self._over or found is not Look.NOTHING:
                return found

    def _is_awaited(self) -> bool:
        """Return whether there is something to look at before the pause is over."""
        lookout = self._lookout
        return lookout.tick() or lookout.arrivals != self._arrivals

    def _look(self) -> Look:
        lookout = self._lookout
        now = self._ops.monotonic()
        if now < lookout.full_at or now - lookout.looked_at >= lookout.pause_s / 2:
            lookout.look()
        if now >= lookout.full_at or (lookout.shown and now >= lookout.unnamed_at):
            found = lookout.made_full()
            if found.takes:
                self._arrivals = lookout.arrivals
            return found
        return self._new(Look.NOTHING)

    def _new(self, otherwise: Look) -> Look:
        """Return ORDER where something has shown up that this get has not tried to lease.

        Of many waiters, most come too late for the refs of a put: they need not list pending/ for that.
        """
        before, self._arrivals = self._arrivals, self._lookout.arrivals
        return Look.ORDER if self._arrivals != before else otherwise

    def _look_for_the_end_of_a_pause(self) -> Look:
        """Look for no refs while the queue is paused: no get leases anything; but leases end as ever."""
        lookout = self._lookout
        now = lookout.looked_at = self._ops.monotonic()
        found = Look.ALL if self._handle.pause.has_ended() else Look.NOTHING
        if found is Look.NOTHING and now >= lookout.full_at:
            found = Look.LEASES
        if found is not Look.NOTHING:
            lookout.full_at = lookout.unnamed_at = inf
        return found


def _is_of_a_ref(name: str) -> bool:
    return names.parse_pending(name) is not None
