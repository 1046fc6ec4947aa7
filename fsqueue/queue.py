"""Offer `FileSampleRefQueue`, the public face of a queue in a directory.

put:  encode all, write to tmp/, publish under the lock          (engine/put.py)
get:  reclaim what expired, take places, claim, read, decode     (engine/get.py, claim.py, expire.py)
ack, fail, release, renew: settle a lease by one rename          (engine/settle.py)
"""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, cast

from fsqueue.disk import fileops
from fsqueue.disk.counting import Counts
from fsqueue.disk.fileops import explained
from fsqueue.disk.mutex import Mutex
from fsqueue.disk.parallel import IoThreads
from fsqueue.disk.publish import absolute
from fsqueue.engine import arguments
from fsqueue.engine.attempts import MAX_DELIVERIES
from fsqueue.engine.configure import UNCHANGED, configure
from fsqueue.engine.engine import Engine, Options, reaching
from fsqueue.engine.handle import Handle
from fsqueue.engine.held import Claim
from fsqueue.engine.layout import LEDGER, STREAM, ensure_queue
from fsqueue.engine.picking import Partition
from fsqueue.engine.settings import LONGEST_DELAY_S, RETRY_BACKOFF, RETRY_JITTER, Retry, Settings, require_same
from fsqueue.engine.settle import Settler, Target
from fsqueue.engine.waiting import StopEvent
from fsqueue.errors import InvalidArgumentError, QueueClosedError, QueueConfigError
from fsqueue.format import names
from fsqueue.format.codec import tidy
from fsqueue.format.wire import RefCodec, codec_of
from fsqueue.records import Put, SampleRef, id_of_ref

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    from fsqueue.consume import OnError, WorkLoop
    from fsqueue.engine.live import Live
    from fsqueue.engine.packing.pack import Packed
    from fsqueue.engine.pausing import Paused
    from fsqueue.engine.states import RefState
    from fsqueue.stream.members import Role
    from fsqueue.stream.membership import Membership
    from fsqueue.stream.policy import StreamPolicy
    from fsqueue.stream.sigterm import OnSigterm
    from fsqueue.stream.stream import Stream
    from fsqueue.stream.watermark import Watermark

    R = TypeVar("R", default=SampleRef)
else:
    from typing import TypeVar

    R = TypeVar("R")


class _Opened:
    """Hold what one process has open of the queue; the stream and the watermark come with their first use."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.stream: Stream | None = None
        self.watermark: Watermark | None = None
        self.live: Live | None = None

    def close(self) -> None:
        self.engine.holding.stop()
        try:
            self.engine.handle.close()
        finally:
            if self.stream is not None:
                self.stream.close()

    def abandon_in_child(self) -> None:
        self.engine.handle.abandon_in_child()
        if self.stream is not None:
            self.stream.close()


class _Kept:
    """Hold what a queue object has open apart from the object, for when that is dropped without a close."""

    def __init__(self) -> None:
        self.opened: _Opened | None = None
        self.pid = os.getpid()

    def let_go(self) -> None:
        """Give back what is leased; a forked child's copy has no part in that.

        The collector calls this, so whatever is raised in here has nobody to go to.
        """
        opened, self.opened = self.opened, None
        if opened is not None and self.pid == os.getpid():
            from fsqueue.engine.dropped import let_go

            with suppress(BaseException):
                opened.engine.holding.stop()
                let_go(opened.engine.handle, opened.engine.limits)


class FileSampleRefQueue(Generic[R]):
    """Share a durable, exclusive queue of sample refs in a directory with other processes and nodes.

    Several threads may use one handle. After a fork, its first use in the child makes it a handle of the child, with
    an owner and descriptors of its own. One that is dropped without a close gives back what it leases.

    Args:
        path: the queue's directory; created where it is missing or empty.
        lease_timeout_s: seconds until an unrenewed lease expires; None takes the queue's stored value. In a new queue
            it stores "never": leases then end where their process is known to be gone, which on another node nobody
            knows, and by hand; `configure` changes it. Another value than the stored one is refused.
        ref_type: the dataclass that put takes and get returns.
        owner: the first part of this handle's owner name; the host's name unless given.
        durable: put, ack, fail and release fsync, so that they survive a power cut.
        keep_done: acked refs stay as files in done/.
        max_attempts: failures after which a ref goes to failed/; None: it never does.
        max_deliveries: leases that ended without a word, with their process or by time, after which it does; None: it
            never does. A ref that kills whoever takes it ends there, one whose consumers are preempted does not.
        heartbeat_s: seconds between the beats that prolong all leases of this handle while its process lives;
            None: leases last lease_timeout_s unless renewed.
        lock: "flock", "lease" (filelock's SoftFileLease) or "none"; stored in a new queue. In an existing one, a
            choice other than "flock", the default, must be the stored one.
        clock: replaces the filesystem's clock, for tests; returns seconds.
        poll_interval_s: the longest pause between two looks of a waiting get, seconds; one lasts no longer than a fifth
            of the time that was waited. None: 0.05 on a local disk, 3 on a shared mount, where a server answers them
            for all nodes, and 6 on one where a listing may be old (sshfs, 9p, virtiofs, unknown ones).
        run_id: stored in a new queue; a handle that passes another one is refused.
        io_threads: how many threads make file operations that do not depend on each other. "auto": several for
            slow operations on a shared mount, and for fsyncs on any.
        create: False: the queue must be there already, as on a node whose mount may not be ready.
        retry_delay_s: how long a ref that failed waits before it comes again, seconds; stored in a new queue.
        retry_backoff, retry_jitter: by how much longer after each further failure, and by which part, at most, longer
            by chance. A wait lasts for a day at most.
        read_only: nothing is written, no owner's record, no heartbeat, no lock: for onlookers, and mounts without write
            permission. The calls that count, look and tell work; those that write raise a ReadOnlyError. The queue
            must be there already.
        max_hold_s: for how long a handle may hold a ref, whatever beats or renews, before it goes back; stored in a new
            queue. `progress` begins that time anew. None: for as long as its lease lasts.
        codec: for refs of a class that JSON cannot carry: it turns each into a record that JSON can carry, and back,
            which put tries out. Takes the place of ref_type.

    Attributes:
        path, options, run_id: what the arguments and the queue say.
        ops: the file operations that this handle makes.

    Raises:
        InvalidArgumentError: an argument is of a kind that cannot be meant.
        QueueConfigError: the arguments are not valid, or differ from what the queue stores.
        NotAQueueError: the directory is not empty and holds no queue, or none is there and create is False.
        LockUnsupportedError: the mount has no flock.
        QueueIOError: the filesystem refused.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        lease_timeout_s: float | None = None,
        ref_type: type[R] = cast("type[Any]", SampleRef),  # noqa: B008  # a cast makes nothing
        owner: str | None = None,
        durable: bool = True,
        keep_done: bool = True,
        max_attempts: int | None = None,
        max_deliveries: int | None = MAX_DELIVERIES,
        heartbeat_s: float | None = None,
        lock: str = "flock",
        clock: Callable[[], float] | None = None,
        poll_interval_s: float | None = None,
        run_id: str | None = None,
        io_threads: IoThreads = "auto",
        create: bool = True,
        retry_delay_s: float | None = None,
        retry_backoff: float = RETRY_BACKOFF,
        retry_jitter: float = RETRY_JITTER,
        codec: RefCodec[R, Any] | None = None,
        read_only: bool = False,
        max_hold_s: float | None = None,
    ) -> None:
        self.path = absolute(path)
        self.ops = fileops.current()
        self.options = Options(
            ref_type,
            owner,
            durable,
            keep_done,
            max_attempts,
            max_deliveries,
            heartbeat_s,
            clock,
            poll_interval_s,
            io_threads,
            codec,
            read_only,
        )
        lease_timeout_s = arguments.stored_seconds("lease_timeout_s", lease_timeout_s)
        max_hold_s = arguments.stored_seconds("max_hold_s", max_hold_s)
        arguments.flag("create", create)
        if retry_delay_s is None and (retry_backoff, retry_jitter) != (RETRY_BACKOFF, RETRY_JITTER):
            raise QueueConfigError(
                self.path,
                "needs retry_delay_s beside retry_backoff or retry_jitter, which say how it grows: without one, refs "
                "that failed do not wait",
            )
        self.options.validate(self.path)
        self.options.validate_heartbeat(self.path, lease_timeout_s)
        self._codec = codec_of(ref_type, codec)
        self._opening = Mutex()
        self._kept = _Kept()
        self._closed = False
        self._closing: _Opened | None = None
        settings = ensure_queue(
            self.ops,
            self.path,
            lease_timeout_s=lease_timeout_s,
            lock=None if lock == "flock" else lock,
            run_id=run_id,
            now=clock or self.ops.time,
            create=create,
            read_only=read_only,
            retry=None if retry_delay_s is None else Retry(retry_delay_s, retry_backoff, retry_jitter),
            max_hold_s=max_hold_s,
        )
        self._settings = settings
        self.run_id = settings.run_id
        self.options.validate_heartbeat(self.path, settings.lease_timeout_s)
        self._opened = self._open()
        weakref.finalize(self, self._kept.let_go).atexit = False
        _live.add(self)

    @property
    def _opened(self) -> _Opened | None:
        return self._kept.opened

    @_opened.setter
    def _opened(self, opened: _Opened | None) -> None:
        self._kept.opened = opened

    def _open(self) -> _Opened:
        return _Opened(Engine(self.ops, self.path, self._codec, self.options, self._settings))

    def _here(self) -> _Opened:
        """Return what is open in this process."""
        opened = self._opened
        if opened is not None:
            return opened
        try:
            with self._opening:
                if self._closed:
                    raise QueueClosedError(self.path)
                if self._opened is None:
                    self._opened = self._open()
                return self._opened
        except BaseException:
            self._opening.drop_leftovers()
            raise

    def _reaching(self, what: str) -> explained:
        """Say of what a block does, and where, when it fails; open the queue anew where it is out of reach.

        Whatever ends the block, no lock stays held.
        """
        engine = self.engine
        return reaching(what, engine.handle.layout, engine.after_interruption)

    @property
    def engine(self) -> Engine:
        """Return this process's engine, for the modules of this package that work on a queue."""
        return self._here().engine

    def _to_write(self, call: str) -> Engine:
        """Return this process's engine for a call that writes.

        Raises:
            ReadOnlyError: the queue was opened to be looked at.
        """
        engine = (self._kept.opened or self._here()).engine
        engine.handle.require_writable(call)
        return engine

    @property
    def settings(self) -> Settings:
        """Return what the queue stores, as this handle knows it: a change by others shows within half a minute."""
        opened = self._opened
        if opened is not None:
            self._settings = opened.engine.handle.layout.settings
        return self._settings

    @property
    def lease_timeout_s(self) -> float | None:
        """Return the seconds until an unrenewed lease expires; None: it does not."""
        return self.settings.lease_timeout_s

    @property
    def handle(self) -> Handle:
        """Return this process's handle, for the same modules."""
        return self._here().engine.handle

    @property
    def owner(self) -> str:
        """Return this handle's owner name, as it appears in leased/ and owners/."""
        return self.handle.owner

    def put(self, refs: Iterable[R], *, partition_key: str | None = None) -> Put:
        """Add refs at the tail; an id that is pending or leased is skipped, one that was acked may come again.

        All refs are checked and encoded before anything is written. partition_key is accepted and ignored.

        Returns:
            How many were added, and how many skipped.

        Raises:
            InvalidRefError: a ref holds a tensor, an unusable id or a value that JSON would change; it says which.
            RefTypeError: the queue holds refs of a class that ref_type does not fit.
            MemberReplacedError: another process has taken the place of this handle's producer; nothing was put.
            QueueIOError: the filesystem refused; calling put again with the same refs completes it.
        """
        opened = self._kept.opened or self._here()
        engine = opened.engine
        engine.handle.require_writable("put")
        if opened.stream is not None:
            opened.stream.raise_if_replaced("producer")
        encoded = self._codec.encode_all(arguments.batch("put", refs), at_most=fileops.REF_LIMIT_BYTES)
        if not encoded:
            return Put(0, 0)
        try:
            if not engine.contents.fits_puts:
                engine.contents.agree_to_put()
            added = engine.putter.put(encoded)
            return Put(added, len(encoded) - added)
        except BaseException as error:
            engine.give_up("putting refs into", error)

    def put_when_below(
        self,
        refs: Iterable[R],
        *,
        high: int,
        low: int | None = None,
        high_bytes: int | None = None,
        timeout_s: float | None = None,
    ) -> Put:
        """Put refs; where pending refs have reached the high watermark, wait first until they are below the low one.

        Every producer sees the same directory, so the watermarks hold for all of them together, give or take what
        several put at the same moment. The next call notices a consumer that has failed, also below the watermark; one
        that was killed is noticed up to a heartbeat (5 s) after it counts as dead (30 s).

        Args:
            high: pending refs at which producers pause.
            low: pending refs below which they resume; half of high unless given.
            high_bytes: pause also while the features of the pending refs are larger, taken as the number pending
                times the mean estimated_bytes of the refs that this handle put; but never below the published
                quantum, without which the consumers could not go on.
            timeout_s: how long to wait at most; None: for as long as the consumers live.

        Raises:
            QueueConfigError: high is below the published quantum, or low is above high.
            MemberFailedError: a consumer failed or died; nothing was put.
            MemberReplacedError: another process has taken the place of this handle's producer, a heartbeat ago at
                most; nothing was put.
            StreamEndedError: all consumers have left, with the watermark reached; nothing was put.
            StreamStalledError: no room was made for timeout_s seconds; nothing was put.
        """
        self._to_write("put_when_below")
        for name, limit in (("high", high), ("low", low), ("high_bytes", high_bytes)):
            if limit is not None or name == "high":
                arguments.integer(f"put_when_below({name}=)", limit)
        arguments.patience("put_when_below(timeout_s=)", timeout_s)
        batch, opened, stream = list(arguments.batch("put_when_below", refs)), self._here(), self.stream()
        if opened.watermark is None:
            from fsqueue.stream.watermark import Watermark  # imported where needed, as below: few processes need all

            opened.watermark = Watermark(opened.engine.handle, self.path, stream, opened.engine.pending.count)
        with self._reaching("putting refs into"):
            opened.watermark.wait(batch, high, low, high_bytes, timeout_s)
        return self.put(batch)

    def get(
        self,
        max_refs: int,
        timeout_s: float | None = None,
        *,
        partition_key: str | None = None,
        partition: Partition | None = None,
        stop_event: StopEvent | None = None,
    ) -> list[R]:
        """Lease up to max_refs refs, the oldest first; it may be fewer, or none, as it is while the queue is paused.

        Args:
            timeout_s: how long to wait where nothing is pending; None and 0.0 do not wait.
            partition_key: accepted and ignored.
            partition: (index, count): lease only ids with ``dp_partition(id, count) == index``, and never wait
                while anything at all is pending.
            stop_event: once it is set, a `threading.Event` for instance, this returns [], within 0.1 s or so, and gives
                back what it has leased meanwhile. Set it where a get that runs in another thread is cancelled: nobody
                would have its refs.

        Raises:
            QueueClosedError: another thread closed this object; what was leased meanwhile is pending again.
            RefTypeError: the queue holds refs of a class that ref_type does not fit; they stay pending.
            QueueIOError: the filesystem refused; refs leased before that go back to pending with the next call.
        """
        if type(max_refs) is not int:
            max_refs = arguments.integer("get(max_refs)", max_refs)
        if timeout_s is not None:
            arguments.patience("get(timeout_s=)", timeout_s)
        if partition is not None:
            arguments.partition("get", partition)
        if stop_event is not None:
            arguments.with_call("get(stop_event=)", "an event with is_set()", stop_event, "is_set")
        engine = (self._kept.opened or self._here()).engine
        engine.handle.require_writable("get")
        if max_refs <= 0:
            return []
        leased: list[Claim] = []
        try:
            return engine.getter.get(max_refs, timeout_s, partition, stop_event, leased)
        except BaseException as error:
            engine.give_up("getting refs from", error, leased)

    def consume(
        self,
        batch: int = 1,
        *,
        stop_event: StopEvent | None = None,
        idle_s: float | None = None,
        retryable: bool = True,
        on_error: OnError = "fail",
    ) -> WorkLoop[R]:
        """Return a loop over leases, each of which is a context manager that settles its ref::

            for lease in queue.consume(batch=16):
                with lease as ref:
                    work(ref)

        A block that ends acknowledges its ref. One that raises fails it, with the traceback as the reason and a line in
        the log, and the loop goes on. While it runs, a thread renews what is leased, unless the handle keeps a
        heartbeat. The loop ends once the stream is drained, on the stop event, on SIGTERM (in the main thread) after
        the ref at hand, and by a break; what was not begun goes back without a counted attempt.

        Args:
            batch: how many refs to lease at a time.
            stop_event: an event with ``is_set()``, to end the loop from elsewhere.
            idle_s: end after so many seconds without a ref; 0.0: as soon as nothing is pending. None: go on. It does
                not run while the queue is paused.
            retryable: what raised is tried again, as `max_attempts` says; False: it goes to failed/ at once.
            on_error: "raise": an exception of the work ends the loop, after its ref was failed.
        """
        from fsqueue.consume import WorkLoop

        arguments.at_least("consume(batch)", batch, 1)
        arguments.patience("consume(idle_s=)", idle_s)
        if stop_event is not None:
            arguments.with_call("consume(stop_event=)", "an event with is_set()", stop_event, "is_set")
        arguments.flag("consume(retryable=)", retryable)
        return WorkLoop(self, batch, stop_event, idle_s, retryable, on_error)

    def leased(
        self,
        max_refs: int,
        timeout_s: float | None = None,
        *,
        partition: Partition | None = None,
        stop_event: StopEvent | None = None,
    ) -> AbstractContextManager[list[R]]:
        """Lease a batch for the length of a with block, as `get` does; it may be empty.

        A block that ends acknowledges what it has not settled itself. An exception fails it, with the traceback as the
        reason, and is raised; `KeyboardInterrupt`, `SystemExit` and the like give it back without a counted attempt.
        """
        from fsqueue.consume import leased

        return leased(self, partial(self.get, max_refs, timeout_s, partition=partition, stop_event=stop_event))

    def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]:
        """Move refs to done/; with step, the optimizer step becomes part of the file's name.

        Returns:
            The ids whose lease this handle had lost, normally none. What another owner holds stays untouched. A
            ref that is back in pending/ goes to done/ all the same where its history tells that its lease expired,
            failed, or was taken away with `fsqueue release`; one that was put again since is delivered again. Unknown
            ids are ignored.

        A ref that a get of this handle returned stands for the lease that it was returned with, and one that was
        built anew for the latest lease on its id; the same holds for fail, release, renew and hand_over.
        """
        if step is not None:
            step = self._step(step)
        return self._on_leases("acknowledging refs in", "ack", refs, Settler.ack, step)

    def _step(self, given: int) -> int:
        """Return an optimizer step as an int."""
        with suppress(TypeError):
            step = operator.index(given) + 0
            if step >= 0:
                return step
        raise QueueConfigError(self.path, f"needs as step an integer of 0 or more, or None, found {given!r}")

    def fail(self, refs: Iterable[R], reason: str, retryable: bool, *, delay_s: float | None = None) -> list[str]:
        """Count an attempt: retryable refs go to the tail of pending/, others to failed/ with the reason.

        Args:
            delay_s: for how long retryable refs wait before that, in leased/, where nobody holds them; None: as the
                queue's `retry_delay_s` and so on say. They come back once the time is up, also where this process has
                ended, as soon as any handle looks for refs.

        Returns:
            The ids whose lease this handle had lost, normally none; they are left as they are.
        """
        if isinstance(retryable, str):
            raise InvalidArgumentError("fail(refs, reason, retryable)", "True or False as retryable", retryable)
        if delay_s is not None:
            arguments.wait("fail(delay_s=)", delay_s, LONGEST_DELAY_S)
        said = tidy(reason)
        return self._on_leases("failing refs in", "fail", refs, Settler.fail, said, retryable, delay_s)

    def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back to the tail of pending/ without counting an attempt; return the ids lost, as ack does."""
        return self._on_leases("releasing refs in", "release", refs, Settler.release)

    def renew(self, refs: Iterable[R]) -> list[str]:
        """Start the lease timeout of refs anew; return the ids that this handle does not lease (any more)."""
        return self._on_leases("renewing leases in", "renew", refs, Settler.renew)

    def progress(self, refs: Iterable[R] | None = None) -> None:
        """Say that the work goes on: `max_hold_s` begins anew for these refs, or for all that this handle holds.

        Call it from the thread that works, where a ref may take longer than that. It makes no file operation; a lease
        is not renewed by it, and no renewal or heartbeat counts as progress, for they may come from another thread.
        """
        handle = self.handle
        now = handle.ops.monotonic()
        if refs is None:
            claims = [claim for claim in handle.held.all() if claim.taken_at is not None]
        else:
            claims = handle.held.claims_on([ref for ref, _ in arguments.with_ids("progress", refs)])
        for claim in claims:
            if claim.state == "held":
                claim.taken_at = now

    def hand_over(self, refs: Iterable[R], owner: str) -> list[str]:
        """Make leases another handle's, for it to `adopt`: a process that ends leaves its work to one that goes on.

        The lease timeout runs on; from now on the new owner's heartbeat and process count.

        Args:
            owner: the `owner` of a handle that has leased or announced itself; its process ends these leases.

        Returns:
            The ids whose lease this handle had lost.
        """
        return self._on_leases("handing leases over in", "hand_over", refs, Settler.hand_over, owner)

    def adopt(self, refs: Iterable[R]) -> list[str]:
        """Take up leases that were handed over to this handle, to settle and renew them; return the ids of others."""
        return self._on_leases("adopting leases in", "adopt", refs, Settler.adopt)

    def _on_leases(
        self, what: str, call: str, refs: Iterable[R], act: Callable[..., list[str]], *how: object
    ) -> list[str]:
        """Let the settler act on these refs' leases; return the ids of those that it returns by stem."""
        targets: list[Target] = [(names.stem_of(sample_id), ref) for ref, sample_id in arguments.with_ids(call, refs)]
        engine = (self._kept.opened or self._here()).engine
        engine.handle.require_writable(call)
        if not targets:
            return []
        try:
            lost = act(engine.settler, targets, *how)
        except BaseException as error:
            engine.give_up(what, error)
        if not lost:
            return lost
        ids = {stem: id_of_ref(ref) for stem, ref in targets}
        return [ids[stem] for stem in lost]

    def release_all(self) -> int:
        """Give back every ref leased in this handle's name, also those handed over to it; return how many."""
        engine = self._to_write("release_all")
        try:
            with self._reaching("releasing refs in"):
                count = engine.settler.release_all()
            return count
        except BaseException as error:
            engine.after_interruption(error)
            raise

    def _give_all_back(self) -> None:
        """Do as `release_all`; what an error leaves leased goes back with this handle's next call, or its close."""
        engine = self.engine
        try:
            self.release_all()
        except BaseException:
            engine.handle.strays.add(engine.handle.held.all())
            raise

    def reclaim(self) -> int:
        """Bring back all refs whose lease has expired; return how many.

        A process that has just begun to run, or was stopped, first waits for as long as living owners may need to show
        up: at most one and a half of their beats and half a second, or one second where they keep no heartbeat.
        """
        engine = self._to_write("reclaim")
        try:
            with self._reaching("reclaiming leases in"):
                count = engine.reclaimer.reclaim()
            return count
        except BaseException as error:
            engine.after_interruption(error)
            raise

    def depth(self) -> int:
        """Count the pending refs; lists them only where that may have changed in the last two seconds."""
        engine = self.engine
        with self._reaching("listing"):
            return engine.pending.count()

    def in_flight(self) -> int:
        """Count the leased refs."""
        engine = self.engine
        with self._reaching("listing"):
            return engine.leased.count()

    def unsettled(self, sample_ids: Iterable[str]) -> list[str]:
        """Return those of these ids that are pending or leased, in their order.

        So a producer counts what became of its own refs: it asks for what the last call returned, and for what it has
        put since. All that is missing in the answer is done, or a dead letter; `states` says which. A call costs a
        listing of pending/ and of leased/, a few where an id is missing, and none where nothing has changed for
        seconds; nothing that was settled before is looked at.
        """
        ids, opened = arguments.sample_ids("unsettled", sample_ids), self._here()
        if opened.live is None:
            from fsqueue.engine.live import Live

            opened.live = Live(opened.engine.handle.layout)
        stems = {sample_id: names.stem_of(sample_id) for sample_id in ids}
        with self._reaching("listing"):
            live = opened.live.among(stems.values())
        return [sample_id for sample_id, stem in stems.items() if stem in live]

    def counts(self) -> Counts:
        """Count the refs in each state, by one listing each."""
        from fsqueue.engine.packing.revision import look

        layout = self.handle.layout
        with self._reaching("listing"):
            done = look(layout).count
            failed = sum(1 for name in layout.failed.listing() if names.parse_ref(name))
        return Counts(self.depth(), self.in_flight(), done, failed)

    def states(self, ids: Iterable[str]) -> dict[str, RefState]:
        """Tell where refs are: "pending", "leased", "done" or "failed", by id; those that are nowhere are left out.

        So a producer that is started again learns which of its ids it has put. Done refs count as long as their files
        are kept (`keep_done`), also packed, and until they are purged. Costs one listing of each directory, however
        many ids there are: ask for all of them at once.
        """
        from fsqueue.engine.states import states_of

        with self._reaching("listing"):
            return states_of(self.handle.layout, arguments.sample_ids("states", ids))

    def stream(self) -> Stream:
        """Return the stream's members and its end, as this handle sees them."""
        opened = self._here()
        if opened.stream is None:
            from fsqueue.stream.stream import Stream

            with self._reaching("opening the stream of"):
                engine = opened.engine
                layout = engine.handle.layout
                if engine.handle.read_only and not layout.ops.exists(layout.root.fd, STREAM):
                    engine.handle.require_writable("stream, where no one has joined yet,")
                opened.stream = Stream(engine.handle, engine.opened_at, bring_back=engine.reclaimer.bring_back)
        return opened.stream

    def producer(
        self,
        name: str,
        *,
        expected: int = 0,
        required: bool = False,
        attempt: int | None = None,
        on_sigterm: OnSigterm = None,
    ) -> Membership:
        """Register a producer: a context manager that closes its end, or says how else the block was left.

        An exception of the work marks it failed, and the others stop. `SystemExit` and `KeyboardInterrupt` withdraw it:
        the others wait for a successor of its name.

        Args:
            name: a restarted producer takes the place of its namesake. Where nothing proves that the former process is
                gone, this waits until it has fallen silent.
            expected: how many producers the stream has in all; it does not end before that many have joined.
            required: the others stop where this one is missing, and do not wait for it.
            attempt: how often its launcher has started it again: a higher one takes the place at once, and what the
                former process leases comes back. None: as the environment of Slurm or torchrun says.
            on_sigterm: "withdraw": SIGTERM raises SystemExit in the block, or runs the handler that was there before,
                and the member withdraws in either case. While this waits to join, it ends that with SystemExit.

        Raises:
            QueueConfigError: a producer of this name is alive.
        """
        return self._join("producer", name, expected, required, attempt, on_sigterm)

    def consumer(
        self,
        name: str,
        *,
        expected: int = 0,
        required: bool = False,
        attempt: int | None = None,
        on_sigterm: OnSigterm = None,
    ) -> Membership:
        """Register a consumer, as `producer` does; when all have left, producers at a watermark stop.

        One that withdraws gives back all that this handle leases, without counting an attempt.
        """
        return self._join("consumer", name, expected, required, attempt, on_sigterm)

    def _join(
        self,
        role: Role,
        name: str,
        expected: int,
        required: bool,
        attempt: int | None,
        on_sigterm: OnSigterm,
    ) -> Membership:
        if not isinstance(name, str) or not name:
            raise InvalidArgumentError(f"{role}(name)", "a name, a string that is not empty", name)
        expected = arguments.count(f"{role}(expected=)", expected)
        attempt = arguments.attempt(role, attempt)
        required = arguments.flag(f"{role}(required=)", required)
        joined: list[Membership] = []
        try:
            with self._reaching(f"joining as {role}"):
                self.stream().join(
                    role,
                    name,
                    joined,
                    expected=expected,
                    required=required,
                    attempt=attempt,
                    release=self._give_all_back if role == "consumer" else lambda: None,
                    on_sigterm=on_sigterm,
                )
            return joined[0]
        except BaseException:
            for membership in joined:
                membership.vanish()
            raise

    def configure_stream(
        self,
        *,
        silence_s: float | None = None,
        await_s: float | None = None,
        restart_s: float | None = None,
        quorum: int | None = None,
    ) -> StreamPolicy:
        """Say who is missed in the stream and for how long; stored with the queue, so that all members agree.

        Args:
            silence_s: an open member without a heartbeat for so long has fallen silent; 30 s unless set.
            await_s: how long the others wait for one that withdrew or fell silent; 1,800 s unless set.
            restart_s: how long they wait for one whose work raised an exception; not at all unless set.
            quorum: so many producers that have closed end the stream, where no other is at work; 0: all have to.

        Returns:
            What holds from now on; what is None stays as it was.
        """
        given = {"silence_s": silence_s, "await_s": await_s, "restart_s": restart_s, "quorum": quorum}
        with self._reaching("configuring the stream of"):
            return self.stream().change_policy({name: value for name, value in given.items() if value is not None})

    def configure(
        self,
        *,
        lease_timeout_s: float | None = UNCHANGED,
        retry_delay_s: float = UNCHANGED,
        retry_backoff: float = UNCHANGED,
        retry_jitter: float = UNCHANGED,
        max_hold_s: float | None = UNCHANGED,
    ) -> Settings:
        """Change what the queue stores, also while others use it; what is not given stays as it is.

        Other handles take it up within half a minute, and always before they take a lease away for its time. What was
        leased under a longer timeout may rely on that for as long again.

        Args:
            lease_timeout_s: None: leases do not time out.
            retry_delay_s, retry_backoff, retry_jitter: as for a new queue.
            max_hold_s: None: there is no limit but the lease's.

        Returns:
            What the queue stores from now on.

        Raises:
            QueueConfigError: a value is not valid, or a handle that may live beats too seldom for the timeout.
        """
        if lease_timeout_s is not UNCHANGED:
            lease_timeout_s = arguments.stored_seconds("configure(lease_timeout_s=)", lease_timeout_s)
        if max_hold_s is not UNCHANGED:
            max_hold_s = arguments.stored_seconds("configure(max_hold_s=)", max_hold_s)
        given = {
            "lease_timeout_s": lease_timeout_s,
            "retry_delay_s": retry_delay_s,
            "retry_backoff": retry_backoff,
            "retry_jitter": retry_jitter,
            "max_hold_s": max_hold_s,
        }
        handle = self._to_write("configure").handle
        with self._reaching("configuring"):
            return configure(handle, given)

    def pause(self, reason: str | None = None) -> Paused:
        """Let nobody lease refs, until `resume`: within a second, every get returns none, or waits.

        Puts, settlements and renewals go on, and leases end by their time. Loops, views and whoever waits for a ref
        wait, and say so in the log; the queue is not drained meanwhile. A queue that is paused already gets the reason.

        Returns:
            Since when it is paused, by whom, and why.
        """
        from fsqueue.engine import pausing

        arguments.text_or_none("pause(reason=)", reason)
        handle = self._to_write("pause").handle
        with self._reaching("pausing"):
            stored = pausing.pause(handle.layout, handle.clock, reason)
            handle.pause.look_now()
        return stored

    def resume(self) -> Paused | None:
        """Let a paused queue go on; return what held it, None where it was not paused."""
        from fsqueue.engine import pausing

        handle = self._to_write("resume").handle
        with self._reaching("resuming"):
            stored = pausing.resume(handle.layout)
            handle.pause.look_now()
        return stored

    def paused(self) -> Paused | None:
        """Tell since when the queue is paused, by whom, and why; None: it is not."""
        with self._reaching("looking at"):
            return self.handle.pause.look_now()

    def drained(self) -> bool:
        """Tell whether every producer has closed, and nothing is pending, leased or held back by a pause."""
        opened = self._here()
        with self._reaching("looking at the stream of"):
            layout = opened.engine.handle.layout
            if opened.stream is None and not layout.ops.exists(layout.root.fd, STREAM):
                return False  # no producer has ever joined
            return self.stream().drained()

    def publish_quantum(self, *, dp_size: int, batch_size: int, accumulation_steps: int = 1) -> None:
        """Say how many refs the consumers take at a time; a high watermark below it is refused from then on."""
        from fsqueue.stream.stream import Quantum

        factors = {"dp_size": dp_size, "batch_size": batch_size, "accumulation_steps": accumulation_steps}
        for name, factor in factors.items():
            arguments.integer(f"publish_quantum({name}=)", factor)
        self._to_write("publish_quantum")
        with self._reaching("publishing the quantum of"):
            self.stream().publish_quantum(Quantum(dp_size, batch_size, accumulation_steps))

    def rewind(self, *, after_step: int, force: bool = False) -> list[str]:
        """Put back into pending/ every ref acked after an optimizer step, to resume from that step's checkpoint.

        Attempts are not counted. A second call changes nothing, or completes one that was killed half way. Refs that
        were acked without a step stay where they are.

        Returns:
            The ids put back, in the order of their steps; for one too long to be a file's name, its name's stem.

        Raises:
            LeasesHeldError: another owner holds leases and force is not set. Leases that have expired, or whose owners
            are proven to be dead, are reclaimed first, and stand in nobody's way.
            QueueConfigError: a controller has acknowledged refs through a ledger, which has to go back first.
        """
        handle = self._to_write("rewind").handle
        arguments.flag("rewind(force=)", force)
        if not isinstance(after_step, int) or after_step < 0:
            raise QueueConfigError(self.path, f"needs as after_step an integer of 0 or more, found {after_step!r}")
        with self._reaching("rewinding"):
            if handle.ops.exists(handle.layout.root.fd, LEDGER):
                raise QueueConfigError(
                    self.path,
                    "has a ledger, which would take this back: use the controller's rewind, or `fsqueue rewind`",
                )
            from fsqueue.engine.rewind import rewind

            return rewind(handle, self.engine.reclaimer, after_step, force)

    def pack(self, *, older_than_s: float) -> Packed:
        """Move done files whose last stamp is older into segments of up to 10,000 refs, which take one inode each.

        What is packed is still done: it counts, and rewinding brings it back. Nothing packs by itself.

        Raises:
            QueueIOError: the filesystem refused; all refs are still done, and packing again completes it.
        """
        arguments.age("pack(older_than_s=)", older_than_s)
        from fsqueue.engine.packing.pack import pack

        handle = self._to_write("pack").handle
        with self._reaching("packing"):
            return pack(handle, older_than_s)

    def close(self) -> None:
        """Stop the heartbeat and close the descriptors; leases stay, and expire unless they are settled.

        A get that waits in another thread ends with a QueueClosedError.
        """
        try:
            self._close()
        except BaseException as error:
            self._opening.drop_leftovers()
            if self._closing is not None:
                self._closing.engine.after_interruption(error)
            raise

    def _close(self) -> None:
        """Close what is open; who is interrupted in here completes it by closing again."""
        with self._opening:
            self._closed = True
            if self._opened is not None:
                self._closing = self._opened
                self._opened = None
        closing = self._closing
        if closing is not None:
            with explained("closing", self.path):
                try:
                    closing.close()
                except FileNotFoundError:
                    if os.path.lexists(self.path):
                        raise  # else the queue was removed, and there is nothing left to tidy up
            self._closing = None

    def __enter__(self) -> FileSampleRefQueue[R]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Make a copy, in whatever process, another handle of the same queue, with the same options.

        Raises, where the copy is made:
            NotAQueueError: there is no queue at its path; none is created.
            QueueReplacedError: there is another one.
        """
        return partial(FileSampleRefQueue, create=False, **vars(self.options)), (self.path,), self.settings

    def __setstate__(self, settings: Settings) -> None:
        try:
            require_same(self.path, settings, self.settings)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"FileSampleRefQueue({self.path!r})"

    def _after_fork_in_child(self) -> None:
        self._opening = Mutex()
        opened, self._opened, self._closing = self._opened or self._closing, None, None
        self._kept.pid = os.getpid()
        if opened is not None:
            opened.abandon_in_child()


_live: weakref.WeakSet[FileSampleRefQueue[Any]] = weakref.WeakSet()


def open_owners() -> set[str]:
    """Return the owners of all handles that are open in this process."""
    opened = (queue._opened for queue in list(_live))
    return {found.engine.handle.owner for found in opened if found is not None}


def _become_handles_of_the_child() -> None:
    for queue in list(_live):
        queue._after_fork_in_child()


os.register_at_fork(after_in_child=_become_handles_of_the_child)
