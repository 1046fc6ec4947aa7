"""Carry out the remedies of `fsqueue check --repair`. No ref is lost by any of them.

A file is first made a lease of the mender's own, which fences everybody else off, then read once more, and only
then moved to where it belongs. Of two copies of a live ref one is dropped only where both hold the same ref.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from fsqueue.disk.directory import Directory
from fsqueue.engine.annotations import Change, record
from fsqueue.engine.claim import Claimer
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import HEADER_BYTES
from fsqueue.engine.order import Header
from fsqueue.engine.owners import read_record
from fsqueue.engine.packing.revision import recover
from fsqueue.engine.packing.unpack import mend_segment
from fsqueue.engine.progress import Progress, unheard
from fsqueue.engine.settle import bury
from fsqueue.errors import CorruptRefError
from fsqueue.format import names
from fsqueue.format.codec import Bookkeeping, bookkeeping_tail, split
from fsqueue.format.lines import stems_in
from fsqueue.format.untyped import RefSight, place_of, same_ref, sight
from fsqueue.log import tell
from fsqueue.operate.check.violations import Violation
from fsqueue.operate.operator import fetch, operator
from fsqueue.stream.policy import read_policy

T = TypeVar("T")

_TRIES = 3


class _LeftAloneError(Exception):
    """Say why something is not mended."""


@dataclass(frozen=True)
class Mended:
    """Say what became of one violation.

    Attributes:
        done: whether it is mended.
        outcome: what was done, or why not.
    """

    violation: Violation
    done: bool
    outcome: str


def mend_all(
    path: str,
    violations: list[Violation],
    each: Callable[[Mended], None] | None = None,
    progress: Progress = unheard,
) -> list[Mended]:
    """Mend those that can be; each is looked at again first."""
    with operator(path) as handle:
        mender = Mender(handle)
        try:
            mended: list[Mended] = []
            wanted = [violation for violation in violations if violation.mendable]
            for number, violation in enumerate(wanted, 1):
                mended.append(mender.mend(violation))
                outcome = mended[-1].outcome
                tell(__name__, "info", handle.layout.path, "repair of %s: %s", violation.path, outcome)
                if each is not None:
                    each(mended[-1])
                progress(number, len(wanted))
            return mended
        finally:
            mender.finish()


class Mender:
    """Mend one violation after the other in one handle's name."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._back: list[str] = []
        layout = handle.layout
        known = (layout.root, layout.owners, layout.tmp, layout.pending, layout.leased, layout.done, layout.failed)
        self._directories = {directory.path: directory for directory in known}
        self._opened = ExitStack()
        self._remedies = {
            "undecodable": self._bury_no_ref,
            "no-id": self._bury_no_ref,
            "misnamed": self._rename,
            "unowned": self._rename,
            "duplicate": self._rename,
            "twin": self._part,
            "torn": self._drop_torn_end,
            "future": self._stamp,
            "segment": self._mend_segment,
            "packing": self._end_packing,
            "order": self._rebuild_order,
            "leftover": self._remove,
            "owner-gone": self._remove,
            "owner-unreadable": self._remove,
            "quantum-unreadable": self._remove,
            "member-unreadable": self._remove_silent,
        }

    def mend(self, violation: Violation) -> Mended:
        """Carry out the remedy for one violation, unless it is gone or must be left alone."""
        parent, name = os.path.split(violation.path)
        try:
            mended = Mended(violation, True, self._remedies[violation.kind](self._directory(parent), name))
        except _LeftAloneError as why:
            mended = Mended(violation, False, f"left alone: {why}")
        self._handle.strays.clear()
        return mended

    def finish(self) -> None:
        """Name what came back to pending/ in the order."""
        self._handle.order.append_soon(self._back)
        self._opened.close()

    def _directory(self, path: str) -> Directory:
        if path not in self._directories:
            self._directories[path] = self._opened.enter_context(
                closing(self._handle.layout.within(os.path.basename(path)))
            )
        return self._directories[path]

    def _read(self, directory: Directory, name: str) -> RefSight:
        with _there():
            return sight(self._handle.ops.read_file(directory.fd, name))

    def _refuse_worked_on(self, directory: Directory, name: str, then: str = "") -> None:
        """Leave a lease alone whose process runs on this host."""
        place = place_of(_state(directory), name)
        owner = place.owner if place else None
        found = read_record(self._handle.layout.owners, owner) if owner else None
        if found is not None and found.liveness() == "alive":
            raise _LeftAloneError(f"the process that leases it runs{then}")

    def _bury_no_ref(self, directory: Directory, name: str) -> str:
        place = _require(place_of(_state(directory), name))
        problem = _require(self._read(directory, name).problem)
        self._refuse_worked_on(directory, name, ", and buries it")
        return self._bury(self._lease(directory, name, place.stem), f"found in {_state(directory)}/: it {problem}")

    def _bury(self, claim: Claim, reason: str) -> str:
        """Move a lease of one's own to failed/, under a new name where a dead letter has that name."""
        handle = self._handle
        if handle.ops.exists(handle.layout.failed.fd, names.ref_file(claim.stem)):
            renamed = handle.moves.new_claim(names.stem_of(f"{claim.stem}.{secrets.token_hex(3)}"))
            handle.moves.rename_leased(claim, renamed)
            claim = renamed
        event = record("failed", handle.clock.now(), handle.owner, reason)
        _require(bury(handle, claim, event, reason))
        return f"moved to failed/{names.ref_file(claim.stem)}"

    def _rename(self, directory: Directory, name: str) -> str:
        """Give a file the name of the ref inside; one that is live goes through a lease of one's own."""
        stem = names.stem_of(_require(self._read(directory, name).sample_id))
        if _state(directory) in ("done", "failed"):
            return self._rename_settled(directory, name, stem)
        self._refuse_worked_on(directory, name)
        # RACE: under the lock, no put is between its look for the id and its publishing.
        with self._handle.order_file.soon:
            claim = self._lease(directory, name, stem)
        return self._settle_live(claim)

    def _part(self, directory: Directory, name: str) -> str:
        """Give a live ref whose file has another name in the queue a file of its own."""
        _require(self._links(directory, name) > 1)
        return self._rename(directory, name)

    def _links(self, directory: Directory, name: str) -> int:
        status = self._handle.ops.status(directory.fd, name)
        return status.st_nlink if status else 0

    def _lease(self, directory: Directory, name: str, stem: str) -> Claim:
        return _require(fetch(self._handle, directory, name, stem))

    def _rename_settled(self, directory: Directory, name: str, stem: str) -> str:
        handle, place = self._handle, place_of(_state(directory), name)
        target = names.done_file(stem, place.step if place else None)
        if handle.ops.exists(directory.fd, target) and handle.moves.holds(directory, target):
            raise _LeftAloneError(f"{target} is there already; remove one of them by hand")
        if not handle.moves.move(directory, name, directory, target):
            _require(handle.ops.exists(directory.fd, name))
            raise _LeftAloneError("this mount reported a move that it did not make; try again in a minute")
        return f"renamed to {target}"

    def _settle_live(self, claim: Claim) -> str:
        """Move a lease of one's own to pending/, unless another copy of its ref is live."""
        ops, leased = self._handle.ops, self._handle.layout.leased
        for _ in range(_TRIES):
            other = self._other_copy(claim)
            if other is None:
                return self._give_back(claim)
            try:
                same = same_ref(ops.read_file(leased.fd, claim.name), ops.read_file(*other))
            except (FileNotFoundError, CorruptRefError):
                continue  # the other one has moved on: look again
            if not same:
                return self._bury(claim, "another ref with this id was live")
            self._handle.moves.remove(leased, claim.name)
            return "dropped: the same ref is live under another name"
        return self._bury(claim, "another file with this id was live, and could not be read")

    def _give_back(self, claim: Claim) -> str:
        """Move a lease of one's own to pending/, as a whole file with one name."""
        handle, leased = self._handle, self._handle.layout.leased
        if self._links(leased, claim.name) > 1:
            handle.moves.part(claim)
        if self._read(leased, claim.name).torn:
            handle.moves.annotate(claim, self._torn(False))
        _require(handle.moves.give_back(claim))
        self._back.append(claim.stem)
        return f"moved to pending/{names.ref_file(claim.stem)}"

    def _other_copy(self, claim: Claim) -> tuple[int, str] | None:
        layout, holders = self._handle.layout, self._handle.moves.holders()
        others = [lease.file for lease in holders.get(claim.stem, ()) if lease.file != claim.name]
        if others:
            return layout.leased.fd, others[0]
        name = names.ref_file(claim.stem)
        # A name that is only remembered leads to the very file that this claim has.
        there = self._handle.ops.exists(layout.pending.fd, name) and self._handle.moves.holds(layout.pending, name)
        return (layout.pending.fd, name) if there else None

    def _drop_torn_end(self, directory: Directory, name: str) -> str:
        seen = self._read(directory, name)
        _require(seen.torn)
        stem = names.stem_of(_require(seen.sample_id))
        if directory is self._handle.layout.pending:
            self._give_back(self._lease(directory, name, stem))
        else:
            self._rewrite_settled(directory, name)
        return "dropped the torn end"

    def _torn(self, settled: bool) -> Change:
        """Begin a new history; the file of a settled ref says why it is where it is."""
        reason = "the history before this was torn"
        event = record("repaired", self._handle.clock.now(), self._handle.owner, reason)

        def change(bookkeeping: Bookkeeping) -> None:
            event(bookkeeping)
            bookkeeping.reason = reason if settled else None

        return change

    def _rewrite_settled(self, directory: Directory, name: str) -> None:
        """Write in place: a lease would make a settled ref live again, should this process die meanwhile."""
        ops = self._handle.ops
        with _there(), ExitStack() as stack:
            fd = ops.open_for_update(directory.fd, name)
            stack.callback(ops.close, fd)
            data = ops.read_regular(fd)
            offset, bookkeeping = split(data)
            self._torn(_state(directory) == "failed")(bookkeeping)
            ops.update_in_place(fd, bookkeeping_tail(bookkeeping), offset, len(data))
            ops.fsync(fd)

    def _stamp(self, directory: Directory, name: str) -> str:
        _require(self._handle.moves.stamp(directory, name))
        return "stamped with the present time"

    def _mend_segment(self, directory: Directory, name: str) -> str:
        with _there():
            letter = mend_segment(self._handle, name)
        return f"damaged bytes moved to failed/{letter}" if letter else "counted anew"

    def _end_packing(self, directory: Directory, name: str) -> str:
        exists = self._handle.ops.exists
        if exists(directory.fd, name):
            recover(self._handle, alone=False)
        if exists(directory.fd, name):
            raise _LeftAloneError("its packer may be at work")
        return "ended"

    def _rebuild_order(self, directory: Directory, name: str) -> str:
        """Keep the lines that name something, under a new header, and add what is pending and not named."""
        handle, file = self._handle, self._handle.order_file.content
        with handle.order_file.surely as held:
            try:
                data = handle.ops.pread(file.fd, file.size, 0) if held else b""
            except OSError as error:
                file.fail(error)
                held = False
            if not held:
                return self._replaced_order()
            header = Header.decode(data[:HEADER_BYTES])
            stems = stems_in(data[header.cursor if header else 0 :])
            # CRASH: between the two an empty order, which the next get fills from a listing.
            handle.ops.ftruncate(file.fd, 0)
            file.size = 0
            handle.order.append_locked(dict.fromkeys(stems))
        Claimer(handle).name_stranded()
        return "rebuilt"

    def _replaced_order(self) -> str:
        """Fill the fresh order that is in the place of one that nobody can read."""
        if self._handle.order_file.content.is_unusable():
            raise _LeftAloneError("it can neither be used nor replaced; put and get go on without")
        Claimer(self._handle).name_stranded()
        return "replaced"

    def _remove(self, directory: Directory, name: str) -> str:
        _require(self._handle.moves.remove(directory, name))
        return "removed"

    def _remove_silent(self, directory: Directory, name: str) -> str:
        ops, silence_s = self._handle.ops, read_policy(directory).silence_s
        beat = ops.fresh_mtime(directory.fd, name)
        if beat is not None and self._handle.clock.now() - beat <= silence_s:
            raise _LeftAloneError(f"it was stamped less than {silence_s:.0f} s ago")
        return self._remove(directory, name)


def _state(directory: Directory) -> str:
    return os.path.basename(directory.path)


def _require(found: T | None) -> T:
    """Return what was found; where nothing was, leave the violation alone."""
    if not found:
        raise _LeftAloneError("it is gone or changed")
    return found


@contextmanager
def _there() -> Iterator[None]:
    """Leave the violation alone where the block finds its file gone, or no regular one."""
    try:
        yield
    except (FileNotFoundError, CorruptRefError):
        _require(None)
