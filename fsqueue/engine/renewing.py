"""Renew the leases of a handle that keeps no heartbeat, from a thread, while somebody works on what it leases."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from fsqueue.engine.handle import Handle
from fsqueue.errors import QueueClosedError

R = TypeVar("R")

_RENEWALS_A_LEASE = 4
_JOIN_S = 1.0
_LOOK_S = 15.0


class LeasingQueue(Protocol[R]):
    """List the calls of `FileSampleRefQueue` that whoever works on its leases makes."""

    @property
    def lease_timeout_s(self) -> float | None: ...

    @property
    def handle(self) -> Handle: ...

    def get(self, max_refs: int, timeout_s: float | None = None) -> list[R]: ...

    def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]: ...

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> list[str]: ...

    def release(self, refs: Iterable[R]) -> list[str]: ...

    def renew(self, refs: Iterable[R]) -> list[str]: ...


class Renewer(Generic[R]):
    """Renew some refs several times a lease, until it is stopped.

    Where leases never expire, or the handle's heartbeat prolongs them, there is nothing to do. It looks each time
    whether the timeout was changed.

    Args:
        refs: returns what is leased at the moment.
    """

    def __init__(self, queue: LeasingQueue[R], refs: Callable[[], Iterable[R]]) -> None:
        self._queue = queue
        self._refs = refs
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self._queue.handle.presence.heartbeat_s is not None:
            return
        self._thread = threading.Thread(target=self._run, name="fsqueue-renew", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        due = self._due()
        while not self._stopped.wait(max(0.0, min(due - time.monotonic(), _LOOK_S))):
            try:
                if self._rereads():
                    due = min(due, self._due())
                if time.monotonic() >= due:
                    due = self._due()
                    self._queue.renew(self._refs())
            except QueueClosedError:
                return
            except OSError:
                continue  # tried again at the next interval; the lease timeout allows for several

    def _rereads(self) -> bool:
        """Read the settings again; return whether they changed. A queue out of reach is reached anew by a renewal."""
        try:
            return self._queue.handle.layout.reread()
        except OSError:
            return False

    def _due(self) -> float:
        """Return when to renew next, by the timeout of now, which `configure` may change; monotonic."""
        timeout_s = self._queue.lease_timeout_s
        return time.monotonic() + (float("inf") if timeout_s is None else timeout_s / _RENEWALS_A_LEASE)

    def stop(self) -> None:
        """End the thread, so that what is settled from now on is not renewed at the same time.

        RACE: it may wait for a lock of this very thread, where a signal handler stops it on top of a call. A renewal
        that is still under way knows what a settlement says of the leases.
        """
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)
