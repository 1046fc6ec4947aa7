"""Deliver refs: reclaim what expired, lease what is next, read it, decode it.

Whatever goes wrong on the way, a ref that this handle has leased is either returned to the caller or becomes a
stray, which the next call gives back to pending/.
"""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

from fsqueue.disk.denied import told as told_of
from fsqueue.engine.annotations import record
from fsqueue.engine.attempts import Limits
from fsqueue.engine.claim import Claimer
from fsqueue.engine.contents import Contents
from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.holding import HoldLimit
from fsqueue.engine.lookout import pace_of
from fsqueue.engine.picking import Partition
from fsqueue.engine.put import Putter
from fsqueue.engine.settle import Settler, bury
from fsqueue.engine.unread import Unread
from fsqueue.engine.waiting import Look, StopEvent, StoppedError, Waiting
from fsqueue.errors import CorruptRefError, InvalidRefError, RefTypeError, UnreadableRefError
from fsqueue.format import names
from fsqueue.format.codec import Codec, tells_of_an_end
from fsqueue.format.roundtrip import full_name
from fsqueue.records import dp_partition, id_of_ref

R = TypeVar("R")

UNREADABLE_ATTEMPTS = 3
_UNREADABLE_A_ROUND = 16
_ENDINGS = 3  # of gets, in the reading of one ref
_CALLER = 7  # the frames between _return and who called the queue's get


class UnreadableRefWarning(UserWarning):
    """Warn that refs in the queue cannot be read as the handle's class, though it fits by its fields."""


class Getter(Generic[R]):
    """Get refs on behalf of one handle."""

    def __init__(
        self,
        handle: Handle,
        codec: Codec[R],
        putter: Putter,
        settler: Settler,
        reclaimer: Reclaimer,
        contents: Contents,
        holding: HoldLimit,
        max_attempts: int | None,
    ) -> None:
        self._handle = handle
        self._codec = codec
        self._putter = putter
        self._settler = settler
        self._reclaimer = reclaimer
        self._contents = contents
        self._holding = holding
        attempts = max_attempts or UNREADABLE_ATTEMPTS
        self._returner = Settler(
            handle, keep_done=True, limits=Limits(attempts, None)
        )  # of what this class does not take
        self._unread = Unread(handle.ops.monotonic, attempts)
        self._claimer = Claimer(handle)
        self._ended_in: dict[str, int] = {}
        self.pace = pace_of(handle, reclaimer)

    def get(
        self,
        max_refs: int,
        timeout_s: float | None,
        partition: Partition | None,
        stop: StopEvent | None,
        leased: list[Claim],
    ) -> list[R]:
        """Lease up to max_refs refs, waiting for the first one for up to timeout_s seconds, or until stop is set.

        Args:
            leased: every claim is added to it, so that those of a call that was cut short can be made strays.
        """
        if not self._contents.fits_gets:
            self._contents.agree_to_get()
        handle = self._handle
        use = handle.begin_use()
        try:
            refs = self._get(max_refs, partition, self.pace.waiter(timeout_s, stop), leased)
            if refs:
                handle.counters.add("leased", len(refs))
            return refs
        except BaseException as error:
            handle.strays.add(leased)
            if isinstance(error, (StoppedError, RefTypeError)):
                handle.strays.recover()
            if isinstance(error, StoppedError):
                return []
            raise
        finally:
            handle.end_use(use)

    def _get(self, max_refs: int, partition: Partition | None, waiter: Waiting, leased: list[Claim]) -> list[R]:
        look = waiter.first()
        while True:
            if self._handle.closed or waiter.stop is not None:
                waiter.raise_if_stopped()
            if look.takes or (look is Look.LEASES and self._have_ended()):
                refs = self._get_now(max_refs, partition, look is Look.ALL, waiter, leased)
            else:
                refs = []
            if refs:
                self.pace.restart()
                return refs
            paused = self._handle.pause.found is not None
            seen = partition and not paused and (look.takes or self.pace.sees_some)
            if waiter.expired() or (seen and self._claimer.anything_pending()):
                if not paused:
                    self._claimer.raise_of_refused(partition, waiter.patient)
                return []
            look = waiter.wait()

    def _have_ended(self) -> bool:
        """Return whether leases have ended and their refs are pending again."""
        before = self._reclaimer.brought
        self._reclaimer.round_if_due(idle=True)
        return self._reclaimer.brought != before

    def _get_now(
        self, max_refs: int, partition: Partition | None, thorough: bool, waiter: Waiting, leased: list[Claim]
    ) -> list[R]:
        """Reclaim and lease; what one expired lease raises costs that ref, and not those that can be leased."""
        first: OSError | None = None
        try:
            self._reclaimer.round_if_due(idle=False)
        except OSError as error:
            first = error
        refs = self._lease(max_refs, partition, thorough, waiter, leased)
        if first is not None and not refs:
            raise first
        if thorough and not refs and self._reclaimer.round_if_due(idle=True):
            refs = self._lease(max_refs, partition, thorough, waiter, leased)
        return refs

    def _lease(
        self, max_refs: int, partition: Partition | None, thorough: bool, waiter: Waiting, leased: list[Claim]
    ) -> list[R]:
        handle = self._handle
        started = handle.ops.monotonic()
        handle.strays.recover()
        if handle.pause.look() is not None:
            return []
        handle.presence.announce()
        self._holding.watch()
        self._claimer.sweep_if_due(started)
        refs = self._fill(max_refs, partition, thorough, leased)
        timeout_s = handle.layout.settings.lease_timeout_s
        if timeout_s is not None and handle.ops.monotonic() - started >= timeout_s / 4:
            refs = self._renewed(refs)
        if handle.closed or waiter.stop is not None:
            waiter.raise_if_stopped()  # what was leased meanwhile would be leased to nobody
        return refs

    def _fill(self, max_refs: int, partition: Partition | None, thorough: bool, leased: list[Claim]) -> list[R]:
        """Lease and read until there are max_refs refs or no more; one file's error costs that ref, not the others."""
        refs: list[R] = []
        unreadable: dict[Claim, UnreadableRefError] = {}
        first: OSError | MemoryError | None = None
        while len(refs) < max_refs and len(unreadable) < max(max_refs, _UNREADABLE_A_ROUND):
            seen = len(leased)
            try:
                if not self._claimer.take(max_refs - len(refs), partition, thorough, leased):
                    break
            except OSError:
                if not refs:
                    raise
                self._handle.strays.add(leased[seen:])
                break
            if not self._contents.fits_gets:
                self._contents.agree_to_get(leased=True)
            taken = leased[seen:]
            content = self._handle.overlap.ahead("read", self._content, taken)
            for claim in taken:
                known = len(leased)
                try:
                    ref = self._read(leased, claim, content)
                except UnreadableRefError as error:
                    unreadable[claim] = error
                    continue
                except (OSError, MemoryError) as error:
                    self._handle.strays.add(leased[known:])
                    told = self._told(claim, error)
                    if self._gave_up(claim, told):
                        continue
                    first = first or told
                    self._handle.strays.add([claim])
                    continue
                if ref is not None:
                    (leased[-1] if len(leased) > known else claim).hand_out(ref)
                    if partition is None or self._belongs(ref, partition):
                        refs.append(ref)
        if unreadable:
            self._return(unreadable)
        if first is not None and not refs:
            raise first
        return refs

    def _told(self, claim: Claim, error: OSError | MemoryError) -> OSError | MemoryError:
        """Return an error of a ref's file; where this process was denied it, one that names the file and its owner."""
        if not isinstance(error, OSError):
            return error
        return told_of("reading", self._handle.layout.leased, claim.name, error)

    def _gave_up(self, claim: Claim, error: OSError | MemoryError) -> bool:
        """Bury a ref whose file could not be read as often as it may fail; False where it is to be tried again."""
        if not isinstance(error, OSError) or not self._unread.is_used_up(claim.stem):
            self._claimer.leave_alone(claim.stem, error)
            return False
        try:
            buried = self._handle.moves.bury(claim)  # as it is: bytes that were not read are never overwritten
            self._handle.counters.add("dead", int(buried))
        except OSError:
            return False
        self._handle.held.end(claim, "settled")
        warnings.warn(
            f"queue {self._handle.layout.path}: the file of {names.id_of(claim.stem) or claim.stem} could not be read, "
            f"again and again ({error}). It went to failed/ as it is: mend or restore it there, and requeue it",
            UnreadableRefWarning,
            stacklevel=_CALLER,
        )
        return True

    def _return(self, unreadable: dict[Claim, UnreadableRefError]) -> None:
        """Count an attempt for refs that this class does not take, and leave them to other readers.

        Only once the round is over, or it would lease them again.
        """
        for claim, error in unreadable.items():
            try:
                self._returner.fail([(claim.stem, None)], str(error), retryable=True)
            except OSError:
                self._handle.strays.add([claim])
        some = next(iter(unreadable.values()))
        warnings.warn(
            f"queue {self._handle.layout.path}: {some}. Refs like this one count an attempt and go back to pending, "
            "and to failed/ after the last one: read them as the class that they were put as",
            UnreadableRefWarning,
            stacklevel=_CALLER,
        )

    def _belongs(self, ref: R, partition: Partition) -> bool:
        """Return whether a ref is of the partition, and release it where not: the name of a long id does not tell."""
        sample_id = id_of_ref(ref)
        stem = names.stem_of(sample_id)
        if names.id_of(stem) is not None or dp_partition(sample_id, partition[1]) == partition[0]:
            return True
        self._settler.release([(stem, ref)])
        return False

    def _renewed(self, refs: list[R]) -> list[R]:
        """Give refs a fresh lease, since getting them took a good part of the lease timeout."""
        stems = {names.stem_of(id_of_ref(ref)): ref for ref in refs}
        lost = set(self._settler.renew(list(stems.items())))
        return [ref for stem, ref in stems.items() if stem not in lost]

    def _content(self, claim: Claim) -> bytes:
        """Read the file of a ref that this handle leases."""
        layout = self._handle.layout
        data = layout.ops.read_file(layout.leased.fd, claim.name)
        if layout.remote:
            claim.was_done |= tells_of_an_end(data)
        return data

    def _read(self, leased: list[Claim], claim: Claim, content: Callable[[Claim], bytes]) -> R | None:
        """Return the ref in a file that this handle leases; None where it is none, or the lease is gone already."""
        try:
            try:
                data = content(claim)
            except OSError as error:
                data = self._read_anew(claim, error)
            self._unread.note_success()
            ref = self._codec.decode(data)
            named = names.stem_of(id_of_ref(ref))
        except UnreadableRefError:
            raise
        except (KeyboardInterrupt, SystemExit, GeneratorExit) as error:
            self._note_ending(claim, error)
            raise
        except (CorruptRefError, InvalidRefError) as error:
            self._bury(claim, str(error))
            return None
        except OSError as error:
            if not self._handle.moves.is_gone(self._handle.layout.leased, claim.name, error):
                raise
            self._handle.held.end(claim, "lost")
            return None
        if named == claim.stem or self._rename(claim, named, leased):
            return ref
        return None

    def _read_anew(self, claim: Claim, error: OSError) -> bytes:
        """Read a file again that is there though its handle was stale; raise any other error as it is."""
        handle = self._handle
        if error.errno != errno.ESTALE or handle.moves.is_gone(handle.layout.leased, claim.name, error):
            raise error
        return self._content(claim)

    def _note_ending(self, claim: Claim, error: BaseException) -> None:
        """Raise another error where what ends a program came from the reading of this ref again and again.

        Once, a signal came just then. But a class's own __post_init__ may call sys.exit, at whichever reader.

        Raises:
            UnreadableRefError: it did.
        """
        times = self._ended_in.pop(claim.stem, 0) + 1
        if times >= _ENDINGS:
            found = f"{type(error).__name__}: {error}"
            raise UnreadableRefError(
                names.id_of(claim.stem) or claim.stem, full_name(self._codec.ref_type), found
            ) from error
        self._ended_in[claim.stem] = times

    def _rename(self, claim: Claim, named: str, leased: list[Claim]) -> bool:
        """Give a file that somebody named otherwise its right name: the id inside is the authority."""
        handle = self._handle
        if self._putter.known([named]):
            self._bury(claim, "the file holds the id of another ref that is in the queue already")
            return False
        right = handle.moves.new_claim(named)
        leased.append(right)
        if not handle.moves.rename_leased(claim, right):
            leased.pop()
            handle.held.end(claim, "lost")
            return False
        handle.held.add(right)
        handle.held.drop(claim)
        return True

    def _bury(self, claim: Claim, reason: str) -> None:
        handle = self._handle
        bury(handle, claim, record("failed", handle.clock.now(), claim.holder, reason), reason)
        handle.held.end(claim, "settled")
