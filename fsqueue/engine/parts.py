"""What a queue object is made of in one process: the options it was given, and the parts that act on the directory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from fsqueue.disk.counting import Tally
from fsqueue.disk.fileops import FileOps, explained
from fsqueue.disk.parallel import IoThreads
from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.get import Delivery
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import open_layout
from fsqueue.engine.owners import new_owner
from fsqueue.engine.put import Intake
from fsqueue.engine.settle import Settler
from fsqueue.errors import QueueConfigError
from fsqueue.format import names
from fsqueue.format.codec import Codec


@dataclass(frozen=True)
class Options:
    """What belongs to one queue object, and not to the queue; `FileSampleRefQueue` says what each means."""

    ref_type: type[Any]
    owner: str | None
    durable: bool
    keep_done: bool
    max_attempts: int | None
    heartbeat_s: float | None
    clock: Callable[[], float] | None
    poll_interval_s: float
    io_threads: IoThreads

    def validate(self, path: str) -> None:
        """Raise a QueueConfigError where an option can mean nothing."""
        if self.max_attempts is not None and self.max_attempts < 1:
            raise QueueConfigError(path, f"needs max_attempts of at least 1 or None, found {self.max_attempts}")
        if not self.poll_interval_s > 0:
            raise QueueConfigError(path, f"needs a positive poll_interval_s, found {self.poll_interval_s}")
        if self.heartbeat_s is not None and not self.heartbeat_s > 0:
            raise QueueConfigError(path, f"needs a positive heartbeat_s or None, found {self.heartbeat_s}")
        if self.io_threads != "auto" and not (isinstance(self.io_threads, int) and self.io_threads > 0):
            raise QueueConfigError(path, f"needs io_threads of at least 1 or 'auto', found {self.io_threads!r}")
        new_owner(self.owner, path)

    def validate_heartbeat(self, path: str, lease_timeout_s: float | None) -> None:
        """Raise a QueueConfigError where leases would expire between two beats."""
        if self.heartbeat_s is not None and lease_timeout_s is not None and self.heartbeat_s > lease_timeout_s / 2:
            raise QueueConfigError(
                path,
                f"has lease_timeout_s={lease_timeout_s}: heartbeat_s={self.heartbeat_s} would let leases "
                "expire between beats; use at most half of the timeout",
            )


class Parts(NamedTuple):
    """The parts of a queue object; after a fork, the child needs its own."""

    handle: Handle
    intake: Intake
    delivery: Delivery[Any]
    settler: Settler
    reclaimer: Reclaimer
    pending: Tally
    leased: Tally


def open_parts(ops: FileOps, path: str, codec: Codec[Any], options: Options) -> Parts:
    """Open a queue for this process, under an owner name of its own; it costs no listing."""
    owner = new_owner(options.owner, path)
    layout = open_layout(ops, path, make_missing=True)
    handle = Handle(
        layout,
        owner=owner,
        durable=options.durable,
        heartbeat_s=options.heartbeat_s,
        clock=options.clock,
        io_threads=options.io_threads,
    )
    try:
        with explained("locking", path):
            handle.order_file.probe()
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            layout.close()
        raise
    settler = Settler(handle, keep_done=options.keep_done, max_attempts=options.max_attempts)
    reclaimer = Reclaimer(handle, options.max_attempts)
    intake = Intake(handle)
    delivery = Delivery(handle, codec, intake, settler, reclaimer)
    pending, leased = Tally(layout.pending, names.parse_pending), Tally(layout.leased, names.parse_leased)
    return Parts(handle, intake, delivery, settler, reclaimer, pending, leased)
