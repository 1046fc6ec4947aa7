"""Open a queue for one queue object in one process: its handle, and what puts, gets, settles and reclaims with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from fsqueue.disk.counting import NameCount
from fsqueue.disk.fileops import FileOps, explained, is_callers
from fsqueue.disk.parallel import IoThreads
from fsqueue.engine.arguments import call_or_none, flag, integer, seconds, text
from fsqueue.engine.attempts import Limits
from fsqueue.engine.contents import Contents
from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.get import Getter
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.holding import HoldLimit
from fsqueue.engine.layout import Layout, open_layout
from fsqueue.engine.owners import new_owner
from fsqueue.engine.put import Putter
from fsqueue.engine.settings import Settings
from fsqueue.engine.settle import Settler
from fsqueue.errors import FsQueueError, QueueConfigError
from fsqueue.format import names
from fsqueue.format.codec import Codec
from fsqueue.format.wire import RefCodec


class reaching(explained):
    """Do as `explained`, and open the queue anew where an error says that it cannot be reached any more."""

    __slots__ = ("_clean_up", "_layout")

    def __init__(self, what: str, layout: Layout, clean_up: Callable[[BaseException], None] | None = None) -> None:
        self._what, self._path, self._layout, self._clean_up = what, layout.path, layout, clean_up

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None and self._clean_up is not None:
            self._clean_up(error)
        if isinstance(error, OSError) and not is_callers(error):
            self._layout.recover(error)
            super().__exit__(kind, error, trace)


@dataclass(frozen=True)
class Options:
    """Hold the options of one queue object, as opposed to the queue's; `FileSampleRefQueue` says what each means."""

    ref_type: type[Any]
    owner: str | None
    durable: bool
    keep_done: bool
    max_attempts: int | None
    max_deliveries: int | None
    heartbeat_s: float | None
    clock: Callable[[], float] | None
    poll_interval_s: float | None
    io_threads: IoThreads
    codec: RefCodec[Any, Any] | None = None
    read_only: bool = False

    @property
    def limits(self) -> Limits:
        return Limits(self.max_attempts, self.max_deliveries)

    def validate(self, path: str) -> None:
        """Raise a QueueConfigError where an option can mean nothing."""
        for name, limit in (("max_attempts", self.max_attempts), ("max_deliveries", self.max_deliveries)):
            if limit is not None:
                integer(name, limit)
        flag("read_only", self.read_only)
        if self.read_only and self.heartbeat_s is not None:
            raise QueueConfigError(path, "takes no heartbeat_s with read_only=True: an onlooker leases nothing")
        if self.owner is not None:
            text("owner", self.owner)
        flag("durable", self.durable)
        flag("keep_done", self.keep_done)
        call_or_none("clock", self.clock)
        seconds("heartbeat_s", self.heartbeat_s)
        seconds("poll_interval_s", self.poll_interval_s)
        for name, limit in (("max_attempts", self.max_attempts), ("max_deliveries", self.max_deliveries)):
            if limit is not None and limit < 1:
                raise QueueConfigError(path, f"needs {name} of at least 1 or None, found {limit}")
        if self.poll_interval_s is not None and not self.poll_interval_s > 0:
            raise QueueConfigError(path, f"needs a positive poll_interval_s, found {self.poll_interval_s}")
        if self.heartbeat_s is not None and not 0 < self.heartbeat_s < float("inf"):
            raise QueueConfigError(path, f"needs a positive heartbeat_s or None, found {self.heartbeat_s}")
        if isinstance(self.io_threads, bool) or not (
            self.io_threads == "auto" or (isinstance(self.io_threads, int) and self.io_threads > 0)
        ):
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


class Engine:
    """Act on a queue's directory for one queue object in one process, under an owner name of its own.

    Attributes:
        opened_at: when this was opened, monotonic.
    """

    def __init__(
        self, ops: FileOps, path: str, codec: Codec[Any], options: Options, same_as: Settings | None = None
    ) -> None:
        """Open the queue, which must be the one with these settings; it costs no listing."""
        layout = open_layout(ops, path, make_missing=not options.read_only, same_as=same_as)
        self.handle = handle = Handle(
            layout,
            owner=new_owner(options.owner, path),
            durable=options.durable,
            heartbeat_s=options.heartbeat_s,
            clock=options.clock,
            io_threads=options.io_threads,
            read_only=options.read_only,
            poll_interval_s=options.poll_interval_s,
        )
        try:
            if not options.read_only:
                with explained("locking", path):
                    handle.order_file.probe()
        except BaseException:
            with suppress(OSError):  # the first error is the one to report
                layout.close()
            raise
        self.limits = options.limits
        self.settler = Settler(handle, keep_done=options.keep_done, limits=options.limits)
        self.reclaimer = Reclaimer(handle, options.limits)
        self.holding = HoldLimit(handle, self.reclaimer)
        self.putter = Putter(handle)
        self.contents = Contents(layout, codec.ref_type)
        self.getter: Getter[Any] = Getter(
            handle,
            codec,
            self.putter,
            self.settler,
            self.reclaimer,
            self.contents,
            self.holding,
            options.max_attempts,
        )
        moving = layout.filesystem.directory_times
        self.pending = NameCount(layout.pending, names.parse_pending, moving)
        self.leased = NameCount(layout.leased, names.parse_leased, moving)
        self.opened_at = ops.monotonic()

    def give_up(self, what: str, error: BaseException, leased: Iterable[Claim] = ()) -> NoReturn:
        """Raise the error that has ended a call, told as by `reaching`, after what `after_interruption` does."""
        try:
            with reaching(what, self.handle.layout):
                raise error
        except BaseException as told:
            self.after_interruption(told, leased)
            raise

    def after_interruption(self, error: BaseException, leased: Iterable[Claim] = ()) -> None:
        """Clean up after a call of this thread that an exception ended, wherever it came: no lock stays held.

        Args:
            leased: what the call has leased and not handed out.
        """
        handle = self.handle
        handle.drop_leftovers()
        handle.strays.add(leased)
        if isinstance(error, OSError) or not isinstance(error, FsQueueError):
            handle.order.incomplete = True  # what has come into pending/ may not be named yet
