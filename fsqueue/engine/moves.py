"""Move refs, by one rename each: the protocol's heart.

    put:      tmp/     -> pending/             release, fail, expire: leased/ -> pending/ or failed/
                                               fail, to wait:         leased/@me -> leased/@nobody -> pending/
    claim:    pending/ -> leased/@me           take over:             leased/@other -> leased/@me
    ack:      leased/  -> done/                requeue, rewind:       failed/, done/ -> leased/@me -> pending/

Invariant: a ref has one directory entry among pending/ and leased/ at every instant, since each move is one
rename(2) of that entry and bookkeeping is written into the file that the entry names. Every move returns
whether this process made it; of several that try, one gets True.

Every move into leased/ goes to a name that was never used before: it can meet no file there, nor what a client
remembers of one, and whoever comes late for another lease finds no file of that name. The exceptions: `hand_back`
restores the name that the owner knows, and a rewind lets the last life of a ref replace those before.

All other moves go to names that a client may remember; on a shared mount such a rename may say 0 and do nothing
(`renames`). Then the ref takes another way, by a name that nobody has used:

    pending/<id>.json    leased/<id>@<me>+<claim>r.json: a lease that has ended; who sees it moves it on, or leases it
    failed/<id>.json     failed/<id>.<6 hex>.json
    done/<id>.json       done/<id>.json.into-<revision>, of a revision that nobody makes: done all the same
"""

from __future__ import annotations

import errno
import itertools
from collections import defaultdict
from collections.abc import Iterator
from functools import partial

from fsqueue.disk.directory import Directory, located
from fsqueue.disk.parallel import Overlap
from fsqueue.engine.annotations import NO_SUCH_REPLACEMENT, Annotations
from fsqueue.engine.arrival import Stamped, has_come_in, holds, is_gone
from fsqueue.engine.clock import Clock
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import Layout
from fsqueue.engine.newfiles import NewFiles, Written
from fsqueue.engine.renames import Renames
from fsqueue.errors import CorruptRefError, QueueIOError
from fsqueue.format import names, packed

_REMOVED = ": somebody removed it, taking this process for dead; put the refs again"


class Moves:
    """Make the moves in one owner's name.

    Attributes:
        annotate, part: see `annotations.Annotations`.
        write_new, discard: see `newfiles.NewFiles`.
    """

    def __init__(self, layout: Layout, clock: Clock, owner: str, durable: bool, overlap: Overlap) -> None:
        self._ops = layout.ops
        self._layout = layout
        self._clock = clock
        self._owner = owner
        self._durable = durable
        self._renames = Renames(layout, self._stamped)
        self._returned: dict[str, tuple[Directory, str]] = {}
        tmp_names = map(partial("{}.{}".format, owner), itertools.count())
        new_files = NewFiles(layout, tmp_names, durable, overlap)
        self.write_new = new_files.write
        self.discard = new_files.discard
        annotations = Annotations(layout, durable, tmp_names)
        self.annotate = annotations.annotate
        self.part = annotations.part
        self._claims = itertools.count(1)

    def move(self, source: Directory, name: str, target: Directory, new_name: str) -> bool:
        """Rename a file to a name that may have been used before; False where it was gone, or stays where it is.

        Of several processes that move the same file, one gets True.
        """
        return self._renames.to_known(source, name, target, new_name) == "done"

    def move_to_fresh(self, source: Directory, name: str, target: Directory, new_name: str) -> bool:
        """Do so to a name that nobody has used; False where it was gone."""
        return self._renames.to_fresh(source, name, target, new_name)

    def is_gone(self, directory: Directory, name: str, error: OSError) -> bool:
        """Return whether an open, utime or unlink failed since somebody had moved the file away (see `arrival`)."""
        return is_gone(self._layout, directory, name, error)

    def holds(self, directory: Directory, name: str) -> bool:
        """Return whether a name that answers is there; on a shared mount it may be remembered only."""
        return not self._layout.remote or holds(directory, name)

    def stamp(self, directory: Directory, name: str) -> bool:
        """Set a file's mtime to now; False where it was gone."""
        try:
            return self._clock.stamp(directory, name)
        except OSError as error:
            if not self.is_gone(directory, name, error):
                raise
            return False

    def stamp_lease(self, claim: Claim) -> bool:
        """Start the timeout of a lease anew; False where it was gone."""
        before = claim.stamped_at, claim.stamped_by
        claim.begin_stamp(self._ops.monotonic())
        if self.stamp(self._layout.leased, claim.name):
            claim.stamped_by = self._ops.monotonic()
            return True
        claim.stamped_at, claim.stamped_by = before
        return False

    def _stamped(self, claim: Claim, target: Directory) -> Stamped | None:
        """Return what tells the file of a lease of this owner's from others; None where it has not stamped it."""
        if claim.stamped_at is None or self._clock.injected:
            return None
        timeout_s = self._layout.settings.lease_timeout_s
        until = None if timeout_s is None else claim.stamped_at + timeout_s
        writes_no_end = target is self._layout.done  # of the lease into its file, as who fails or releases a ref does
        return Stamped(claim.stamped_at, claim.stamped_by, until, claim.holder if writes_no_end else None)

    def remove(self, directory: Directory, name: str) -> bool:
        """Unlink a file; False where it was gone."""
        try:
            return self._ops.remove(directory.fd, name)
        except OSError as error:
            if not self.is_gone(directory, name, error):
                located(error, directory)
                raise
            return False

    def publish(self, written: Written, stem: str, written_at: float) -> None:
        """Move tmp/ -> pending/.

        NFS: that the file is gone may mean that the rename was done, whatever it said, or that somebody removed it
        while this process was stopped. Only a file that was stamped since then, where it would be by now, tells.

        Args:
            written_at: before the file was written, by monotonic.

        Raises:
            QueueIOError: the file was gone before, and nothing shows that it came into the queue.
        """
        layout, started = self._layout, self._ops.monotonic()
        if self._renames.of_new(*written, layout.pending, names.ref_file(stem)):
            return
        if not (layout.remote and has_come_in(layout, stem, written_at, started)):
            raise self._removed(written)

    def publish_copy(self, name: str, stem: str) -> bool:
        """Move a copy of a packed ref done/ -> pending/ that this process has just made; False where it was gone.

        The mount is a local one, and the caller holds the lock, and knows that the ref is not live.
        """
        return self._renames.of_new(self._layout.done, name, self._layout.pending, names.ref_file(stem))

    def write(self, data: bytes, directory: Directory, name: str, *, vital: bool = False) -> None:
        """Publish one small file by tmp + rename, in place of an older one of this name.

        Args:
            vital: on a full disk, give up the reserve for it.
        """
        if vital:
            self._layout.reserve.retrying(lambda: self.write(data, directory, name))
            return
        written = self.write_new({name: data})[name]
        try:
            made = self._renames.of_new(*written, directory, name)
            if not made and not (self._layout.remote and self._reads(directory, name) == data):
                raise self._removed(written)
        except OSError:
            self.discard([written])
            raise
        if self._durable:
            directory.sync()

    def _reads(self, directory: Directory, name: str) -> bytes | None:
        """Return what a file holds; None where there is none."""
        try:
            return self._ops.read_file(directory.fd, name)
        except (FileNotFoundError, CorruptRefError):
            return None

    def _removed(self, written: Written) -> QueueIOError:
        gone = FileNotFoundError(errno.ENOENT, "removed before it was published")
        return QueueIOError("publishing", f"{written.directory.path}/{written.name}", gone, _REMOVED)

    def stamp_pending(self, stem: str) -> bool:
        """Make the first step of a claim: start the lease timeout, since a rename keeps the old mtime.

        RACE: the stamp may land on a file that another owner claims meanwhile: it prolongs that lease once.
        CRASH: a stamped file in pending/ is an ordinary pending ref.
        """
        pending, name = self._layout.pending, stem + names.SUFFIX
        if self._returned and (place := self._returned.get(stem)):
            if self.stamp(*place):
                return True
            self._returned.pop(stem, None)
        if self.stamp(pending, name):
            return True
        if not self._layout.remote:
            return False
        pending.refresh()  # NFS: it may be a remembered miss of a name that exists by now
        return self.stamp(pending, name)

    def new_claim(self, stem: str, mark: str = "") -> Claim:
        """Name a lease of this owner's on a ref, which is still to be moved there."""
        return Claim(stem, f"{stem}@{self._owner}+{next(self._claims):x}{mark}{names.SUFFIX}")

    def claim_stamped(self, claim: Claim) -> bool:
        """Make the second step: pending/ -> leased/@me."""
        layout, move = self._layout, self._renames.to_fresh
        place = self._returned.pop(claim.stem, None) if self._returned else None
        if place and move(*place, layout.leased, claim.name):
            return True
        moved = move(layout.pending, claim.stem + names.SUFFIX, layout.leased, claim.name)
        claim.is_new_here, claim.was_done = moved, not moved
        return moved

    def take_over(self, lease: names.Lease, claim: Claim) -> bool:
        """Move leased/@other -> leased/@me: whatever the former owner does next finds the name gone.

        The file is not stamped first, so that its mtime still tells whether the owner renewed it meanwhile.

        RACE: a listing that a name changes in may show neither the old nor the new one, and a put that misses a lease
        queues the ref twice. So the caller holds the order's lock, as a put does when it lists leased/.
        """
        return self._rename_lease(lease.file, claim.name)

    def hand_back(self, claim: Claim, lease: names.Lease) -> bool:
        """Undo a take-over: leased/@me -> leased/@other, under the name that the owner knows."""
        leased = self._layout.leased
        return self.move(leased, claim.name, leased, lease.file)

    def hand_over(self, claim: Claim, owner: str) -> bool:
        """Move leased/@me -> leased/@owner, under a name that the other owner does not give to leases of its own."""
        given = f"g{int(self._ops.random() * 2**32):08x}"
        return self._rename_lease(claim.name, names.leased_file(claim.stem, owner, given))

    def _rename_lease(self, name: str, new_name: str) -> bool:
        leased = self._layout.leased
        return self._renames.to_fresh(leased, name, leased, new_name)

    def finish(
        self, source: Directory, name: str, stem: str, step: int | None, keep: bool, claim: Claim | None = None
    ) -> bool:
        """Move leased/ or pending/ -> done/, or unlink the file where done files are not kept.

        Args:
            claim: this owner's, whose file it is; None where it is another owner's, or nobody's.
        """
        if keep:
            return self.move_to_done(source, name, names.done_file(stem, step), claim)
        if self.remove(source, name):
            return True
        if not self._layout.remote:
            return False
        source.refresh()  # NFS: as in stamp_pending
        return self.remove(source, name)

    def move_to_done(self, source: Directory, name: str, done_name: str, claim: Claim | None = None) -> bool:
        """Move a file to done/ from anywhere, also from another name in there."""
        done, was_done = self._layout.done, claim is None or claim.was_done
        result = self._renames.to_known(source, name, done, done_name, doubted=was_done, claim=claim)
        if result == "undone":
            aside = packed.aside_file(done_name, f"{int(self._ops.random() * 2**48):012x}", original=True)
            return self._renames.to_fresh(source, name, done, aside)
        return result == "done"

    def give_back(self, claim: Claim) -> bool:
        """Move leased/@me -> pending/."""
        leased, name = self._layout.leased, names.ref_file(claim.stem)
        result = self._renames.to_known(
            leased, claim.name, self._layout.pending, name, doubted=not claim.is_new_here, claim=claim
        )
        if result != "undone":
            return result == "done"
        # CRASH: before this an ordinary lease, which expires.
        returned = self.new_claim(claim.stem, names.RETURNED).name
        if not self._rename_lease(claim.name, returned):
            return False
        self._returned[claim.stem] = leased, returned
        return True

    def put_off(self, claim: Claim, until: float) -> bool:
        """Move leased/@me -> leased/@nobody until a time, by the filesystem's clock."""
        waiting = f"{int(self._ops.random() * 2**32):08x}{names.DELAYED}{max(0, int(until * 1000))}"
        return self._rename_lease(claim.name, names.leased_file(claim.stem, names.NOBODY, waiting))

    def move_on(self, lease: names.Lease) -> bool | None:
        """Move a ref on that is on its way back to pending/, whoever gave it back.

        Returns None where this client cannot give it its name there, for now. A claim of this handle's finds it then.
        """
        leased, name = self._layout.leased, names.ref_file(lease.stem)
        result = self._renames.to_known(leased, lease.file, self._layout.pending, name)
        if result != "undone":
            self._returned.pop(lease.stem, None)
            return result == "done"
        self._returned[lease.stem] = leased, lease.file
        return None

    def bury(self, claim: Claim) -> bool:
        """Move leased/@me -> failed/."""
        leased, failed = self._layout.leased, self._layout.failed
        try:
            result = self._renames.to_known(leased, claim.name, failed, names.ref_file(claim.stem), claim=claim)
        except OSError as error:
            if error.errno not in NO_SUCH_REPLACEMENT:
                raise
            result = "undone"
        if result == "undone":
            # Or somebody put a directory in the ref's place or at its destination: that may not block the queue.
            other = names.beside(claim.stem, f"{int(self._ops.random() * 2**24):06x}")
            return self._renames.to_fresh(leased, claim.name, failed, names.ref_file(other))
        return result == "done"

    def fetch(self, source: Directory, name: str, claim: Claim) -> bool:
        """Move a file from anywhere -> leased/@me, stamped first as in a claim; False where it was gone."""
        claim.begin_stamp(self._ops.monotonic())
        if not self.stamp(source, name):
            return False
        claim.stamped_by = self._ops.monotonic()
        return self._renames.to_fresh(source, name, self._layout.leased, claim.name)

    def rename_leased(self, claim: Claim, new: Claim) -> bool:
        """Give a lease of this owner's another ref's name."""
        new.stamped_at, new.stamped_by, new.taken_at = claim.stamped_at, claim.stamped_by, claim.taken_at
        new.waits = claim.waits
        return self._rename_lease(claim.name, new.name)

    def rename_pending(self, name: str, stem: str) -> None:
        """Give a file that was moved into pending/ under another name the one that belongs there.

        Where this client cannot, a claim of this handle's takes it as it is.
        """
        pending = self._layout.pending
        if self._renames.to_known(pending, name, pending, names.ref_file(stem)) == "undone":
            self._returned[stem] = pending, name

    def holders(self) -> dict[str, list[names.Lease]]:
        """Map each stem to the leases on it (one, unless the lock did not exclude), by one listing."""
        found: dict[str, list[names.Lease]] = defaultdict(list)
        for lease in self._leases():
            found[lease.stem].append(lease)
        return found

    def owners_holding(self) -> frozenset[str]:
        """Return the owners that lease anything, by one listing."""
        return frozenset(lease.owner for lease in self._leases() if lease.is_held)

    def anything_leased(self, besides: frozenset[str]) -> bool:
        """Return whether any other owner leases anything, or a ref is on its way back to pending/, or waits there."""
        return any(not lease.is_held or lease.owner not in besides for lease in self._leases())

    def _leases(self) -> Iterator[names.Lease]:
        return filter(None, map(names.parse_leased, self._layout.leased.listing()))
