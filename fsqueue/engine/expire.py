"""Notice expired leases, and bring their refs back.

A lease has expired when lease_timeout_s has passed since the newer of the leased file's mtime and, where the
owner keeps a heartbeat, its record's mtime; or at once when the owner's process is known to be gone. By time, it is
called so only by a process that was awake while the owner was silent (`awake`). A lease that was taken over because
its time was up expires by its mtime alone, until whoever took it over has looked once more: that may be the stamp of
an owner who renewed it in the last instant. One that has ended, and whose ref could not get its name in pending/, is
moved on with every round (`moves`). Whoever takes a member's place in a stream, with proof that the process before it
is gone, brings the leases of that one's handle back at once, in a round of its own (`bring_back`).

A round costs one listing of leased/. A lease that appeared since the previous round cannot expire before that
round's start plus the timeout, so a file is looked at only when its time may have come; one look at an owner's
record covers all of its leases. What a get's round looks at in vain is bounded; the next round goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from math import inf
from typing import NamedTuple

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import despite_errors
from fsqueue.engine.annotations import record
from fsqueue.engine.attempts import Limits, return_or_bury
from fsqueue.engine.awake import Doubts, grace_s
from fsqueue.engine.departed import Departed
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.others import READS_A_ROUND, Others
from fsqueue.format import names
from fsqueue.format.codec import REPLACED
from fsqueue.format.names import Lease
from fsqueue.log import some, tell

ROUND_S = 1.0
IDLE_ROUND_S = 0.05
_BUSY_ROUND_S = 10.0
_OWNERS_A_ROUND = 8
LOOKS_A_ROUND = 128
SETTINGS_S = 30.0
_NO_LIMIT = 1 << 62
_EPSILON_S = 1e-6


class _End(NamedTuple):
    """Say how a lease ended.

    Attributes:
        timed_out: it has to be made sure that its owner has not renewed it in the last instant.
    """

    event: str
    reason: str
    timed_out: bool = False


_GONE = _End("expired", "the owner's process is gone")
_TIMED_OUT = _End("expired", "the lease timed out", timed_out=True)
_REPLACED = _End(REPLACED, "the owner's process was started again")
_WAITS = 5  # where this process is stopped again and again, on a busy machine for instance


class Reclaimer:
    """Reclaim expired leases on behalf of one handle, at a bounded rate.

    A round is due after `ROUND_S` seconds, or a tenth of the lease timeout where that is less.

    Attributes:
        brought: how many refs this has brought back to pending/ so far.
    """

    def __init__(self, handle: Handle, limits: Limits) -> None:
        self._handle = handle
        self._limits = limits
        self._check_at: dict[Lease, float] = {}
        self._first_check: float | None = None  # the first of them; None: to be found anew
        self._quiet_until = -inf  # until then, by monotonic, no round is due but where nothing else is to be done
        self._others = Others(handle)
        self._doubts = Doubts(handle.awake)
        self._departed = Departed(handle, self._others, handle.moves.owners_holding, self._round_now)
        self._owner_waits_s: dict[str, float] = {}  # of this round
        self._silent: set[str] = set()  # owners in this round whose heart has stopped
        self._holders: set[str] = set()  # owners of leases that were left after the last round
        self._named: set[Lease] = set()  # refs on their way back that this handle has named in the order as they are
        self._looks_left = 0
        self._began_at = 0.0
        self._reread_at = handle.ops.monotonic() + SETTINGS_S
        self._last_round: float | None = None
        self._now: float | None = None  # the filesystem's time in this round, read when first needed
        self._last_round_mono = -1e9
        self.brought = 0

    @property
    def _timeout_s(self) -> float | None:
        return self._handle.layout.settings.lease_timeout_s

    @property
    def _round_s(self) -> float:
        timeout_s = self._handle.layout.settings.lease_timeout_s
        return ROUND_S if timeout_s is None or timeout_s > 10 * ROUND_S else timeout_s / 10

    def _interval_s(self, idle: bool) -> float:
        """Return how long after a round the next one is due; where many lease they take turns, since they all look."""
        turns = max(1.0, len(self._holders) / _OWNERS_A_ROUND)
        if idle:
            return min(IDLE_ROUND_S * turns, self._round_s)
        return max(self._round_s, min(ROUND_S * turns, _BUSY_ROUND_S, (self._timeout_s or inf) / 10))

    def due(self, idle: bool) -> bool:
        """Return whether a round is due; that is sooner where idle, with nothing else to hand out."""
        now = self._handle.ops.monotonic()
        if not idle and now < self._quiet_until:
            return False
        interval_s = self._interval_s(idle)
        if now - self._last_round_mono >= interval_s:
            return True
        if self._last_round is None:
            return True
        first = self._first()
        if self._handle.clock.injected:
            now = self._tick()
            return now >= first or now >= self._last_round + self._round_s
        self._quiet_until = min(first, self._last_round_mono + interval_s)
        return now >= first

    def _first(self) -> float:
        """Return when the first of the leases that are known is to be looked at."""
        first = self._first_check
        if first is None:
            first = self._first_check = min(self._check_at.values(), default=inf)
        return first

    def _forget_the_first(self) -> None:
        """Note that other leases may be the first to be looked at."""
        self._first_check, self._quiet_until = None, -inf

    def idle_s(self, rounds: float) -> float:
        """Return for how many seconds a waiting get may go without a round, after so many idle ones.

        No lease is overlooked: one taken meanwhile is seen long before its time comes, one seen before in time.
        """
        if self._handle.clock.injected:
            return self._round_s
        longest_s = min(rounds * self._round_s, (self._timeout_s or inf) / 2)
        return min(longest_s, max(self._round_s, self._first() - self._handle.ops.monotonic()))

    def misses_a_neighbour(self) -> bool:
        """Return whether a process on this host that held leases in the last round is gone; no file is looked at."""
        return any(map(self._others.is_known_dead, self._holders))

    def round_if_due(self, idle: bool) -> int:
        """Make a round, unless none is due or another thread is at it."""
        if not self.due(idle) or not self._handle.mutex.try_acquire():
            return 0
        try:
            return self.round(READS_A_ROUND, LOOKS_A_ROUND)
        finally:
            self._handle.mutex.release()

    def reclaim(self) -> int:
        """Reclaim all that has expired; wait first where this process was not awake for long enough to tell."""
        moved = self.round()
        for _ in range(_WAITS):
            if not self._doubts.left_s:
                break
            self._handle.ops.sleep(self._doubts.left_s)
            moved += self.round()
        return moved

    def round(self, reads: int = _NO_LIMIT, looks: int = _NO_LIMIT) -> int:
        """Reclaim what has expired; return how many refs left leased/.

        Args:
            reads, looks: how many owners' records may be read, and how many leases looked at that have not expired.
        """
        with self._handle.mutex:
            self._handle.presence.wake()
            self._handle.strays.recover()
            started = self._tick()
            leases = self._look_around(reads, looks)
            self._forget_gone(leases)
            dead = self._dead(leases)
            expired = self._expired(leases, dead, started)
            if self._rereads(any(it.is_held and not _ends_with(it, dead) for it in expired)):
                self._check_at.clear()
                expired = self._expired(leases, dead, started)
            self._last_round = started
            self._last_round_mono = self._handle.ops.monotonic()
            moved = self._reclaim_all(sorted(expired), lambda it: _GONE if _ends_with(it, dead) else _TIMED_OUT)
            self._holders = {it.owner for it in leases if it.is_held} - dead
            self._departed.round_if_due()
            return moved

    def _rereads(self, surely: bool) -> bool:
        """Read the settings again, at times, and surely before a lease ends by them; return whether they changed."""
        now = self._handle.ops.monotonic()
        if not surely and now < self._reread_at:
            return False
        self._reread_at = now + SETTINGS_S
        return self._handle.layout.reread()

    def bring_back(self, owners: Collection[str]) -> int:
        """Bring back all leases of owners whose processes were started again; return how many.

        They count as deliveries, as of a process that died. One of these processes that runs all the same, by a
        launcher's error, has lost its leases: its acks end nothing, also of a ref that is pending again.
        """
        handle = self._handle
        with handle.mutex:
            handle.strays.recover()
            handle.layout.leased.refresh()  # NFS: what the other node has leased last is to be seen
            self._now = None
            leases = [it for it in self._leases() if it.is_held and it.owner in owners and it.owner != handle.owner]
            return self._reclaim_all(sorted(it for it in leases if not it.is_timed_take_over), lambda it: _REPLACED)

    def end_overdue(self, claims: Collection[Claim], reason: str) -> int:
        """End leases of this handle that it has held for too long; return how many. Another thread's round goes first.

        A delivery is counted of those whose work had begun.

        RACE: the take-over fences the thread off that works on one: what it settles later finds the lease lost.
        """
        handle = self._handle
        if not handle.mutex.try_acquire():
            return 0
        try:
            self._now = None
            leases = filter(None, (names.parse_leased(claim.name) for claim in claims))
            unbegun = {claim.name for claim in claims if claim.waits}
            ends = _End("expired", reason), _End("released", f"{reason}, behind other work")
            return self._reclaim_all(sorted(leases), lambda it: ends[it.file in unbegun])
        finally:
            handle.mutex.release()

    def would_leave(self) -> set[str]:
        """Return the owners who would hold leases after a round; move nothing."""
        for _ in range(2):
            started, leases = self._tick(), self._look_around(_NO_LIMIT, _NO_LIMIT)
            expired = self._expired(leases, self._dead(leases), started)
            if not self._doubts.left_s:
                break
            self._handle.ops.sleep(self._doubts.left_s)
        return {lease.owner for lease in set(leases).difference(expired) if lease.is_held}

    def _look_around(self, reads: int, looks: int) -> list[Lease]:
        """Begin a round by listing the leases."""
        self._others.begin_round(reads)
        self._looks_left = looks
        self._owner_waits_s.clear()
        self._silent.clear()
        self._began_at = self._handle.ops.monotonic()
        leases = self._leases()
        self._notice_a_hang()
        return leases

    def _notice_a_hang(self) -> None:
        """Tell, after operations that may have hung, that this process runs again."""
        self._began_at = self._handle.awake.tick(self._began_at)

    def _dead(self, leases: list[Lease]) -> set[str]:
        return {
            owner for owner in dict.fromkeys(it.owner for it in leases if it.is_held) if self._others.is_dead(owner)
        }

    def _expired(self, leases: list[Lease], dead: set[str], started: float) -> list[Lease]:
        self._now = None
        self._doubts.keep({*leases, *(lease.owner for lease in leases)})
        ended = [it for it in leases if _ends_with(it, dead) or self._given_up(it) or self._time_has_come(it, started)]
        self._forget_the_first()
        return ended

    def _given_up(self, lease: Lease) -> Claim | None:
        """Return this handle's claim on a lease that it has called lost, and that is there all the same.

        RACE: somebody took it over for its time, this handle missed it, and then it was handed back, since it had been
        renewed. Nobody works on it, and it would not expire as long as this handle beats.
        """
        claim = self._handle.held.find(lease.stem) if lease.owner == self._handle.owner else None
        return claim if claim is not None and (claim.state, claim.name) == ("lost", lease.file) else None

    def _knows(self, lease: Lease) -> bool:
        """Return whether a lease, if it is this handle's, is one that it holds, or that was handed over to it.

        RACE: a claim whose rename was done and reported as failed may be taken over, and handed back since its owner
        beats, after that owner has looked for it in vain. Nobody works on it: it ends by its own stamp.
        """
        if lease.owner != self._handle.owner or lease.claim.startswith("g"):
            return True
        claim = self._handle.held.find(lease.stem)
        return claim is not None and claim.name == lease.file

    def _reclaim_all(self, expired: list[Lease], how: Callable[[Lease], _End]) -> int:
        back: list[str] = []
        moved: list[Lease] = []

        def reclaim(lease: Lease) -> None:
            self._began_at = self._handle.awake.tick()
            if not lease.is_held:
                self._move_on(lease, back)
            elif (given_up := self._given_up(lease)) is not None:
                if self._handle.moves.give_back(given_up):
                    back.append(lease.stem)
                    moved.append(lease)
            elif self._reclaim(lease, how(lease), back):
                moved.append(lease)
            self._check_at.pop(lease, None)

        for lease in expired:
            self._check_at[lease] = self._last_round or 0.0  # should this fail, they are looked at again soon
        if any(lease.is_held for lease in expired):
            self._handle.presence.announce()
        try:
            despite_errors(reclaim, expired)
        finally:
            self._forget_the_first()
            self.brought += len(back)
            self._handle.order.append_soon(back)
            self._handle.counters.add("reclaimed", len(moved))
            self._tell(moved, how)
        return len(moved)

    def _tell(self, moved: list[Lease], how: Callable[[Lease], _End]) -> None:
        for owner in dict.fromkeys(lease.owner for lease in moved):
            mine = [lease for lease in moved if lease.owner == owner]
            path, reason = self._handle.layout.path, how(mine[0]).reason
            ids = some(lease.stem for lease in mine)
            tell(__name__, "info", path, "took back %d leases of %s, %s: %s", len(mine), owner, reason, ids)

    def _tick(self) -> float:
        """Return the time by which rounds are due: the injected clock's, or monotonic."""
        return self._handle.clock.now() if self._handle.clock.injected else self._handle.ops.monotonic()

    def _leases(self) -> list[Lease]:
        parsed = (names.parse_leased(name) for name in self._handle.layout.leased.listing())
        return [lease for lease in parsed if lease is not None]

    def _forget_gone(self, leases: list[Lease]) -> None:
        present = set(leases)
        self._check_at = {lease: at for lease, at in self._check_at.items() if lease in present}
        self._named &= present

    def _time_has_come(self, lease: Lease, now: float) -> bool:
        if lease.due is None and self._timeout_s is None:
            return False
        check_at = self._check_at.get(lease)
        if check_at is None:
            first = self._last_round if lease.due is None else None
            check_at = now if first is None else first + (self._timeout_s or 0.0)
        if now >= check_at:
            wait_s = self._wait_s(lease)
            if wait_s == 0.0:
                return True
            check_at = now + wait_s
        self._check_at[lease] = check_at
        return False

    def _wait_s(self, lease: Lease) -> float:
        """Return for how long a lease need not be looked at again, seconds; 0: it has expired."""
        if lease.due is not None:
            left_s = lease.due - self._round_now()
            return left_s if left_s > _EPSILON_S else 0.0
        assert self._timeout_s is not None
        handle, owner = self._handle, lease.owner
        if owner == handle.owner and handle.presence.heartbeat_s is not None and not handle.clock.injected:
            # It lives, as this call shows, and beats.
            return self._timeout_s if self._knows(lease) else max(0.0, self._left_s(lease, lease.file) or 0.0)
        timed_out = lease.is_timed_take_over
        if not timed_out and (wait_s := self._owner_wait_s(owner)):
            return wait_s
        if self._looks_left <= 0:
            return self._round_s
        since = self._mtime(handle.layout.leased, lease.file)
        left_s = self._round_s if since is None else self._after_s(since)
        if since is None or left_s > _EPSILON_S:
            self._looks_left -= 1
            return left_s
        known_silent = owner in self._silent and not timed_out
        return 0.0 if known_silent else self._doubted_s(lease, since, None if timed_out else self._heartbeat_s(owner))

    def _owner_wait_s(self, owner: str) -> float:
        """Return for how long none of an owner's leases can be called expired, seconds, by one look a round."""
        wait_s = self._owner_waits_s.get(owner)
        if wait_s is None:
            self._owner_waits_s[owner] = wait_s = self._look_at_owner(owner)
        return wait_s

    def _look_at_owner(self, owner: str) -> float:
        assert self._timeout_s is not None
        known = self._others.look(owner, afresh=True)
        if known is None or self._looks_left <= 0:
            return self._round_s
        beat = self._last_beat(owner)
        if beat is None:
            return 0.0
        left_s = self._after_s(beat)
        if left_s > _EPSILON_S:
            self._looks_left -= 1
            return left_s
        wait_s = self._doubted_s(owner, beat, known.heartbeat_s)
        if not wait_s:
            self._silent.add(owner)
        return wait_s

    def _heartbeat_s(self, owner: str) -> float | None:
        known = self._others.look(owner)
        return known.heartbeat_s if known else None

    def _last_beat(self, owner: str) -> float | None:
        """Return when an owner that keeps a heartbeat last beat; None for one that keeps none."""
        if self._heartbeat_s(owner) is None:
            return None
        return self._mtime(self._handle.layout.owners, names.ref_file(owner))

    def _mtime(self, directory: Directory, name: str) -> float | None:
        """Return a file's mtime, read afresh; None where it is gone, which a mount may tell by any error."""
        try:
            return self._handle.ops.fresh_mtime(directory.fd, name)
        except OSError as error:
            if not self._handle.moves.is_gone(directory, name, error):
                raise
            return None

    def _doubted_s(self, who: object, stamp: float, heartbeat_s: float | None) -> float:
        """Return for how long this process must go on to see the same silence before it may accuse anybody."""
        if self._handle.clock.injected:
            return 0.0
        self._notice_a_hang()
        return self._doubts.about(who, stamp, grace_s(heartbeat_s, self._timeout_s))

    def _left_s(self, lease: Lease, name: str) -> float | None:
        """Return the seconds that are left of a lease, in a file of this name in leased/; None where that is gone."""
        since = self._mtime(self._handle.layout.leased, name)
        if since is None:
            return None
        beat = None if lease.is_timed_take_over or not self._knows(lease) else self._last_beat(lease.owner)
        return self._after_s(max(since, beat or 0.0))

    def _after_s(self, stamp: float) -> float:
        """Return the seconds that are left of a lease that was stamped then.

        A stamp without a part of a second may have been cut down to it, on a mount that does so: the lease began later.
        """
        layout, now = self._handle.layout, self._round_now()
        cut_s = 0.0 if stamp % 1 or self._handle.clock.injected else layout.filesystem.step_s
        return stamp + cut_s + layout.settings.timeout_at(now) - now

    def _round_now(self) -> float:
        if self._now is None:
            self._now = self._handle.clock.now()
            if not self._handle.clock.injected:
                self._handle.awake.hear(self._now)
        return self._now

    def _move_on(self, lease: Lease, back: list[str]) -> None:
        """Move a ref on that is on its way back; where this handle has to lease it from where it is, name it once."""
        moved = self._handle.moves.move_on(lease)
        if moved or (moved is None and lease not in self._named):
            back.append(lease.stem)
        if moved is None:
            self._named.add(lease)

    def _reclaim(self, lease: Lease, end: _End, back: list[str]) -> bool:
        """Bring one ref back, or bury it when it has used up its attempts; False where somebody else won.

        RACE: the owner may renew between the look and the take-over. The file's mtime, which the rename keeps, then
        tells, and the lease is handed back. An ack in that instant finds the name gone, and says so.
        CRASH: after the take-over this is a lease of this owner, which expires.
        """
        handle = self._handle
        claim, doubtful = handle.moves.new_claim(lease.stem), handle.moves.new_claim(lease.stem, names.TIMED_OUT)
        try:
            with handle.order_file.soon:
                if not self._take(lease, end.timed_out, claim, doubtful):
                    return False
            if lease.owner == handle.owner:
                handle.held.lose(lease.stem, lease.file)
            if not handle.moves.stamp_lease(claim):
                return False
            counted = record(end.event, self._round_now(), lease.holder, end.reason)
            return return_or_bury(handle, claim, counted, end.reason, self._limits, back)
        except FileNotFoundError:
            return False
        except BaseException:
            handle.strays.add([claim, doubtful])
            raise

    def _take(self, lease: Lease, timed_out: bool, claim: Claim, doubtful: Claim) -> bool:
        """Make a lease that has ended this handle's; False where somebody else did, or it was renewed just now."""
        moves = self._handle.moves
        self._began_at = self._handle.awake.tick()  # that it had ended was seen before the lock was waited for
        if not timed_out:
            return moves.take_over(lease, claim)
        if not moves.take_over(lease, doubtful):
            return False
        if not self._still_expired(lease, doubtful):
            moves.hand_back(doubtful, lease)
            return False
        return moves.rename_leased(doubtful, claim)

    def _still_expired(self, lease: Lease, claim: Claim) -> bool:
        gaps = self._handle.awake.gaps
        left_s = self._left_s(lease, claim.name)
        self._notice_a_hang()
        stalled = gaps != self._handle.awake.gaps and not self._handle.clock.injected
        return left_s is not None and left_s <= _EPSILON_S and not stalled


def _ends_with(lease: Lease, dead: set[str]) -> bool:
    """Return whether a lease has ended: its owner is among the dead, or has given the ref back."""
    return lease.is_returned or (lease.owner in dead and lease.is_held and not lease.is_timed_take_over)
