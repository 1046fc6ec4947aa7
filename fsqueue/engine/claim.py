"""Take places in the order, claim the refs, and find those that no line names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import msgspec

from fsqueue.disk.counting import Unchanged
from fsqueue.disk.denied import told
from fsqueue.disk.parallel import Outcome
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import read_json
from fsqueue.engine.order import AFRESH, FIRST, Scan
from fsqueue.engine.picking import Partition, Picker
from fsqueue.engine.refused import SWEEP_S, Refused
from fsqueue.engine.unnamed import Unnamed
from fsqueue.format import names
from fsqueue.records import dp_partition

_SORT_BY_MTIME_LIMIT = 4096
_CHEAP_SWEEP_S = 0.001
_TOLD_S = 1.0
_RELAX = 20
_CLAIMING_S = 0.002
_ERRORS_A_CALL = 64
_REMOTE_CLAIMING_S = 0.05
_MISSED_S = 1.0  # for about as long a name is remembered as missing where opening the directory does not end that
_MISSED = 64
_PLACES_A_HOLD = 1_000


class _SampleId(msgspec.Struct):
    sample_id: str


class _Stamped(NamedTuple):
    """Say of which ref a stamp was made ahead, when that began, by monotonic, and how it ended."""

    stem: str
    began_at: float
    outcome: Callable[[str], bool]


class Claimer:
    """Claim pending refs for one handle."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._remote = handle.layout.remote
        self._scans: dict[Partition, Scan] = {}
        self._doubted_at = handle.ops.monotonic()  # when marks were last believed no more
        self._unchanged = Unchanged(handle.layout.pending, handle.layout.filesystem.directory_times, SWEEP_S)
        self._no_sweep_before = -1e9
        self._sweep_s = 0.0  # how long the last two listings and comparisons took, the quicker of them
        self._took_s = 0.0
        self._compared_at = -1e9
        self._refused = Refused(handle.ops.monotonic)
        self._told_at = -1e9  # when the error of such a ref was raised last
        self._passed_over: set[str] = set()  # while they were left alone: no line names them any more
        self._stamped: _Stamped | None = None
        self._missed: dict[str, float] = {}  # refs that were not where the order said, and when

    def take(self, count: int, partition: Partition | None, thorough: bool, leased: list[Claim]) -> bool:
        """Lease up to count refs in FIFO order and append the claims to leased; False when there were none.

        Where thorough, an order that names no more is compared with a listing.

        A ref that cannot be claimed costs that ref and not the others: its error is raised only where nothing could
        be leased. Then leased holds every ref that may be leased all the same; a sweep will find those whose places
        were taken and that were not claimed.
        """
        had = before = len(leased)
        wanted, swept, order = before + count, not thorough, self._handle.order
        errors: list[OSError] = []
        try:
            while had < wanted and len(errors) < _ERRORS_A_CALL:
                stems, exhausted = self._reserve(min(wanted - had, _PLACES_A_HOLD), partition)
                self._claim(stems, leased, errors)
                # An order whose cursor cannot be moved, on a full disk, names the same refs again and again.
                if len(leased) == had and (exhausted or order.unwritable):
                    if swept or len(leased) > before:
                        break
                    found, swept = self._sweep(), True
                    if order.unwritable:
                        self._claim(self._without_lock(wanted - had, partition), leased, errors)
                    elif not found:
                        break
                    self._scan_again(partition)
                had = len(leased)
            if errors and len(leased) == before:
                self._told_at = self._handle.ops.monotonic()
                raise errors[0]
        except BaseException:
            order.incomplete = True
            raise
        return had > before

    def _scan_again(self, partition: Partition | None) -> None:
        """Begin a partition's scan anew: the order may have been torn, and grown again below it."""
        if partition not in self._scans:
            return
        now = self._handle.ops.monotonic()
        doubting = now - self._doubted_at > SWEEP_S
        self._scans[partition] = AFRESH if doubting else FIRST
        self._doubted_at = now if doubting else self._doubted_at

    def _claim(self, stems: list[str], leased: list[Claim], errors: list[OSError]) -> None:
        """Claim the refs whose places were taken; append to errors what some of them raise."""
        handle, refused, ahead = self._handle, self._refused, self._stamped
        held, moves, self._stamped = handle.held, handle.moves, None
        if ahead is not None and [ahead.stem] != stems:
            ahead = None  # RACE: that of another thread, which makes its own anew
        if self._remote and stems and ahead is None:
            # NFS: a remembered name may still mean the file of an earlier life, which the stamp would go to. Of the
            # names in leased/ that a claim goes to, nobody can remember anything.
            handle.layout.pending.refresh()
        if refused or handle.strays:
            left_alone = refused.now()
            self._passed_over |= left_alone.intersection(stems)
            left_alone |= handle.strays.stems()
            stems = [stem for stem in stems if stem not in left_alone]
        monotonic = handle.ops.monotonic
        began_at = monotonic()
        since: dict[str, float] = {}
        if ahead is not None:
            began_at, stamp = ahead.began_at, ahead.outcome
        else:
            stamp_pending = partial(self._stamp_noting, since) if handle.notes_ages else moves.stamp_pending
            stamp = handle.overlap.ahead("stamp", stamp_pending, stems)
        for stem in stems:
            if stem in held and self._still_leased(stem):
                continue
            claim = moves.new_claim(stem)
            claim.stamped_at = claim.taken_at = began_at
            leased.append(claim)
            try:
                if stamp(stem):
                    claim.stamped_by = monotonic()
                    claim.pending_since = since.get(stem)
                    if moves.claim_stamped(claim):
                        held.add(claim)
                        refused.discard(stem)
                        continue
                if len(self._missed) < _MISSED:
                    self._missed[stem] = began_at
            except OSError as error:
                error = told("leasing", handle.layout.pending, names.ref_file(stem), error)
                errors.append(error)
                refused.add(stem, error)
                handle.strays.add([claim])
            leased.pop()

    def _stamp_noting(self, since: dict[str, float], stem: str) -> bool:
        """Note the stamp that a pending ref has, and stamp it anew."""
        status = self._handle.ops.status(self._handle.layout.pending.fd, names.ref_file(stem))
        if status is not None:
            since[stem] = status.st_mtime
        return self._handle.moves.stamp_pending(stem)

    def leave_alone(self, stem: str, error: Exception) -> None:
        """Note that a ref could not be read: it is left alone for longer each time, so that others come first."""
        self._refused.add(stem, error)

    def raise_of_refused(self, partition: Partition | None, waited: bool) -> None:
        """Raise what was said of a ref that is pending, and is left alone, where a get would say that there is none.

        To one that does not wait, once a second: whoever polls, and goes on, is not to meet it in each call.
        """
        pending, now = self._handle.layout.pending, self._handle.ops.monotonic()
        if not waited and now - self._told_at < _TOLD_S:
            return
        for stem, error in self._refused.why().items() if self._refused else ():
            if partition is not None and not self._belongs(stem, partition):
                continue
            file = names.ref_file(stem)
            if self._handle.ops.is_there(pending.fd, file) and self._handle.moves.holds(pending, file):
                self._told_at = now
                raise error.with_traceback(None)
            self._refused.discard(stem)

    def _still_leased(self, stem: str) -> bool:
        """Return whether a ref that is pending, and that this handle holds, is leased too: then it was queued twice."""
        claim, leased = self._handle.held.find(stem), self._handle.layout.leased
        leased.refresh()
        there = claim is not None and self._handle.ops.exists(leased.fd, claim.name)
        return there and claim is not None and self._handle.moves.holds(leased, claim.name)

    def _reserve(self, count: int, partition: Partition | None) -> tuple[list[str], bool]:
        """Take places in the order; the second value says that it holds no more of them."""
        handle, self._stamped = self._handle, None
        with handle.order_file.to_take as held:
            if not held:
                return self._without_lock(count, partition), True
            if partition is None:
                stems = handle.order.take_locked(count, self._stamp_meanwhile if self._remote else None)
                return stems, len(stems) < count
            picker = Picker(partition, lambda stem: self._belongs(stem, partition))
            scan = self._scans.get(partition, FIRST)
            stems, self._scans[partition], at_end = handle.order.take_partition_locked(count, picker, scan)
            return stems, at_end

    def _stamp_meanwhile(self, write: Callable[[], object], stems: list[str]) -> None:
        """Write the order's cursor, and stamp the one ref whose place was taken at the same time where that pays.

        CRASH: the ref is pending, with a new mtime; its place may be handed out again.
        """
        handle, began_at = self._handle, self._handle.ops.monotonic()
        if len(stems) != 1 or handle.strays or self._refused or handle.notes_ages or stems[0] in handle.held:
            write()
            return
        outcome = Outcome(self._stamp_afresh, stems[0])
        if handle.overlap.beside(write, outcome.run):
            self._stamped = _Stamped(stems[0], began_at, lambda _: outcome())

    def _stamp_afresh(self, stem: str) -> bool:
        self._handle.layout.pending.refresh()
        return self._handle.moves.stamp_pending(stem)

    def _without_lock(self, count: int, partition: Partition | None) -> list[str]:
        """Return candidates from a listing, in an order of this handle's own so that claims rarely collide."""
        stems = [stem for stem in self._pending_stems() if partition is None or self._belongs(stem, partition)]
        random = self._handle.ops.random
        return sorted(stems, key=lambda _: random())[:count]

    def _sweep(self) -> bool:
        """Name stranded refs when the order is exhausted; True when there were some.

        Do nothing where nothing can have changed since the last listing, or where listings take long and the last
        one is recent: at most 1/20 of the time goes into them.
        """
        ops = self._handle.ops
        if self._unchanged.holds() and not self._handle.order.incomplete:
            return False
        started = ops.monotonic()
        if started < self._no_sweep_before:
            return False
        found = self.name_stranded()
        self._unchanged.listed(started)
        self._no_sweep_before = started + self._sweep_s * (_RELAX if self._sweep_s > _CHEAP_SWEEP_S else 1)
        return found > 0 or bool(self._scans)

    def name_stranded(self) -> int:
        """List pending/ and name in the order every ref that no line names; return how many were found.

        That happens within `SWEEP_S` seconds of its being stranded, or 100 times what a listing takes; sooner where
        the order is exhausted and `_sweep` has reason to list.
        """
        handle, started = self._handle, self._handle.ops.monotonic()
        stranded, found = set[str](), 0
        handle.order.incomplete = False
        self._passed_over.clear()
        try:
            unnamed = Unnamed(handle, self._pending_stems())
            if unnamed.stems and unnamed.compare():
                stranded = unnamed.stems
            took_s = handle.ops.monotonic() - started
            self._sweep_s, self._took_s = min(self._took_s, took_s), took_s  # a process that was stopped took long once
            if stranded:
                # RACE: another handle may just have taken the places of these, and be about to claim them.
                handle.ops.sleep(_REMOTE_CLAIMING_S if handle.layout.remote else _CLAIMING_S)
                stranded.intersection_update(self._pending_stems())
                found = len(stranded)
                unnamed.name(self._arrange(sorted(stranded)), swept=True)
        except BaseException:
            handle.order.incomplete = True
            raise
        self._compared_at = started
        return found

    def sweep_if_due(self, now: float) -> None:
        """Name stranded refs though the order is not exhausted, once in a while and for all handles."""
        order = self._handle.order
        if self._missed:
            self._name_missed()
        if self._passed_over and not self._passed_over <= self._refused.now():
            order.incomplete = True
        if order.incomplete or (
            order.swept_at is not None
            and now >= self._no_sweep_before
            and now - self._compared_at > SWEEP_S  # the header is left alone where nothing is pending
            and abs(self._handle.ops.time() - order.swept_at) > SWEEP_S
        ):
            self.name_stranded()
            self._no_sweep_before = now + 100 * self._sweep_s

    def _name_missed(self) -> None:
        """Name refs again whose places were taken, that were not there just then, and are there after all.

        Somebody may have had one in hand for a moment, or this client have remembered that it is missing.
        """
        handle, now = self._handle, self._handle.ops.monotonic()
        due = [stem for stem, at in self._missed.items() if now - at >= _MISSED_S]
        if not due:
            return
        for stem in due:
            del self._missed[stem]
        pending = handle.layout.pending
        handle.layout.refresh_pending()
        is_there, holds = handle.ops.is_there, handle.moves.holds
        files = {stem: names.ref_file(stem) for stem in due}
        there = [stem for stem, file in files.items() if is_there(pending.fd, file) and holds(pending, file)]
        if there:
            Unnamed(handle, there).name(sorted(there), swept=False)

    def _pending_stems(self) -> list[str]:
        """List the stems in pending/; give a file that was moved there under another name its own."""
        stems, refused = [], self._refused.now() if self._refused else ()
        for name in self._handle.layout.pending.listing():
            stem = names.parse_pending(name)
            if stem is None:
                continue
            if stem in refused:
                self._passed_over.add(stem)
                continue
            if name != names.ref_file(stem):
                self._handle.moves.rename_pending(name, stem)
            stems.append(stem)
        return stems

    def _arrange(self, stems: list[str]) -> list[str]:
        """Sort stems from a listing by age, or by name where a stat each would cost too much."""
        if len(stems) > _SORT_BY_MTIME_LIMIT:
            return sorted(stems)
        return sorted(stems, key=lambda stem: (self._mtime_ns(stem), stem))

    def _mtime_ns(self, stem: str) -> int:
        status = self._handle.ops.status(self._handle.layout.pending.fd, names.ref_file(stem))
        return status.st_mtime_ns if status else 0

    def _belongs(self, stem: str, partition: Partition) -> bool:
        index, count = partition
        sample_id = names.id_of(stem) or self._id_inside(stem)
        return sample_id is None or dp_partition(sample_id, count) == index

    def _id_inside(self, stem: str) -> str | None:
        """Return the id of a ref whose name was cut short; None where the file does not tell either."""
        found = read_json(self._handle.layout.pending, names.ref_file(stem), _SampleId)
        return found.sample_id if found else None

    def anything_pending(self) -> bool:
        """Return whether there is any pending ref, of whatever partition; it costs no whole listing."""
        return self._handle.layout.pending.any_name(lambda name: names.parse_pending(name) is not None)
