"""End leases by ack, fail and release; put their end off by renew; hand them over to another owner.

Three cases each. The handle holds the lease: one rename of a name that is its own decides. It held the lease
and lost it: nothing that another owner holds is touched. It never had it (an acknowledgement after a restart,
or by another controller): the ref is settled by id, whoever holds it.
"""

from __future__ import annotations

from collections.abc import Callable

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import despite_errors, explained
from fsqueue.engine.expire import return_or_bury
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Ending
from fsqueue.engine.moves import Change, record
from fsqueue.engine.owners import read_record
from fsqueue.errors import QueueConfigError
from fsqueue.format import names
from fsqueue.format.codec import Bookkeeping

_SEARCHES = 3


class Settler:
    """Settle leases on behalf of one handle. Methods take stems and return those whose lease was lost."""

    def __init__(self, handle: Handle, *, keep_done: bool, max_attempts: int | None) -> None:
        self._handle = handle
        self._keep_done = keep_done
        self._max_attempts = max_attempts

    def ack(self, stems: list[str], step: int | None) -> list[str]:
        """Move refs to done/, or unlink them where done files are not kept."""
        handle, layout = self._handle, self._handle.layout
        lost: list[str] = []
        strangers: list[str] = []

        def finish(stem: str) -> None:
            if stem in handle.held:
                done = self._finish(layout.leased, names.leased_file(stem, handle.owner), stem, step)
                handle.held.end(stem, "settled" if done else "lost")
                if done:
                    return
            ending = handle.held.ending(stem)
            if ending is None:
                strangers.append(stem)
                return
            if ending == "lost":
                lost.append(stem)
            if ending != "settled":
                self._finish(layout.pending, names.ref_file(stem), stem, step)

        try:
            despite_errors(finish, stems)
        finally:
            self._ack_by_id(strangers, step)
        if stems:
            self._sync(*([layout.done] if self._keep_done else []), layout.leased, layout.pending)
        return lost

    def _finish(self, source: Directory, name: str, stem: str, step: int | None) -> bool:
        return self._handle.moves.finish(source, name, stem, step, self._keep_done)

    def _ack_by_id(self, stems: list[str], step: int | None) -> None:
        """Finish refs wherever they are live: leased by whomever, or pending."""
        layout = self._handle.layout

        def finish_anywhere(stem: str, owners: list[str]) -> bool:
            leases = [names.leased_file(stem, owner) for owner in owners]
            finished = [name for name in leases if self._finish(layout.leased, name, stem, step)]
            return bool(finished) or self._finish(layout.pending, names.ref_file(stem), stem, step)

        self._search(stems, finish_anywhere)

    def _search(self, stems: list[str], act: Callable[[str, list[str]], bool]) -> None:
        """Call act with the owners of each ref until it returns True, or the ref is found nowhere.

        RACE: a ref may be claimed between the listing of leased/ and the look into pending/, and be in neither
        when it is looked for; so what was not found is looked for again.
        """
        missing = list(stems)
        for _ in range(_SEARCHES):
            if not missing:
                return
            holders = self._handle.moves.holders()
            found: set[str] = set()

            def look(stem: str, holders: dict[str, list[str]] = holders, found: set[str] = found) -> None:
                if act(stem, holders.get(stem, [])):
                    found.add(stem)

            despite_errors(look, missing)
            missing = [stem for stem in missing if stem not in found]

    def fail(self, stems: list[str], reason: str, retryable: bool) -> list[str]:
        """Count an attempt and move refs to the tail of pending/, or to failed/ for good."""
        handle, layout = self._handle, self._handle.layout
        if not stems:
            return []
        counted = record("failed", handle.clock.now(), handle.owner, reason, attempt=True)
        back: list[str] = []

        def retry(stem: str) -> bool:
            return return_or_bury(handle, stem, counted, reason, self._max_attempts, back)

        def give_up(stem: str) -> bool:
            return bury(handle, stem, counted, reason)

        changed = layout.pending, layout.failed, layout.leased
        if retryable:
            return self._end_leases(stems, retry, "returned", back, *changed)
        return self._end_leases(stems, give_up, "settled", back, *changed)

    def release(self, stems: list[str]) -> list[str]:
        """Move refs back to pending/ as they are: no attempt is counted."""
        moves, layout = self._handle.moves, self._handle.layout
        back: list[str] = []

        def give_back(stem: str) -> bool:
            given = moves.give_back(stem)
            if given:
                back.append(stem)
            return given

        return self._end_leases(stems, give_back, "returned", back, layout.pending, layout.leased)

    def _end_leases(
        self, stems: list[str], end: Callable[[str], bool], how: Ending, back: list[str], *changed: Directory
    ) -> list[str]:
        """Run end on each ref once it is leased to this handle; return the stems whose lease was lost.

        Args:
            how: the leases end: "settled" takes refs that nobody leases from pending/ as well.
            back: the refs that end has moved to pending/, for the order.
            changed: the directories to sync.
        """
        handle = self._handle
        lost: list[str] = []
        strangers: list[str] = []

        def end_own(stem: str) -> None:
            if stem in handle.held:
                ended = end(stem)
                handle.held.end(stem, how if ended else "lost")
                if ended:
                    return
            ending = handle.held.ending(stem)
            if ending is None or (ending == "returned" and how == "settled"):
                strangers.append(stem)
            elif ending == "lost":
                lost.append(stem)

        try:
            try:
                despite_errors(end_own, stems)
            finally:
                if strangers:
                    with handle.mutex:
                        lost += self._take_over_and_end(strangers, end, from_pending=how == "settled")
        finally:
            handle.order.append_soon(back)
            if stems:
                self._sync(*changed)
        return lost

    def _take_over_and_end(self, stems: list[str], end: Callable[[str], bool], from_pending: bool) -> list[str]:
        """Take refs over from whoever leases them, then run end on them; return those lost again meanwhile."""
        handle = self._handle
        handle.presence.announce()
        lost: list[str] = []

        def end_anywhere(stem: str, owners: list[str]) -> bool:
            may_take_over = handle.held.ending(stem) is None
            try:
                taken = [owner for owner in owners if may_take_over and self._take_over(stem, owner)]
                if taken or (from_pending and not owners and handle.moves.claim(stem)):
                    if not end(stem):
                        lost.append(stem)
                    return True
                return bool(owners) and not may_take_over
            except BaseException:
                handle.strays.add([stem])
                raise

        self._search(stems, end_anywhere)
        return lost

    def _take_over(self, stem: str, owner: str) -> bool:
        """Make another owner's lease this handle's for as long as settling it takes."""
        handle = self._handle
        mine = names.leased_file(stem, handle.owner)
        return handle.moves.take_over(stem, owner) and handle.clock.stamp(handle.layout.leased, mine)

    def renew(self, stems: list[str]) -> list[str]:
        """Start the lease timeout anew for refs that this handle leases; others count as lost.

        RACE: a reclaimer that looked before the stamp finds it after its take-over and hands the lease back;
        one that took over before the stamp is seen by the listing after it.
        """
        handle, leased = self._handle, self._handle.layout.leased
        renewed: set[str] = set()

        def stamp(stem: str) -> None:
            if stem in handle.held and handle.clock.stamp(leased, names.leased_file(stem, handle.owner)):
                renewed.add(stem)

        with handle.mutex:
            leased.refresh()
            despite_errors(stamp, stems)
            present = set(leased.listing())
        lost = [s for s in stems if s not in renewed or names.leased_file(s, handle.owner) not in present]
        for stem in lost:
            handle.held.end(stem, "lost")
        return lost

    def hand_over(self, stems: list[str], owner: str) -> list[str]:
        """Make leases of this handle another owner's: leased/@me -> leased/@owner."""
        handle, layout = self._handle, self._handle.layout
        lost: list[str] = []
        if not names.is_owner(owner) or read_record(handle.ops, layout.owners, owner) is None:
            raise QueueConfigError(
                layout.path,
                f"knows no owner {owner!r} to hand leases over to: give the `owner` of a handle that has leased before",
            )
        if owner == handle.owner:
            return [stem for stem in stems if stem not in handle.held]

        def give(stem: str) -> None:
            if stem in handle.held:
                handle.held.end(stem, "settled" if handle.moves.hand_back(stem, owner) else "lost")
            if handle.held.ending(stem) != "settled":
                lost.append(stem)

        despite_errors(give, stems)
        return lost

    def adopt(self, stems: list[str]) -> list[str]:
        """Take up leases that were handed over to this handle; what it settled already is not lost."""
        handle, leased = self._handle, self._handle.layout.leased
        leased.refresh()  # NFS: or a name that this client has missed is remembered as missing
        mine = [stem for stem in stems if handle.ops.exists(leased.fd, names.leased_file(stem, handle.owner))]
        for stem in mine:
            handle.held.add(stem)
        return [stem for stem in stems if stem not in handle.held and handle.held.ending(stem) != "settled"]

    def release_all(self) -> int:
        """Give back whatever is leased in this owner's name, as it is; return how many refs that were."""
        mine = [stem for stem, owners in self._handle.moves.holders().items() if self._handle.owner in owners]
        self.adopt(mine)
        return len(mine) - len(self.release(mine))

    def _sync(self, *directories: Directory) -> None:
        for directory in directories if self._handle.durable else ():
            with explained("syncing", directory.path):
                directory.sync()


def bury(handle: Handle, stem: str, change: Change, reason: str) -> bool:
    """Move a ref that this handle leases to failed/, with the reason inside; False where the lease is gone."""

    def with_reason(bookkeeping: Bookkeeping) -> None:
        change(bookkeeping)
        bookkeeping.reason = reason

    if handle.moves.annotate(stem, with_reason) is None:
        return False
    return handle.moves.bury(stem)
