"""Deliver refs: reclaim what expired, lease what is next, read it, decode it.

Whatever goes wrong on the way, a ref that this handle has leased is either returned to the caller or becomes a
stray, which the next call gives back to pending/.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Generic, TypeVar

from fsqueue.engine.claim import Claimer, Partition
from fsqueue.engine.contents import Contents
from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.handle import Handle
from fsqueue.engine.moves import record
from fsqueue.engine.put import Putter
from fsqueue.engine.settle import Settler, bury
from fsqueue.engine.waiting import Pace, Waiter
from fsqueue.errors import CorruptRefError, InvalidRefError, RefTypeError, UnreadableRefError
from fsqueue.format import names
from fsqueue.format.codec import Codec
from fsqueue.records import dp_partition, id_of_ref

R = TypeVar("R")

UNREADABLE_ATTEMPTS = 3
_UNREADABLE_A_ROUND = 16
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
        poll_interval_s: float,
        max_attempts: int | None,
    ) -> None:
        self._handle = handle
        self._codec = codec
        self._putter = putter
        self._settler = settler
        self._reclaimer = reclaimer
        self._contents = contents
        attempts = max_attempts or UNREADABLE_ATTEMPTS
        self._returner = Settler(handle, keep_done=True, max_attempts=attempts)  # of what this class does not take
        self._claimer = Claimer(handle)
        self._pace = Pace(handle, poll_interval_s, reclaimer.idle_s)
        self._timeout_s = handle.layout.settings.lease_timeout_s

    def get(self, max_refs: int, timeout_s: float | None, partition: Partition | None) -> list[R]:
        """Lease up to max_refs refs, waiting for the first one for up to timeout_s seconds."""
        self._contents.agree_to_get()
        waiter = Waiter(self._handle, timeout_s, self._pace)
        thorough = True
        while True:
            refs = self._get_now(max_refs, partition, thorough)
            if refs:
                self._pace.waited_s = 0.0
            if refs or waiter.expired() or (partition and self._claimer.anything_pending()):
                return refs
            thorough = waiter.wait()

    def _get_now(self, max_refs: int, partition: Partition | None, thorough: bool) -> list[R]:
        self._reclaimer.round_if_due(idle=False)
        refs = self._lease(max_refs, partition, thorough)
        if thorough and not refs and self._reclaimer.round_if_due(idle=True):
            refs = self._lease(max_refs, partition, thorough)
        return refs

    def _lease(self, max_refs: int, partition: Partition | None, thorough: bool) -> list[R]:
        handle, started = self._handle, self._handle.ops.monotonic()
        handle.presence.announce()
        handle.strays.recover()
        self._claimer.sweep_if_due()
        leased: list[str] = []
        try:
            return self._renewed_if_slow(self._fill(max_refs, partition, thorough, leased), started)
        except RefTypeError:
            handle.strays.add(leased)
            handle.strays.recover()
            raise
        except BaseException:
            handle.strays.add(leased)
            raise

    def _fill(self, max_refs: int, partition: Partition | None, thorough: bool, leased: list[str]) -> list[R]:
        """Lease and read until there are max_refs refs or no more; one file's error costs that ref, not the others."""
        refs: list[R] = []
        unreadable: dict[str, UnreadableRefError] = {}
        first: OSError | None = None
        while len(refs) < max_refs and len(unreadable) < max(max_refs, _UNREADABLE_A_ROUND):
            seen = len(leased)
            if not self._claimer.take(max_refs - len(refs), partition, thorough, leased):
                break
            self._contents.agree_to_get(leased=True)
            contents = self._handle.overlap.ahead(self._content, leased[seen:])
            for index, content in enumerate(contents, seen):
                known = len(leased)
                try:
                    ref = self._read(leased, index, content)
                except UnreadableRefError as error:
                    unreadable[leased[index]] = error
                    continue
                except OSError as error:
                    first = first or error
                    self._handle.strays.add([leased[index], *leased[known:]])
                    continue
                if ref is not None and (partition is None or self._belongs(ref, partition)):
                    refs.append(ref)
        if unreadable:
            self._return(unreadable)
        if first is not None and not refs:
            raise first
        return refs

    def _return(self, unreadable: dict[str, UnreadableRefError]) -> None:
        """Count an attempt for refs that this class does not take, and leave them to other readers.

        Only once the round is over, or it would lease them again.
        """
        for stem, error in unreadable.items():
            try:
                self._returner.fail([stem], str(error), retryable=True)
            except OSError:
                self._handle.strays.add([stem])
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
        self._settler.release([stem])
        return False

    def _renewed_if_slow(self, refs: list[R], started: float) -> list[R]:
        """Give refs a fresh lease where getting them took a good part of the lease timeout."""
        if self._timeout_s is None or self._handle.ops.monotonic() - started < self._timeout_s / 4:
            return refs
        stems = {names.stem_of(id_of_ref(ref)): ref for ref in refs}
        lost = set(self._settler.renew(list(stems)))
        return [ref for stem, ref in stems.items() if stem not in lost]

    def _content(self, stem: str) -> bytes:
        """Read the file of a ref that this handle leases."""
        handle = self._handle
        return handle.ops.read_file(handle.layout.leased.fd, names.leased_file(stem, handle.owner))

    def _read(self, leased: list[str], index: int, content: Callable[[], bytes]) -> R | None:
        """Return the ref in a file that this handle leases; None where it is none, or the lease is gone already."""
        handle, stem = self._handle, leased[index]
        try:
            ref = self._codec.decode(content())
            named = names.stem_of(id_of_ref(ref))
        except FileNotFoundError:
            handle.held.end(stem, "lost")
            return None
        except UnreadableRefError:
            raise
        except (CorruptRefError, InvalidRefError) as error:
            self._bury(stem, str(error))
            return None
        if named == stem or self._rename(stem, named, leased):
            return ref
        return None

    def _rename(self, stem: str, named: str, leased: list[str]) -> bool:
        """Give a file that somebody named otherwise its right name: the id inside is the authority."""
        handle = self._handle
        if self._putter.known([named]) or not handle.held.begin(named):
            self._bury(stem, "the file holds the id of another ref that is in the queue already")
            return False
        leased.append(named)
        if not handle.moves.rename_leased(stem, named):
            handle.held.cancel_claim(named)
            handle.held.end(stem, "lost")
            return False
        handle.held.add(named)
        handle.held.drop(stem)
        return True

    def _bury(self, stem: str, reason: str) -> None:
        handle = self._handle
        bury(handle, stem, record("failed", handle.clock.now(), handle.owner, reason), reason)
        handle.held.end(stem, "settled")
