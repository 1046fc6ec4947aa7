"""Notice expired leases, and bring their refs back.

A lease has expired when lease_timeout_s has passed since the newer of the leased file's mtime and, where the
owner keeps a heartbeat, its record's mtime; or at once when the owner's process is known to be gone. A lease that
was taken over because its time was up expires by its mtime alone: that may be the stamp of an owner who renewed it
in the last instant, when the one who took it over dies before looking once more.

A round costs one listing of leased/. A lease that appeared since the previous round cannot expire before that
round's start plus the timeout, so a file is looked at only when its time may have come.
"""

from __future__ import annotations

from fsqueue.disk.fileops import despite_errors, silently_remove
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.moves import Change, record
from fsqueue.engine.owners import OwnerRecord, read_record
from fsqueue.format import names
from fsqueue.format.codec import Bookkeeping
from fsqueue.format.names import Lease

ROUND_S = 1.0
IDLE_ROUND_S = 0.05
OWNERS_ROUND_S = 10.0
ABANDONED_ROUND_S = 3600.0
ABANDONED_AFTER_S = 86_400.0
_EPSILON_S = 1e-6
_TIMED_OUT = "t"


class Reclaimer:
    """Reclaim expired leases on behalf of one handle, at a bounded rate.

    A round is due after `ROUND_S` seconds, or a tenth of the lease timeout where that is less.
    """

    def __init__(self, handle: Handle, max_attempts: int | None) -> None:
        self._handle = handle
        self._max_attempts = max_attempts
        self._timeout_s = handle.layout.settings.lease_timeout_s
        self._round_s = ROUND_S if self._timeout_s is None else min(ROUND_S, self._timeout_s / 10)
        self._check_at: dict[Lease, float] = {}
        self._records: dict[str, OwnerRecord | None] = {}
        self._last_round: float | None = None
        self._now: float | None = None  # the filesystem's time in this round, read when first needed
        self._last_round_mono = self._last_owners_mono = self._last_abandoned_mono = -1e9

    def due(self, idle: bool) -> bool:
        """Return whether a round is due; that is sooner where idle, with nothing else to hand out."""
        since_s = self._handle.ops.monotonic() - self._last_round_mono
        if since_s >= (min(IDLE_ROUND_S, self._round_s) if idle else self._round_s):
            return True
        if self._last_round is None:
            return True
        now = self._tick()
        return now >= min(self._check_at.values(), default=now + 1) or (
            self._handle.clock.injected and now >= self._last_round + self._round_s
        )

    def idle_s(self, rounds: int) -> float:
        """Return for how many seconds a waiting get may go without a round, after so many idle ones.

        No lease is overlooked: one taken meanwhile is seen long before its time comes, one seen before in time.
        """
        if self._handle.clock.injected:
            return self._round_s
        first = min(self._check_at.values(), default=float("inf"))
        return min(rounds * self._round_s, max(self._round_s, first - self._handle.ops.monotonic()))

    def round_if_due(self, idle: bool) -> int:
        """Make a round, unless none is due or another thread is at it."""
        if not self.due(idle) or not self._handle.mutex.acquire(blocking=False):
            return 0
        try:
            return self.round()
        finally:
            self._handle.mutex.release()

    def round(self) -> int:
        """Reclaim what has expired; return how many refs left leased/."""
        with self._handle.mutex:
            self._handle.strays.recover()
            started = self._tick()
            leases = self._leases()
            self._forget_gone(leases)
            dead = self._dead(leases)
            expired = self._expired(leases, dead, started)
            self._last_round = started
            self._last_round_mono = self._handle.ops.monotonic()
            moved = self._reclaim_all(sorted(expired), dead)
            self._remove_dead_owners()
            return moved

    def would_leave(self) -> set[str]:
        """Return the owners who would hold leases after a round; move nothing."""
        leases = self._leases()
        expired = self._expired(leases, self._dead(leases), self._tick())
        return {lease.owner for lease in set(leases).difference(expired)}

    def _dead(self, leases: list[Lease]) -> set[str]:
        return {owner for owner in dict.fromkeys(lease.owner for lease in leases) if self._is_dead(owner)}

    def _expired(self, leases: list[Lease], dead: set[str], started: float) -> list[Lease]:
        self._now = None
        return [lease for lease in leases if _ends_with(lease, dead) or self._time_has_come(lease, started)]

    def _reclaim_all(self, expired: list[Lease], dead: set[str]) -> int:
        back: list[str] = []
        moved: list[Lease] = []

        def reclaim(lease: Lease) -> None:
            if self._reclaim(lease, _ends_with(lease, dead), back):
                moved.append(lease)
            self._check_at.pop(lease, None)

        for lease in expired:
            self._check_at[lease] = self._last_round or 0.0  # should this fail, they are looked at again soon
        if expired:
            self._handle.presence.announce()
        try:
            despite_errors(reclaim, expired)
        finally:
            self._handle.order.append_soon(back)
        return len(moved)

    def _tick(self) -> float:
        """Return the time by which rounds are due: the injected clock's, or monotonic."""
        return self._handle.clock.now() if self._handle.clock.injected else self._handle.ops.monotonic()

    def _leases(self) -> list[Lease]:
        parsed = (names.parse_leased(name) for name in self._handle.layout.leased.listing())
        return [lease for lease in parsed if lease is not None]

    def _forget_gone(self, leases: list[Lease]) -> None:
        present = set(leases)
        self._check_at = {lease: at for lease, at in self._check_at.items() if lease in present}
        owners = {lease.owner for lease in leases}
        self._records = {owner: record for owner, record in self._records.items() if owner in owners}

    def _record(self, owner: str) -> OwnerRecord | None:
        found = self._records.get(owner)
        if found is None:
            found = read_record(self._handle.ops, self._handle.layout.owners, owner)
            self._records[owner] = found
        return found

    def _is_dead(self, owner: str) -> bool:
        if owner == self._handle.owner:
            return False
        found = self._record(owner)
        return found is not None and found.liveness() == "dead"

    def _time_has_come(self, lease: Lease, now: float) -> bool:
        if self._timeout_s is None:
            return False
        check_at = self._check_at.get(lease)
        if check_at is None:
            check_at = now if self._last_round is None else self._last_round + self._timeout_s
        if now >= check_at:
            left_s = self._left_s(lease, lease.file)
            if left_s is not None and left_s <= _EPSILON_S:
                return True
            check_at = now + (left_s or 0.0)
        self._check_at[lease] = check_at
        return False

    def _left_s(self, lease: Lease, name: str) -> float | None:
        """Return the seconds that are left of a lease, in a file of this name in leased/; None where that is gone."""
        assert self._timeout_s is not None
        ops, layout = self._handle.ops, self._handle.layout
        since = ops.fresh_mtime(layout.leased.fd, name)
        if since is None:
            return None
        found = None if lease.is_timed_take_over else self._record(lease.owner)
        if found is not None and found.heartbeat_s is not None:
            beat = ops.fresh_mtime(layout.owners.fd, names.ref_file(lease.owner))
            since = max(since, beat or 0.0)
        return since + self._timeout_s - self._round_now()

    def _round_now(self) -> float:
        if self._now is None:
            self._now = self._handle.clock.now()
        return self._now

    def _reclaim(self, lease: Lease, dead: bool, back: list[str]) -> bool:
        """Bring one ref back, or bury it when it has used up its attempts; False where somebody else won.

        RACE: the owner may renew between the look and the take-over. The file's mtime, which the rename keeps, then
        tells, and the lease is handed back. An ack in that instant finds the name gone, and says so.
        CRASH: after the take-over this is a lease of this owner, which expires.
        """
        handle = self._handle
        claim = handle.moves.new_claim(lease.stem, "" if dead else _TIMED_OUT)
        try:
            if not handle.moves.take_over(lease, claim):
                return False
            if not dead and not self._still_expired(lease, claim):
                handle.moves.hand_back(claim, lease)
                return False
            if lease.owner == handle.owner:
                handle.held.lose(lease.stem, lease.file)
            if not handle.clock.stamp(handle.layout.leased, claim.name):
                return False
            reason = "the owner's process is gone" if dead else "the lease timed out"
            counted = record("expired", self._round_now(), lease.holder, reason, attempt=True)
            return return_or_bury(handle, claim, counted, reason, self._max_attempts, back)
        except FileNotFoundError:
            return False
        except BaseException:
            handle.strays.add([claim])
            raise

    def _still_expired(self, lease: Lease, claim: Claim) -> bool:
        left_s = self._left_s(lease, claim.name)
        return left_s is not None and left_s <= _EPSILON_S

    def _remove_dead_owners(self) -> None:
        """Remove the records of processes that are gone and lease nothing, and the tmp files of the dead.

        One that died between taking places in the order and claiming them left refs that no line names.
        """
        handle = self._handle
        if handle.ops.monotonic() - self._last_owners_mono < OWNERS_ROUND_S:
            return
        self._last_owners_mono = handle.ops.monotonic()
        owners = {owner for owner in map(names.parse_owner, handle.layout.owners.listing()) if owner}
        dead = {owner for owner in sorted(owners) if self._is_dead(owner)}
        gone = dead | self._abandoned(owners - dead)
        # The dead lease nothing new: what they hold is in this listing, made after they were found dead.
        gone -= {lease.owner for lease in self._leases()} if gone else set()
        if not gone:
            return
        handle.order.incomplete = True
        silently_remove(handle.ops, handle.layout.tmp.fd, self._leftovers(dead & gone))
        silently_remove(handle.ops, handle.layout.owners.fd, [names.ref_file(owner) for owner in sorted(gone)])

    def _leftovers(self, owners: set[str]) -> list[str]:
        prefixes = tuple(f"{owner}." for owner in owners)
        return [name for name in self._handle.layout.tmp.listing() if name.startswith(prefixes)] if owners else []

    def _abandoned(self, owners: set[str]) -> set[str]:
        """Return, once an hour, those owners whose process cannot be looked at and who have been silent for a day.

        An owner that gets refs shows up every hour, and writes its record anew where that was removed.
        """
        handle = self._handle
        found: set[str] = set()
        if handle.ops.monotonic() - self._last_abandoned_mono < ABANDONED_ROUND_S:
            return found
        self._last_abandoned_mono = handle.ops.monotonic()
        handle.presence.show_up()
        for owner in sorted(owners):
            record = self._record(owner)
            if owner == handle.owner or record is None or record.liveness() != "unknown":
                continue
            seen = handle.ops.fresh_mtime(handle.layout.owners.fd, names.ref_file(owner))
            if seen is not None and seen + (self._timeout_s or 0.0) + ABANDONED_AFTER_S < self._round_now():
                found.add(owner)
        return found


def _ends_with(lease: Lease, dead: set[str]) -> bool:
    """Return whether a lease has ended because its owner is among the dead."""
    return lease.owner in dead and not lease.is_timed_take_over


def return_or_bury(
    handle: Handle, claim: Claim, counted: Change, reason: str, max_attempts: int | None, back: list[str]
) -> bool:
    """Move a ref that this handle leases to the tail of pending/, or to failed/ after its last attempt.

    Args:
        counted: records the attempt.
        back: collects the stems that went to pending/, for the caller to name in the order, once for a batch.
    """

    def change(bookkeeping: Bookkeeping) -> None:
        if bookkeeping.reason is not None:
            # A dead letter that was moved back by hand: it starts afresh.
            bookkeeping.attempts, bookkeeping.reason = 0, None
        counted(bookkeeping)
        if max_attempts is not None and bookkeeping.attempts >= max_attempts:
            bookkeeping.reason = f"{bookkeeping.attempts} attempts, the last one: {reason}"

    bookkeeping = handle.moves.annotate(claim, change)
    if bookkeeping is None:
        return False
    if bookkeeping.reason is not None:
        return handle.moves.bury(claim)
    if not handle.moves.give_back(claim):
        return False
    back.append(claim.stem)
    return True
