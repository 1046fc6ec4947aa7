"""End leases by ack, fail and release; put their end off by renew; hand them over to another owner.

Three cases each. The handle holds the lease: one rename of a name that is its own decides. It held the lease
and lost it: nothing that another owner, or a later claim of this handle, holds is touched. It never had it (an
acknowledgement after a restart, or by another controller): the ref is settled by id, whoever holds it.

A late ack ends a ref that is back in pending/ only where the ref's own history tells that the very lease ended in
this life of the ref, or, where the handle never had it, that any did. One that was put anew is somebody's to deliver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import despite_errors, explained
from fsqueue.engine.annotations import Change, record
from fsqueue.engine.attempts import Limits, bury_telling, return_or_bury
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim, Ending
from fsqueue.engine.owners import read_record
from fsqueue.errors import CorruptRefError, QueueConfigError
from fsqueue.format import names
from fsqueue.format.codec import Bookkeeping, split
from fsqueue.format.names import Lease
from fsqueue.log import some, tell

_SEARCHES = 3

Target = tuple[str, object]
"""A ref's stem, and the object that the caller has of it, which may be the one that a get returned."""


class Settler:
    """Settle leases on behalf of one handle. Methods return the stems whose lease was lost."""

    def __init__(self, handle: Handle, *, keep_done: bool, limits: Limits) -> None:
        self._handle = handle
        self._keep_done = keep_done
        self._limits = limits

    def ack(self, targets: list[Target], step: int | None) -> list[str]:
        """Move refs to done/, or unlink them where done files are not kept."""
        handle, layout = self._handle, self._handle.layout
        lost: dict[str, None] = {}
        late: dict[str, set[str]] = {}
        strangers: dict[str, None] = {}
        acked = 0
        if handle.strays:
            self._recover_strays()

        held, move, leased, keep = handle.held, handle.moves.finish, layout.leased, self._keep_done

        def finish(target: Target) -> None:
            nonlocal acked
            stem, ref = target
            claim = held.find(stem, ref)
            if claim is None:
                strangers[stem] = None
                return
            if claim.state == "held":
                done = move(leased, claim.name, stem, step, keep, claim)
                acked += done
                held.end(claim, "settled" if done else "lost")
                if done:
                    return
            if claim.state == "lost":
                lost[stem] = None
            if claim.state != "settled":
                late.setdefault(stem, set()).add(claim.holder)

        try:
            despite_errors(finish, targets)
        finally:
            if acked:
                handle.counters.add("acked", acked)
            if late:
                self._ack_late(late, step)
            if strangers:
                self._ack_by_id(list(strangers), step)
        if self._handle.durable and targets:
            self._sync(*([layout.done] if self._keep_done else []), layout.leased, layout.pending)
        return self._told(lost) if lost else []

    def _recover_strays(self) -> None:
        """Give strays back: among them may be a ref that an earlier call was about to end.

        An error of one of them is no reason to leave the leases that this call is about as they are.
        """
        with suppress(OSError):
            self._handle.strays.recover()

    def _ack_late(self, late: dict[str, set[str]], step: int | None) -> None:
        """Finish refs that are pending, where these holders' leases ended in the same life."""

        self._end_again(late, lambda claim: self._finish_again(claim, step))

    def _end_again(self, late: dict[str, set[str]], end: Callable[[Claim], object]) -> None:
        """Run end on refs that came back, to pending/ or to wait, after these holders' leases in the same life."""
        waiting: list[str] = []

        def end_one(stem: str) -> None:
            if not self._end_pending(stem, late[stem], end):
                waiting.append(stem)

        despite_errors(end_one, list(late))
        if waiting:
            holders = self._handle.moves.holders()
            despite_errors(lambda stem: self._end_waiting(holders.get(stem, []), late[stem], end), waiting)

    def _end_waiting(self, leases: list[Lease], holders: set[str], end: Callable[[Claim], object]) -> None:
        """Run end on a ref that waits to come again, where these holders leased it in this life.

        RACE: once its time has come it is moved to pending/; then it is delivered again.
        """
        handle, leased = self._handle, self._handle.layout.leased
        for lease in leases:
            if lease.due is None or not self._was_leased(leased, lease.file, holders):
                continue
            handle.presence.announce()
            claim = handle.moves.new_claim(lease.stem)
            try:
                if self._take_over(lease, claim):
                    end(claim)
            except BaseException:
                handle.strays.add([claim])
                raise

    def _finish_again(self, claim: Claim, step: int | None) -> None:
        claim.was_done = True  # it may have been, in an earlier life that this handle knows nothing of
        moves, leased = self._handle.moves, self._handle.layout.leased
        if moves.finish(leased, claim.name, claim.stem, step, self._keep_done, claim):
            self._handle.counters.add("acked")

    def _ack_by_id(self, stems: list[str], step: int | None) -> None:
        """Finish refs wherever they are live: leased by whomever, or pending after a lease that ended."""
        leased, keep = self._handle.layout.leased, self._keep_done

        def finish_anywhere(stem: str, leases: list[Lease]) -> bool:
            finish = self._handle.moves.finish
            finished = [lease for lease in leases if finish(leased, lease.file, stem, step, keep)]
            self._handle.counters.add("acked", len(finished))
            return bool(finished) or self._end_pending(stem, None, lambda claim: self._finish_again(claim, step))

        self._search(stems, finish_anywhere)

    def _end_pending(self, stem: str, holders: set[str] | None, end: Callable[[Claim], object]) -> bool:
        """Run end on a pending ref that these holders, or anybody, leased in this life; False where nothing is there.

        RACE: the file that was looked at may be leased, settled and put anew in the next instant. So it is made a
        lease of this handle's and looked at again; where it is another one by now, it is given back.
        """
        handle, pending, leased = self._handle, self._handle.layout.pending, self._handle.layout.leased
        handle.layout.refresh_pending()
        was_leased = self._was_leased(pending, names.ref_file(stem), holders)
        if not was_leased:
            return was_leased is not None
        handle.presence.announce()
        claim = handle.moves.new_claim(stem)
        try:
            if not self._claim_pending(claim):
                return False
            if self._was_leased(leased, claim.name, holders):
                end(claim)
            elif handle.moves.give_back(claim):
                handle.order.append_soon([stem])
        except BaseException:
            handle.strays.add([claim])
            raise
        return True

    def _was_leased(self, directory: Directory, name: str, holders: set[str] | None) -> bool | None:
        """Return whether a file's history tells that these holders' leases, or any, ended in this life of the ref."""
        try:
            return split(self._handle.ops.read_file(directory.fd, name))[1].tells_end_of(holders)
        except CorruptRefError:
            return False
        except OSError as error:
            if not self._handle.moves.is_gone(directory, name, error):
                raise
            return None

    def _search(self, stems: list[str], act: Callable[[str, list[Lease]], bool]) -> None:
        """Call act with the leases on each ref until it returns True, or the ref is found nowhere.

        RACE: a ref may be claimed between the listing of leased/ and the look into pending/, and be in neither
        when it is looked for; so what was not found is looked for again.
        """
        missing = list(stems)
        for _ in range(_SEARCHES):
            if not missing:
                return
            holders = self._handle.moves.holders()
            found: set[str] = set()

            def look(stem: str, holders: dict[str, list[Lease]] = holders, found: set[str] = found) -> None:
                if act(stem, holders.get(stem, [])):
                    found.add(stem)

            despite_errors(look, missing)
            missing = [stem for stem in missing if stem not in found]

    def fail(self, targets: list[Target], reason: str, retryable: bool, delay_s: float | None = None) -> list[str]:
        """Count an attempt and move refs to the tail of pending/, or to failed/ for good.

        Args:
            delay_s: how long they wait in leased/ before; None: as the queue's settings say.
        """
        handle, layout = self._handle, self._handle.layout
        if not targets:
            return []
        now = handle.clock.now()
        back: list[str] = []

        def retry(claim: Claim, holder: str) -> bool:
            counted = record("failed", now, holder, reason, attempt=True)
            return counting(return_or_bury(handle, claim, counted, reason, self._limits, back, put_off))

        def put_off(attempts: int) -> float | None:
            wait_s = layout.settings.retry.delay_s(attempts, handle.ops.random()) if delay_s is None else delay_s
            return now + wait_s if wait_s > 0 else None

        def give_up(claim: Claim, holder: str) -> bool:
            return counting(bury(handle, claim, record("failed", now, holder, reason, attempt=True), reason))

        def counting(failed: bool) -> bool:
            handle.counters.add("failed", int(failed))
            return failed

        changed = layout.pending, layout.failed, layout.leased
        if retryable:
            return self._end_leases(targets, retry, "returned", back, *changed)
        return self._end_leases(targets, give_up, "settled", back, *changed)

    def release(self, targets: list[Target]) -> list[str]:
        """Move refs back to pending/, their own as they are: no attempt is counted."""
        handle, moves, layout = self._handle, self._handle.moves, self._handle.layout
        back: list[str] = []

        def give_back(claim: Claim, holder: str) -> bool:
            if holder != claim.holder and moves.annotate(claim, record("released", handle.clock.now(), holder)) is None:
                return False
            try:
                given = moves.give_back(claim)
            except BaseException:
                handle.strays.add([claim])  # its owner is done with it: the next call gives it back
                raise
            if given:
                back.append(claim.stem)
                handle.counters.add("released")
            return given

        return self._end_leases(targets, give_back, "returned", back, layout.pending, layout.leased)

    def _end_leases(
        self,
        targets: list[Target],
        end: Callable[[Claim, str], bool],
        how: Ending,
        back: list[str],
        *changed: Directory,
    ) -> list[str]:
        """Run end on each lease once it is this handle's; return the stems whose lease was lost.

        Args:
            end: given the claim, and the holder whose lease it ends.
            how: the leases end: "settled" takes refs that nobody leases from pending/ as well.
            back: the refs that end has moved to pending/, for the order.
            changed: the directories to sync.
        """
        handle = self._handle
        lost: dict[str, None] = {}
        late: dict[str, set[str]] = {}
        strangers: dict[str, None] = {}
        if handle.strays:
            self._recover_strays()

        def end_own(target: Target) -> None:
            stem, ref = target
            claim = handle.held.find(stem, ref)
            if claim is None:
                strangers[stem] = None
                return
            if claim.state == "held":
                handle.held.end(claim, how if end(claim, claim.holder) else "lost")
            elif claim.state == "returned" and how == "settled":
                late.setdefault(stem, set()).add(claim.holder)
            if claim.state == "lost":
                lost[stem] = None

        try:
            try:
                despite_errors(end_own, targets)
            finally:
                if late or strangers:
                    with handle.mutex:
                        self._end_late(late, end)
                        lost |= dict.fromkeys(self._take_over_and_end(list(strangers), end, how == "settled"))
        finally:
            handle.order.append_soon(back)
            if targets:
                self._sync(*changed)
        return self._told(lost)

    def _told(self, lost: Iterable[str]) -> list[str]:
        """Return the stems whose leases were lost, having logged them."""
        found = list(lost)
        if found:
            self._handle.counters.add("lost", len(found))
            path, ids = self._handle.layout.path, some(found)
            tell(__name__, "warning", path, "the leases of %s were lost before they were settled", ids)
        return found

    def _end_late(self, late: dict[str, set[str]], end: Callable[[Claim, str], bool]) -> None:
        """Run end on refs that are pending, where these holders' leases ended in the same life."""

        self._end_again(late, lambda claim: end(claim, claim.holder))

    def _take_over_and_end(self, stems: list[str], end: Callable[[Claim, str], bool], from_pending: bool) -> list[str]:
        """Take refs over from whoever leases them, then run end on them; return those lost again meanwhile."""
        handle = self._handle
        if stems:
            handle.presence.announce()
        lost: list[str] = []

        def end_as_mine(claim: Claim, holder: str, was_moved: Callable[[Claim], bool]) -> bool:
            try:
                moved = was_moved(claim)
                if moved and not end(claim, holder):
                    lost.append(claim.stem)
            except BaseException:
                handle.strays.add([claim])
                raise
            return moved

        def end_anywhere(stem: str, leases: list[Lease]) -> bool:
            new_claim, take_over = handle.moves.new_claim, self._take_over
            taken = [end_as_mine(new_claim(stem), lease.holder, partial(take_over, lease)) for lease in leases]
            if leases or not from_pending:
                return any(taken)
            claim = new_claim(stem)
            return end_as_mine(claim, claim.holder, self._claim_pending)

        self._search(stems, end_anywhere)
        return lost

    def _claim_pending(self, claim: Claim) -> bool:
        moves = self._handle.moves
        claim.begin_stamp(self._handle.ops.monotonic())
        if not moves.stamp_pending(claim.stem):
            return False
        claim.stamped_by = self._handle.ops.monotonic()
        return moves.claim_stamped(claim)

    def _take_over(self, lease: Lease, claim: Claim) -> bool:
        """Make another owner's lease this handle's for as long as settling it takes."""
        moves = self._handle.moves
        with self._handle.order_file.soon:
            taken = moves.take_over(lease, claim)
        return taken and moves.stamp_lease(claim)

    def renew(self, targets: list[Target]) -> list[str]:
        """Start the lease timeout anew for refs that this handle leases; others count as lost.

        RACE: a reclaimer that looked before the stamp finds it after its take-over and hands the lease back;
        one that took over before the stamp is seen by the listing after it.
        """
        handle, leased = self._handle, self._handle.layout.leased
        claims = [(stem, handle.held.find(stem, ref)) for stem, ref in targets]
        renewed: set[Claim] = set()

        def stamp(target: tuple[str, Claim | None]) -> None:
            claim = target[1]
            if claim is not None and claim.state == "held" and handle.moves.stamp_lease(claim):
                renewed.add(claim)

        with handle.mutex:
            leased.refresh()
            despite_errors(stamp, claims)
            present = set(leased.listing())
        lost: dict[str, None] = {}
        for stem, claim in claims:
            if claim is None or claim not in renewed or claim.name not in present:
                lost[stem] = None
                if claim is not None:
                    handle.held.end(claim, "lost")
        return list(lost)

    def hand_over(self, targets: list[Target], owner: str) -> list[str]:
        """Make leases of this handle another owner's: leased/@me -> leased/@owner."""
        handle, layout = self._handle, self._handle.layout
        lost: dict[str, None] = {}
        if not names.is_owner(owner) or read_record(layout.owners, owner) is None:
            raise QueueConfigError(
                layout.path,
                f"knows no owner {owner!r} to hand leases over to: give the `owner` of a handle that has leased before",
            )
        mine = owner == handle.owner

        def give(target: Target) -> None:
            stem, ref = target
            claim = handle.held.find(stem, ref)
            if claim is not None and claim.state == "held" and not mine:
                handle.held.end(claim, "settled" if handle.moves.hand_over(claim, owner) else "lost")
            if claim is None or claim.state != ("held" if mine else "settled"):
                lost[stem] = None

        with handle.order_file.soon:  # RACE: as in `Moves.take_over`
            despite_errors(give, targets)
        return list(lost)

    def adopt(self, targets: list[Target]) -> list[str]:
        """Take up leases that were handed over to this handle; what it settled already is not lost."""
        handle, held = self._handle, self._handle.held
        handle.layout.leased.refresh()  # NFS: or a name that this client has missed is remembered as missing
        holders = handle.moves.holders()
        lost: dict[str, None] = {}
        for stem, ref in targets:
            leases = [lease for lease in holders.get(stem, ()) if lease.is_held]
            mine = [lease.file for lease in leases if lease.owner == handle.owner]
            claim = held.find(stem)
            if mine and not (claim is not None and claim.state == "held" and claim.name in mine):
                claim = Claim(stem, mine[0])
                claim.taken_at = self._handle.ops.monotonic()
                held.add(claim)
                claim.hand_out(ref)
            if claim is None or claim.state not in ("held", "settled"):
                lost[stem] = None
        return list(lost)

    def release_all(self) -> int:
        """Give back whatever is leased in this owner's name, as it is; return how many refs that were."""
        holders = self._handle.moves.holders()
        owner = self._handle.owner
        mine: list[Target] = [
            (stem, None)
            for stem, leases in holders.items()
            if any(lease.is_held and lease.owner == owner for lease in leases)
        ]
        self.adopt(mine)
        return len(mine) - len(self.release(mine))

    def _sync(self, *directories: Directory) -> None:
        for directory in directories if self._handle.durable else ():
            with explained("syncing", directory.path):
                directory.sync()


def bury(handle: Handle, claim: Claim, change: Change, reason: str) -> bool:
    """Move a ref that this handle leases to failed/, with the reason inside; False where the lease is gone."""

    def with_reason(bookkeeping: Bookkeeping) -> None:
        change(bookkeeping)
        bookkeeping.reason = reason

    if handle.moves.annotate(claim, with_reason) is None:
        return False
    return bury_telling(handle, claim, reason)
