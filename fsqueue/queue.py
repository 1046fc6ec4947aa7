"""`FileSampleRefQueue`: the public face of a queue in a directory.

put:  encode all, write to tmp/, publish under the lock          (put.py)
get:  reclaim what expired, take places, claim, read, decode     (expire.py, claim.py)
ack, fail, release, renew: settle a lease by one rename          (leases.py, settle.py)
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar, cast, overload

from fsqueue.disk import fileops
from fsqueue.disk.counting import Counts
from fsqueue.disk.fileops import explained
from fsqueue.disk.parallel import IoThreads
from fsqueue.engine.claim import Partition
from fsqueue.engine.get import id_of_ref
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import ensure_queue
from fsqueue.engine.parts import Options, Parts, open_parts
from fsqueue.errors import InvalidRefError, QueueClosedError, QueueConfigError
from fsqueue.format import names
from fsqueue.format.codec import Codec
from fsqueue.leases import Leases
from fsqueue.records import SampleRef
from fsqueue.stream.streaming import Streaming

R = TypeVar("R")


class FileSampleRefQueue(Leases[R], Streaming[R]):
    """A durable, exclusive queue of sample refs in a directory, shared by processes and nodes.

    A handle may be used by several threads. After a fork, the child's use of it makes it a handle of the
    child, with an owner and descriptors of its own.

    Args:
        path: the queue's directory; created where it is missing or empty.
        lease_timeout_s: seconds until an unrenewed lease expires; None takes the queue's stored value, and
            stores "never" in a new queue. Belongs to the queue: another value than the stored one is refused.
        ref_type: the dataclass that put takes and get returns.
        owner: the first part of this handle's owner name; the host's name unless given.
        durable: whether put, ack, fail and release fsync, so that they survive a power cut.
        keep_done: whether acked refs stay as files in done/.
        max_attempts: failures and expired leases after which a ref goes to failed/; None: it never does.
        heartbeat_s: seconds between the beats that prolong all leases of this handle while its process lives;
            None: leases last lease_timeout_s unless renewed.
        lock: "flock", "lease" (filelock's SoftFileLease) or "none"; stored in a new queue, and compared with
            what is stored in an existing one where it is not "flock", the default.
        clock: replaces the filesystem's clock, for tests; returns seconds.
        poll_interval_s: the longest pause between two looks of a waiting get, seconds.
        run_id: stored in a new queue; a handle that passes another one is refused.
        io_threads: how many threads make file operations that do not depend on each other; "auto": as many as pay
            on a shared mount where they take long, on a local disk for fsyncs only.

    Attributes:
        path, options, lease_timeout_s, run_id: what the arguments and the queue say.
        ops: the file operations that this handle makes.

    Raises:
        QueueConfigError: the arguments are not valid, or differ from what the queue stores.
        NotAQueueError: the directory is not empty and holds no queue.
        LockUnsupportedError: the mount has no flock.
        QueueIOError: the filesystem refused.
    """

    @overload
    def __init__(
        self: FileSampleRefQueue[SampleRef],
        path: str | os.PathLike[str],
        *,
        lease_timeout_s: float | None = None,
        owner: str | None = None,
        durable: bool = True,
        keep_done: bool = True,
        max_attempts: int | None = None,
        heartbeat_s: float | None = None,
        lock: str = "flock",
        clock: Callable[[], float] | None = None,
        poll_interval_s: float = 0.05,
        run_id: str | None = None,
        io_threads: IoThreads = "auto",
    ) -> None: ...

    @overload
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        ref_type: type[R],
        lease_timeout_s: float | None = None,
        owner: str | None = None,
        durable: bool = True,
        keep_done: bool = True,
        max_attempts: int | None = None,
        heartbeat_s: float | None = None,
        lock: str = "flock",
        clock: Callable[[], float] | None = None,
        poll_interval_s: float = 0.05,
        run_id: str | None = None,
        io_threads: IoThreads = "auto",
    ) -> None: ...

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lease_timeout_s: float | None = None,
        ref_type: type[Any] = SampleRef,
        owner: str | None = None,
        durable: bool = True,
        keep_done: bool = True,
        max_attempts: int | None = None,
        heartbeat_s: float | None = None,
        lock: str = "flock",
        clock: Callable[[], float] | None = None,
        poll_interval_s: float = 0.05,
        run_id: str | None = None,
        io_threads: IoThreads = "auto",
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.ops = fileops.current()
        self.options = Options(
            ref_type, owner, durable, keep_done, max_attempts, heartbeat_s, clock, poll_interval_s, io_threads
        )
        self.options.validate(self.path)
        self.options.validate_heartbeat(self.path, lease_timeout_s)
        self._codec: Codec[R] = Codec(cast("type[R]", ref_type))
        self._opening = threading.Lock()
        self._closed = False
        settings = ensure_queue(
            self.ops,
            self.path,
            lease_timeout_s=lease_timeout_s,
            lock=None if lock == "flock" else lock,
            run_id=run_id,
            now=clock or self.ops.time,
        )
        self.lease_timeout_s = settings.lease_timeout_s
        self.run_id = settings.run_id
        self.options.validate_heartbeat(self.path, settings.lease_timeout_s)
        self._parts: Parts | None = open_parts(self.ops, self.path, self._codec, self.options)
        _live.add(self)

    def _here(self) -> Parts:
        """The parts that belong to this process."""
        parts = self._parts
        if parts is not None:
            return parts
        with self._opening:
            if self._closed:
                raise QueueClosedError(self.path)
            if self._parts is None:
                self._parts = open_parts(self.ops, self.path, self._codec, self.options)
            return self._parts

    def _current_handle(self) -> Handle:
        return self._here().handle

    @property
    def owner(self) -> str:
        """This handle's owner name, as it appears in leased/ and owners/."""
        return self._here().handle.owner

    def put(self, refs: Iterable[R], *, partition_key: str | None = None) -> None:
        """Add refs at the tail; an id that is pending or leased is skipped, one that was acked may come again.

        All refs are checked and encoded before anything is written. partition_key is accepted and ignored.

        Raises:
            InvalidRefError: a ref holds a tensor, an unusable id or a value that JSON would change.
            QueueIOError: the filesystem refused; calling put again with the same refs completes it.
        """
        parts = self._here()
        contents: dict[str, bytes] = {}
        for ref in refs:
            data = self._codec.encode(ref)
            if len(data) > fileops.FILE_LIMIT_BYTES:
                limit = fileops.FILE_LIMIT_BYTES
                raise InvalidRefError("<root>", f"{len(data)} bytes encoded, at most {limit}: keep data in the store")
            contents.setdefault(names.stem_of(id_of_ref(ref)), data)
        if contents:
            with explained("putting refs into", self.path):
                parts.intake.put(contents)

    def get(
        self,
        max_refs: int,
        timeout_s: float | None = None,
        *,
        partition_key: str | None = None,
        partition: Partition | None = None,
    ) -> list[R]:
        """Lease up to max_refs refs, the oldest first; perhaps fewer, perhaps none.

        Args:
            timeout_s: how long to wait where nothing is pending; None and 0.0 do not wait.
            partition_key: accepted and ignored.
            partition: (index, count): lease only ids with ``dp_partition(id, count) == index``, and never wait
                while anything at all is pending.

        Raises:
            QueueIOError: the filesystem refused; refs leased before that go back to pending with the next call.
        """
        if partition is not None and not 0 <= partition[0] < partition[1]:
            raise QueueConfigError(self.path, f"needs a partition (index, count) with index < count, found {partition}")
        parts = self._here()
        if max_refs <= 0:
            return []
        with explained("getting refs from", self.path):
            return parts.delivery.get(max_refs, timeout_s, partition, self.options.poll_interval_s)

    def reclaim(self) -> int:
        """Bring back all refs whose lease has expired, now; returns how many."""
        parts = self._here()
        with explained("reclaiming leases in", self.path):
            return parts.reclaimer.round()

    def depth(self) -> int:
        """How many refs are pending; lists them only where that may have changed in the last two seconds."""
        parts = self._here()
        with explained("listing", parts.handle.layout.pending.path):
            return parts.pending.count()

    def in_flight(self) -> int:
        """How many refs are leased."""
        parts = self._here()
        with explained("listing", parts.handle.layout.leased.path):
            return parts.leased.count()

    def counts(self) -> Counts:
        """How many refs are in each state, by one listing each."""
        from fsqueue.engine.packing.revision import look  # not needed to put and get

        layout = self._here().handle.layout
        with explained("listing", self.path):
            done = look(layout).count
            failed = sum(1 for name in layout.failed.listing() if names.parse_ref(name))
        return Counts(self.depth(), self.in_flight(), done, failed)

    def close(self) -> None:
        """Stop the heartbeat and close the descriptors; leases stay, and expire unless they are settled."""
        with self._opening:
            self._closed = True
            parts, self._parts = self._parts, None
        if parts is not None:
            with explained("closing", self.path):
                parts.handle.close()

    def __enter__(self) -> FileSampleRefQueue[R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, in whatever process, is another handle of the same queue, with the same options."""
        return partial(FileSampleRefQueue, **vars(self.options)), (self.path,)

    def __repr__(self) -> str:
        return f"FileSampleRefQueue({self.path!r})"

    def _after_fork_in_child(self) -> None:
        self._opening = threading.Lock()
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.handle.abandon_in_child()


_live: weakref.WeakSet[FileSampleRefQueue[Any]] = weakref.WeakSet()


def open_owners() -> set[str]:
    """The owners of all handles that are open in this process."""
    parts = (queue._parts for queue in list(_live))
    return {found.handle.owner for found in parts if found is not None}


def _become_handles_of_the_child() -> None:
    for queue in list(_live):
        queue._after_fork_in_child()


os.register_at_fork(after_in_child=_become_handles_of_the_child)
