"""Remove the records in owners/ that nobody needs, and the tmp files of the dead: a slice at a time, however many."""

from __future__ import annotations

from collections.abc import Callable

from fsqueue.disk.fileops import silently_remove
from fsqueue.engine.handle import Handle
from fsqueue.engine.others import READS_A_ROUND, Others
from fsqueue.format import names

OWNERS_ROUND_S = 10.0
SHARED_ROUND_S = 60.0  # a thousand nodes list a thousand names there
ABANDONED_ROUND_S = 3600.0
ABANDONED_AFTER_S = 86_400.0
_LOOKS_A_ROUND = 4
_REMOVALS_A_ROUND = 64


class Departed:
    """Clear up after owners that are gone, on behalf of one handle.

    Args:
        holders: returns the owners that hold leases now.
        now: returns the filesystem's time.
    """

    def __init__(
        self, handle: Handle, others: Others, holders: Callable[[], frozenset[str]], now: Callable[[], float]
    ) -> None:
        self._handle = handle
        self._others = others
        self._holders = holders
        self._now = now
        self._last_round = self._shown_up_at = -1e9
        self._look_again_at: dict[str, float] = {}

    def round_if_due(self) -> None:
        """Remove the records of processes that are gone and lease nothing, and the tmp files of the dead.

        One that died between taking places in the order and claiming them left refs that no line names.
        """
        handle, started = self._handle, self._handle.ops.monotonic()
        if started - self._last_round < (SHARED_ROUND_S if handle.layout.remote else OWNERS_ROUND_S):
            return
        self._last_round = started
        if started - self._shown_up_at >= ABANDONED_ROUND_S:
            self._shown_up_at = started
            handle.presence.show_up()
        handle.layout.reserve.tend_if_due(handle.order_file.content.size)
        owners = [owner for owner in map(names.parse_owner, handle.layout.owners.listing()) if owner]
        self._read_some(owners)
        dead = {owner for owner in owners if self._others.is_known(owner) and self._others.is_dead(owner)}
        gone = dead | self._abandoned(owners)
        # The dead lease nothing new: what they hold is in this listing, made after they were found dead.
        holders = self._holders() if gone else frozenset[str]()
        self._others.keep(holders.union(owners))
        self._remove(sorted(gone - holders)[:_REMOVALS_A_ROUND], dead)

    def _read_some(self, owners: list[str]) -> None:
        """Read the next records that are not known yet, first those that may be of processes on this host."""
        self._others.reads_left = min(self._others.reads_left, READS_A_ROUND)
        here = self._handle.owner.rsplit(".", 2)[0] + "."
        unread = [o for o in owners if o != self._handle.owner and not self._others.is_known(o)]
        for owner in sorted(unread, key=lambda owner: not owner.startswith(here)):
            if self._others.look(owner) is None:
                return

    def _abandoned(self, owners: list[str]) -> set[str]:
        """Return owners whose process cannot be looked at and who have been silent for a day, of the next few.

        An owner that gets refs shows up every hour, and writes its record anew where that was removed.
        """
        handle, now, found = self._handle, self._handle.ops.monotonic(), set()
        self._look_again_at = {owner: self._look_again_at.get(owner, now) for owner in owners}
        asked = (o for o in owners if self._look_again_at[o] <= now and o != handle.owner)
        for _, owner in zip(range(_LOOKS_A_ROUND), filter(self._others.cannot_be_asked, asked), strict=False):
            self._look_again_at[owner] = now + ABANDONED_ROUND_S
            seen = handle.ops.fresh_mtime(handle.layout.owners.fd, names.ref_file(owner))
            if (
                seen is not None
                and seen + (self._handle.layout.settings.lease_timeout_s or 0.0) + ABANDONED_AFTER_S < self._now()
            ):
                found.add(owner)
        return found

    def _remove(self, gone: list[str], dead: set[str]) -> None:
        if not gone:
            return
        handle = self._handle
        handle.order.incomplete = True
        prefixes = tuple(f"{owner}." for owner in gone if owner in dead)
        for tmp in (handle.layout.tmp, *handle.layout.more_tmp()) if prefixes else ():
            leftovers = [name for name in tmp.listing() if name.startswith(prefixes)]
            silently_remove(handle.ops, tmp.fd, leftovers)
        silently_remove(handle.ops, handle.layout.owners.fd, [names.ref_file(owner) for owner in gone])
