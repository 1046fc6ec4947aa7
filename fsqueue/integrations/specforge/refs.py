"""Publish refs of any number of SpecForge producers into one queue, each of which counts what became of its own."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

from specforge.runtime.contracts import SampleRef

from fsqueue.control import DataFlowController, FileMetadataStore
from fsqueue.disk.publish import absolute
from fsqueue.errors import InvalidArgumentError, MemberFailedError
from fsqueue.queue import FileSampleRefQueue
from fsqueue.stream.membership import Membership
from fsqueue.stream.policy import POLICY
from fsqueue.stream.sigterm import OnSigterm

_LEASE_S = 60.0
_BEAT_S = 5.0
_RESTART_S = 1800.0
_LOOK_S = 0.5


class Publication:
    """Hold one batch that is being published; SpecForge's producer asks it what it may abort when that fails."""

    def __init__(self, refs: Iterable[Any], publish: Callable[[Sequence[Any], list[Any]], None]) -> None:
        self.refs = tuple(refs)
        self._publish = publish
        self._published: list[Any] = []

    @property
    def published_refs(self) -> tuple[Any, ...]:
        return tuple(self._published)

    @property
    def unpublished_refs(self) -> tuple[Any, ...]:
        """Return those that nobody else can have seen, or ever will."""
        published = {ref.sample_id for ref in self._published}
        return tuple(ref for ref in self.refs if ref.sample_id not in published)

    def commit(self) -> None:
        """Publish what is left; on an error, what came into the ledger is published all the same."""
        self._publish(self.unpublished_refs, self._published)


class RefChannel:
    """Publish refs as one producer of a run, and watch its consumers. Thread-safe.

    A ref is published once it is in the ledger: from there it comes into the queue, whatever dies in between. One
    that the ledger has already is left out, so a producer that is started again doubles nothing.

    Attributes:
        path: the run's directory.
        queue, ledger, controller: what lies in it, and a controller over both.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        producer: str | None,
        expected: int,
        restart_s: float | None,
        on_sigterm: OnSigterm,
        options: dict[str, Any],
    ) -> None:
        self.path = absolute(path)
        os.makedirs(self.path, exist_ok=True)
        self._mutex = threading.RLock()
        self._unsettled: list[str] = []
        self._published = 0
        self._stopped: tuple[float, bool] = (-1e9, False)
        self._member: Membership | None = None
        with ExitStack() as undoing:
            self.queue: FileSampleRefQueue[Any] = FileSampleRefQueue(
                os.path.join(self.path, "queue"), ref_type=SampleRef, **options
            )
            undoing.callback(self.queue.close)
            self.ledger: FileMetadataStore[Any] = FileMetadataStore(
                os.path.join(self.path, "ledger"), ref_type=SampleRef, durable=bool(options.get("durable", True))
            )
            undoing.callback(self.ledger.close)
            self.controller: DataFlowController[Any] = DataFlowController(
                os.path.basename(self.path), sample_queue=self.queue, metadata_store=self.ledger
            )
            self._agree_to_wait(restart_s)
            if producer is not None:
                if self.ledger.committed_count():
                    self.controller.reconcile_on_restart()  # a former one may have died between ledger and queue
                self._member = self.queue.producer(producer, expected=expected, on_sigterm=on_sigterm).__enter__()
            undoing.pop_all()

    def _agree_to_wait(self, restart_s: float | None) -> None:
        """Store for how long members wait for one that failed; where nobody says, what is stored already holds."""
        stream = self.queue.stream()
        if restart_s is None and not self.queue.ops.exists(stream.directory.fd, POLICY):
            restart_s = _RESTART_S
        if restart_s is not None and stream.policy().restart_s != restart_s:
            self.queue.configure_stream(restart_s=restart_s)

    # -- publishing -----------------------------------------------------------------------------------------------

    def begin_publish(self, refs: Iterable[Any]) -> Publication:
        """Return a publication that nothing has been written of yet."""
        if self._member is None:
            raise InvalidArgumentError("channel(producer=)", "a name, to publish refs under", None)
        return Publication(refs, self._publish)

    def publish(self, ref: Any) -> None:
        self.publish_many([ref])

    def publish_many(self, refs: Iterable[Any]) -> None:
        """Publish refs in one transaction of the ledger, and put them into the queue."""
        self.begin_publish(refs).commit()

    publish_batch = publish_many

    def _publish(self, refs: Sequence[Any], published: list[Any]) -> None:
        if not refs or self._member is None:
            return
        with self._mutex:
            try:
                self.controller.commit_samples(self._member.name, refs)
                taken = refs
            except BaseException:
                taken = self._taken(refs)
                raise
            finally:
                published += taken
                self._published += len(taken)
                # Only now: before the put they would count as settled.
                self._unsettled += [ref.sample_id for ref in taken]

    def _taken(self, refs: Sequence[Any]) -> list[Any]:
        """Return those that the ledger has; all of them where it cannot be asked, for others may have seen them."""
        try:
            return [ref for ref in refs if self.ledger.is_committed(ref.sample_id)]
        except OSError:
            return list(refs)

    @property
    def published(self) -> int:
        """Return how many refs this object has published."""
        return self._published

    def consumed_remote(self) -> int:
        """Return how many of these are settled, done or failed for good; what a rewind brings back stays counted."""
        with self._mutex:
            self._unsettled = self.queue.unsettled(self._unsettled) if self._unsettled else []
            return self._published - len(self._unsettled)

    def in_flight_remote(self) -> int:
        """Return how many of these are pending or leased.

        Raises:
            MemberFailedError: a consumer failed, or died, and was not started again in time.
        """
        self.queue.stream().watch("consumer")
        with self._mutex:
            return self._published - self.consumed_remote()

    def close(self) -> None:
        """End this producer's part, having published all there is. The queue stays open, to watch the consumers."""
        if self._member is not None:
            self._member.__exit__(None, None, None)

    def fail(self, reason: str) -> None:
        """End it before that. A producer that is being told to stop, or that the consumers have failed, withdraws."""
        if self._member is None:
            return
        error = sys.exc_info()[1]
        if error is not None:
            self._member.__exit__(type(error), error, error.__traceback__)
        else:
            self._member.fail(reason, "".join(traceback.format_stack()))

    # -- the consumers ----------------------------------------------------------------------------------------------

    def consumer_quantum(self) -> int | None:
        """Return how many refs the consumers take in one optimizer step; None until they have said so."""
        quantum = self.queue.stream().quantum()
        return quantum.refs if quantum else None

    def consumer_failure(self) -> str | None:
        """Return why the consumers failed, once nobody waits any more for them to be started again."""
        try:
            self.queue.stream().watch("consumer")
        except MemberFailedError as error:
            return str(error)
        return None

    def consumer_stopped(self) -> bool:
        """Tell whether all ranks have ended their training. Ranks that failed, died or were preempted have not."""
        looked_at, stopped = self._stopped
        now = time.monotonic()
        if now - looked_at >= _LOOK_S:
            stopped = self.queue.stream().all_closed("consumer")
            self._stopped = now, stopped
        return stopped


def channel(
    path: str | os.PathLike[str],
    *,
    producer: str | None = None,
    expected: int = 0,
    restart_s: float | None = None,
    lease_timeout_s: float = _LEASE_S,
    heartbeat_s: float | None = _BEAT_S,
    on_sigterm: OnSigterm = None,
    **options: Any,
) -> RefChannel:
    """Open a run's directory, in the place of a `StreamingRefChannel`: as one of its producers, or for a trainer.

    Args:
        path: the run's directory, which all its processes share: made where it is missing.
        producer: the name under which this process publishes. One that is started again takes its namesake's place.
            None: it only consumes.
        expected: how many producers the run has in all.
        restart_s: for how long producers and trainers wait for one whose work raised to be started again; stored with
            the queue, the latest word counts. None: as it is stored; 1,800 s in a new run.
        lease_timeout_s: after that a rank that died on another node loses what it had leased; stored in a new queue.
        heartbeat_s: how often a living one shows that it lives; at most half of that.
        on_sigterm: as for `FileSampleRefQueue.producer`.
        options: further ones of `FileSampleRefQueue`, such as durable.

    Raises:
        QueueConfigError: a producer of this name is alive, or the queue stores another lease_timeout_s.
    """
    given = {"lease_timeout_s": lease_timeout_s, "heartbeat_s": heartbeat_s} | options
    return RefChannel(path, producer, expected, restart_s, on_sigterm, given)
