"""Keep a handle's own record in owners/: written before the first lease, touched by the heartbeat, removed at close.

A full disk has no room for a record, and taking refs out is what empties it. So a handle leases without one there, and
writes it as soon as there is room; until then its heartbeat stamps the leased files themselves.
"""

from __future__ import annotations

import msgspec

from fsqueue.disk.fileops import despite_errors, silently_remove
from fsqueue.disk.mutex import Mutex
from fsqueue.engine import heartbeat
from fsqueue.engine.awake import Awake, gap_s
from fsqueue.engine.clock import Clock
from fsqueue.engine.held import Claim, Held
from fsqueue.engine.layout import Layout
from fsqueue.engine.moves import Moves
from fsqueue.engine.owners import describe_self
from fsqueue.engine.reserve import is_full
from fsqueue.format.names import ref_file

_TRY_AGAIN_S = 1.0


class Presence:
    """Show other handles that this owner is there.

    Attributes:
        mutex: held by the thread that announces the owner.
        heartbeat_s: seconds between the beats that prolong all of the owner's leases; None: it keeps none.
    """

    def __init__(
        self,
        layout: Layout,
        clock: Clock,
        moves: Moves,
        held: Held,
        owner: str,
        heartbeat_s: float | None,
        awake: Awake,
    ) -> None:
        self.heartbeat_s = heartbeat_s
        self._layout = layout
        self._clock = clock
        self._moves = moves
        self._held = held
        self._owner = owner
        self._awake = awake
        self._gaps = 0
        self.mutex = Mutex()
        self._announced = False
        self._beating = False
        self._beat_key: int | None = None
        self._try_again_at = -1e9

    def announce(self) -> None:
        """Write the owner's record, once, before its first lease; start its heartbeat where it keeps one.

        On a full disk the record is left for a later call, a second later at the earliest.
        """
        if self._announced:
            return
        with self.mutex:
            if self._announced or self._layout.ops.monotonic() < self._try_again_at:
                return
            self._keep_pace()
            recorded = self._record()
            if self.heartbeat_s is not None and not self._beating:
                mount = self._layout.root.mount()
                if self._beat_key is None:
                    self._beat_key = heartbeat.heartbeats.new_key()
                heartbeat.heartbeats.register(self._beat_key, self.beat, self.heartbeat_s, self._awake, mount)
                self._beating = True
            self._announced = recorded

    def _keep_pace(self) -> None:
        """Beat twice in a lease timeout that was made shorter before there was a record to speak against it."""
        if self.heartbeat_s is None:
            return
        self._layout.reread()
        timeout_s = self._layout.settings.lease_timeout_s
        if timeout_s is not None and self.heartbeat_s > timeout_s / 2:
            self.heartbeat_s = timeout_s / 2
            self._awake.gap_s = gap_s(self.heartbeat_s, timeout_s)

    def show_up(self) -> None:
        """Keep a long-lived owner's record from looking abandoned."""
        if self._announced:
            self.beat()

    def wake(self) -> None:
        """Beat at once where this process was stopped for a while: the others have seen it silent."""
        self._awake.tick()
        gaps = self._awake.gaps
        if gaps != self._gaps:
            if self._beat_key is not None:
                self.beat()
            self._gaps = gaps

    def beat(self) -> None:
        """Prolong all leases of this owner by touching its record; write it anew where it was deleted.

        Where a full disk has no room for a record, each lease is prolonged by itself.
        """
        try:
            if self._clock.stamp(self._layout.owners, ref_file(self._owner)):
                return
            self._announced = self._record()
            if not self._announced and self.heartbeat_s is not None:
                despite_errors(self._prolong, self._held.all())
        except OSError as error:
            self._layout.recover(error)  # a trainer may call nothing else for an hour
            raise

    def _prolong(self, claim: Claim) -> None:
        self._moves.stamp_lease(claim)

    def _record(self) -> bool:
        """Write the record; False where there is no room for it.

        Leases that never time out end by the proof that their owner is dead, and by nothing else: that is worth the
        reserve.
        """
        try:
            if self._layout.settings.lease_timeout_s is None:
                self._layout.reserve.retrying(self._write_record)
            else:
                self._write_record()
        except OSError as error:
            if not is_full(error):
                raise
            self._try_again_at = self._layout.ops.monotonic() + _TRY_AGAIN_S
            return False
        return True

    def _write_record(self) -> None:
        injected = self._clock.injected
        described = describe_self(
            self._owner, self._clock.now() if injected else self._layout.ops.time(), self.heartbeat_s
        )
        self._moves.write(msgspec.json.encode(described) + b"\n", self._layout.owners, ref_file(self._owner))
        if injected:
            self._clock.stamp(self._layout.owners, ref_file(self._owner))

    def stop_beating(self) -> None:
        """End the heartbeat; the leases last as long as their own mtimes say."""
        if self._beat_key is not None:
            heartbeat.heartbeats.unregister(self._beat_key)
            self._beat_key = None

    def remove(self) -> None:
        """Remove the record, unless leases are left: then it tells others that the process is gone."""
        if self._announced and self._owner not in self._moves.owners_holding():
            silently_remove(self._layout.ops, self._layout.owners.fd, [ref_file(self._owner)])
        self._announced = False
