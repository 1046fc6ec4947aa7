"""Renew the leases of a handle that keeps no heartbeat, from a thread, while somebody works on what it leases."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, Generic, Protocol, TypeVar

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
    whether the timeout was changed. The thread keeps neither the queue object nor what refs is a method of: it ends
    soon after they were dropped.

    Args:
        refs: returns what is leased at the moment.
    """

    def __init__(self, queue: LeasingQueue[R], refs: Callable[[], Iterable[R]]) -> None:
        self._queue = weakref.ref(queue)
        self._refs = weakref.WeakMethod(refs) if isinstance(refs, MethodType) else lambda: refs
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        queue = self._queue()
        if queue is None or queue.handle.presence.heartbeat_s is not None:
            return
        self._thread = threading.Thread(target=self._run, args=(_due(queue),), name="fsqueue-renew", daemon=True)
        self._thread.start()

    def _run(self, due: float | None) -> None:
        while due is not None and not self._stopped.wait(max(0.0, min(due - time.monotonic(), _LOOK_S))):
            due = self._renew_from(due)

    def _renew_from(self, due: float) -> float | None:
        """Renew where it is time; return when the next time is, None where nobody is left to renew for."""
        queue, refs = self._queue(), self._refs()
        if queue is None or refs is None:
            return None
        try:
            if _rereads(queue):
                due = min(due, _due(queue))
            if time.monotonic() >= due:
                due = _due(queue)
                queue.renew(refs())
        except QueueClosedError:
            return None
        except OSError:
            pass  # tried again at the next interval; the lease timeout allows for several
        return due

    def stop(self) -> None:
        """End the thread, so that what is settled from now on is not renewed at the same time.

        RACE: it may wait for a lock of this very thread, where a signal handler stops it on top of a call. A renewal
        that is still under way knows what a settlement says of the leases.
        """
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(_JOIN_S)


def _rereads(queue: LeasingQueue[Any]) -> bool:
    """Read the settings again; return whether they changed. A queue out of reach is reached anew by a renewal."""
    try:
        return queue.handle.layout.reread()
    except OSError:
        return False


def _due(queue: LeasingQueue[Any]) -> float:
    """Return when to renew next, by the timeout of now, which `configure` may change; monotonic."""
    timeout_s = queue.lease_timeout_s
    return time.monotonic() + (float("inf") if timeout_s is None else timeout_s / _RENEWALS_A_LEASE)
