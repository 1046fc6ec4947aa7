"""`DataFlowController`: commits samples, leases them to trainers, records what was trained. Metadata only.

Order of every change: the ledger first, durably, then the queue. So after a crash the queue may lag behind the
ledger and never the other way round, and `reconcile_on_restart` brings it up to date.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from fsqueue.control.backpressure import BackpressurePolicy, TakesCapacity
from fsqueue.control.errors import NoSampleQueueError
from fsqueue.control.ledger.metadata_store import CommonLedger, InMemoryMetadataStore, MetadataStore, as_store
from fsqueue.control.prompts import PromptPool
from fsqueue.control.reconcile import Report, reconcile, rewind, side_of
from fsqueue.control.sample_queue import SampleQueue, ack, give_back, refs_of
from fsqueue.control.train_lease import TrainLease
from fsqueue.engine import arguments
from fsqueue.engine.memory import MemorySampleRefQueue
from fsqueue.engine.picking import Partition
from fsqueue.engine.waiting import StopEvent
from fsqueue.errors import InvalidArgumentError
from fsqueue.records import PromptTask, assert_no_tensors, id_of_ref

R = TypeVar("R")


class Aborts(Protocol):
    """Abort features, as a feature store does when reconciling asks for it."""

    def abort(self, sample_id: str, *, reason: str) -> object: ...


@runtime_checkable
class Adopts(Protocol):
    """Learn of features that another process stored, before they can be aborted here."""

    def adopt(self, ref: Any) -> object: ...


class DataFlowController(Generic[R]):
    """Run the control plane of one run. Several may work over one queue and one ledger, in several processes.

    Prompts live in this object's memory; samples and acknowledgements live in the queue and the ledger. Thread-safe
    as far as those two are.

    Args:
        run_id: the run's name; it goes into prompts and `status`.
        sample_queue: anything with put, get, ack, fail, depth and in_flight; unless given, a `MemorySampleRefQueue`
            of the class of the first ref that is committed.
        metadata_store: the ledger; an `InMemoryMetadataStore` unless given.
        backpressure: when prompt leasing pauses, and the caps; never, and none, unless given.
        max_prompt_attempts: failures after which a prompt is failed for good; None: it never is.
        enable_sample_queue: False: samples are recorded and handed out by somebody else, and there is no queue.

    Attributes:
        sample_queue: may be replaced; None where there is none.
        store: the ledger.
    """

    def __init__(
        self,
        run_id: str,
        *,
        sample_queue: SampleQueue[R] | None = None,
        metadata_store: CommonLedger[R] | None = None,
        backpressure: BackpressurePolicy | None = None,
        max_prompt_attempts: int | None = None,
        enable_sample_queue: bool = True,
    ) -> None:
        for name, given, call in (
            ("sample_queue", sample_queue, "put"),
            ("metadata_store", metadata_store, "is_committed"),
            ("backpressure", backpressure, "should_pause_prompts"),
        ):
            if given is not None:
                arguments.with_call(f"DataFlowController({name}=)", f"an object with {call}()", given, call)
        arguments.text("DataFlowController(run_id)", run_id)
        arguments.flag("DataFlowController(enable_sample_queue=)", enable_sample_queue)
        if max_prompt_attempts is not None:
            arguments.at_least("DataFlowController(max_prompt_attempts=)", max_prompt_attempts, 1)
        if sample_queue is not None and not enable_sample_queue:
            raise InvalidArgumentError(
                "DataFlowController(sample_queue=)", "None, as enable_sample_queue is False", sample_queue
            )
        self.run_id = run_id
        self.sample_queue: SampleQueue[R] | None = sample_queue
        if sample_queue is None and enable_sample_queue:
            self.sample_queue = MemorySampleRefQueue(ref_type=None)
        self.store: MetadataStore[R] = InMemoryMetadataStore() if metadata_store is None else as_store(metadata_store)
        self.backpressure = backpressure
        self.max_prompt_attempts = max_prompt_attempts
        if isinstance(backpressure, TakesCapacity):
            backpressure.offer_capacity(self)
        self._prompts = PromptPool(run_id, max_prompt_attempts)
        self._mutex = threading.Lock()
        self._noted_in: object = None  # the queue that names the ledger
        self._owed: list[R] = []  # committed, and the put failed
        self._unsure: set[str] = set()  # perhaps committed: the ledger raised
        self._workers: dict[str, dict[str, Any]] = {}
        self._trainers: dict[str, dict[str, Any]] = {}

    # -- who takes part -----------------------------------------------------------------------------------------

    def register_rollout_worker(self, info: Mapping[str, Any]) -> str:
        """Note a rollout worker; returns its ``worker_id``, which is made up where info has none."""
        return self._register(self._workers, "worker_id", "rollout", info)

    def register_trainer(self, info: Mapping[str, Any]) -> str:
        """Note a trainer; returns its ``trainer_id``, which is made up where info has none."""
        return self._register(self._trainers, "trainer_id", "trainer", info)

    def _register(self, known: dict[str, dict[str, Any]], key: str, prefix: str, info: Mapping[str, Any]) -> str:
        assert_no_tensors(info)
        name = str(info.get(key) or f"{prefix}-{uuid.uuid4().hex[:8]}")
        with self._mutex:
            known[name] = dict(info)
        return name

    def train_lease(self, trainer_id: str | None = None) -> TrainLease[R]:
        """Return one trainer's client, with get, ack and fail."""
        return TrainLease(self, self.register_trainer({"role": "trainer"}) if trainer_id is None else trainer_id)

    # -- prompts ------------------------------------------------------------------------------------------------

    def ingest_prompts(self, prompts: Iterable[Mapping[str, Any]]) -> list[str]:
        """Add prompts to the tail; returns their task ids.

        Raises:
            TensorInRefError: there is a tensor in one; none was added.
        """
        return self._prompts.ingest(prompts)

    def lease_prompt_tasks(self, worker_id: str, max_tasks: int) -> list[PromptTask]:
        """Hand prompts to a worker; none while backpressure pauses the run."""
        policy = self.backpressure
        if policy is not None:
            if policy.should_pause_prompts():
                policy.note_rollout_starved()
                return []
            max_tasks = policy.cap_prompt_grant(self._prompts.held_by(worker_id), max_tasks)
        return self._prompts.lease(worker_id, max_tasks)

    def complete_prompt_tasks(self, worker_id: str, task_ids: Iterable[str]) -> None:
        """End leases of a worker on prompts whose samples are committed elsewhere, or nowhere."""
        self._prompts.complete(worker_id, arguments.sample_ids("complete_prompt_tasks", task_ids))

    def fail_prompt_tasks(self, worker_id: str, task_ids: Iterable[str], reason: str, retryable: bool) -> None:
        """End leases of a worker: back to the tail with one attempt more, or failed; see `PromptPool.fail`."""
        self._prompts.fail(worker_id, task_ids, reason, retryable)

    def failed_prompts(self) -> dict[str, str]:
        """Return task id to reason, of prompts that failed for good."""
        return self._prompts.failed()

    # -- samples ------------------------------------------------------------------------------------------------

    def commit_samples(self, worker_id: str, refs: Iterable[R]) -> list[R]:
        """Record samples in the ledger, in one transaction, and put those that are new into the queue.

        Their prompts are done with. Where the filesystem refuses the put, the next call makes up for it, as does
        reconciling after a crash. Where the ledger could not say whether it has them, they are put when they are
        committed again.

        Returns:
            Those that are new, in their order: of an id that is there twice, the first.

        Raises:
            TensorInRefError: there is a tensor in one; none was recorded.
        """
        refs = list(arguments.batch("commit_samples", refs))
        for ref in refs:
            assert_no_tensors(ref)
        fresh = self._record(refs)
        self._prompts.finish(getattr(ref, "source_task_id", None) for ref in refs)
        self._put(fresh)
        return fresh

    def _record(self, refs: list[R]) -> list[R]:
        """Record samples in the ledger; return those that are new.

        An error may come after the record was written, and on a filesystem that does not answer it stays there. So
        what was to be recorded then counts as new once more.
        """
        try:
            recorded = self.store.commit_samples(refs)
        except (TypeError, ValueError):  # refused, before anything was written
            raise
        except BaseException:
            with self._mutex:
                self._unsure.update(map(id_of_ref, refs))
            raise
        fresh: dict[str, R] = {}
        with self._mutex:
            for ref, is_new in zip(refs, recorded, strict=True):
                if is_new or id_of_ref(ref) in self._unsure:
                    fresh.setdefault(id_of_ref(ref), ref)
            self._unsure.difference_update(fresh)
        return list(fresh.values())

    def _put(self, fresh: list[R]) -> None:
        """Put what is new, and what an earlier call could not put."""
        queue = self.sample_queue
        if queue is None:
            return
        with self._mutex:
            owed, self._owed = self._owed, []
        if owed or fresh:
            try:
                queue.put(owed + fresh)
            except BaseException:
                with self._mutex:
                    self._owed += owed + fresh
                raise

    def enqueue_offline_refs(self, refs: Iterable[R]) -> list[R]:
        """Record and put samples that no worker of this run produced; see `commit_samples`."""
        return self.commit_samples("offline", refs)

    def require_queue(self, call: str) -> SampleQueue[R]:
        """Return the queue.

        Raises:
            NoSampleQueueError: there is none, and the call is one that needs it.
        """
        if self.sample_queue is None:
            raise NoSampleQueueError(self.run_id, call)
        return self.sample_queue

    def lease_train_refs(
        self,
        trainer_id: str,
        max_refs: int,
        timeout_s: float | None = None,
        *,
        partition: Partition | None = None,
        stop_event: StopEvent | None = None,
    ) -> list[R]:
        """Lease samples that are not acknowledged, the oldest first; perhaps fewer, perhaps none.

        A ref that the ledger knows as acknowledged is in the queue where its controller died between the two; it is
        settled here instead of being trained twice.

        Args:
            partition, stop_event: passed on to the queue where they are given; see `FileSampleRefQueue.get`.
        """
        queue = self.require_queue("lease_train_refs")
        policy = self.backpressure
        if policy is not None:
            max_refs = policy.cap_train_lease(max_refs)
        given = {"partition": partition, "stop_event": stop_event}
        refs = self._lease(
            queue, max_refs, timeout_s, {name: value for name, value in given.items() if value is not None}
        )
        if not refs and policy is not None:
            policy.note_trainer_starved()
        return refs

    def _lease(self, queue: SampleQueue[R], max_refs: int, timeout_s: float | None, options: dict[str, Any]) -> list[R]:
        deadline = time.monotonic() + (timeout_s or 0.0)
        while True:
            refs: list[R] = []
            try:
                refs += queue.get(max_refs, timeout_s=timeout_s, **options)
                stale = self.store.acked_steps([id_of_ref(ref) for ref in refs]) if refs else {}
                ack(queue, self.store, stale)
                fresh = [ref for ref in refs if id_of_ref(ref) not in stale]
            except BaseException:
                with suppress(Exception):  # the first error is the one to report
                    if refs:
                        give_back(queue, refs, "the ledger could not be asked")
                raise
            if fresh or not stale:
                return fresh
            timeout_s = max(0.0, deadline - time.monotonic()) if timeout_s else timeout_s

    def ack_train_refs(
        self,
        trainer_id: str,
        sample_ids: Iterable[str],
        *,
        global_step: int | None = None,
        optimizer_durable: bool = False,
    ) -> list[str]:
        """Record samples as trained, in the ledger and then in the queue.

        CRASH: between the two, the sample is acknowledged and still leased; whoever leases it next through a
        controller, or reconciles, settles it.

        Returns:
            The ids whose lease had been lost, where the queue tells.
        """
        ids, queue = arguments.sample_ids("ack_train_refs", sample_ids), self.sample_queue
        if queue is not None and self._noted_in is not queue:  # it names its ledger before the two can differ
            self.store.note_in(queue)
            self._noted_in = queue
        self.store.record_train_ack(ids, global_step=global_step, optimizer_durable=optimizer_durable)
        return [] if queue is None else ack(queue, self.store, dict.fromkeys(ids, global_step))

    def fail_refs(self, owner: str, sample_ids: Iterable[str], reason: str, retryable: bool) -> list[str]:
        """Give samples back to the queue, or take them out of it for good; returns the ids that were lost before."""
        queue = self.require_queue("fail_refs")
        refs = refs_of(queue, self.store, arguments.sample_ids("fail_refs", sample_ids))
        return list(queue.fail(refs, reason, retryable) or ())

    # -- restarts -----------------------------------------------------------------------------------------------

    def reconcile_on_restart(self, feature_store: Aborts | None = None, *, predecessor_gone: bool = False) -> Report:
        """Make the queue say what the ledger says; see `fsqueue.control.reconcile` for what becomes of each sample.

        To be called once, by a controller that has just been started. Idempotent.

        Args:
            feature_store: its ``abort(id, reason=...)`` is called for every released sample, after its ``adopt(ref)``
                where it has that. A rewind to an earlier
                step would need those features: rewind first, where acknowledgements ran ahead of the checkpoint.
            predecessor_gone: believe that an owner of this queue handle's name is dead where that cannot be seen,
                because it ran on another node.

        Raises:
            LiveNamesakeError: another owner of this name is alive, or may be; nothing was changed.
        """
        with side_of(self.require_queue("reconcile_on_restart"), self.store) as side:
            side.end_dead_leases(predecessor_gone)
            report = reconcile(side, self.store)
        self._owe_nothing()
        if feature_store is not None:
            for sample_id in report["released"]:
                self._abort(feature_store, sample_id)
        return report

    def _owe_nothing(self) -> None:
        """Forget what earlier calls could not put: the queue says what the ledger says by now."""
        with self._mutex:
            self._owed.clear()
            self._unsure.clear()

    def _abort(self, feature_store: Aborts, sample_id: str) -> None:
        if isinstance(feature_store, Adopts):
            ref = self.store.get_committed(sample_id)
            if ref is not None:
                feature_store.adopt(ref)
        feature_store.abort(sample_id, reason="reconciled-released")

    def rewind(self, *, after_step: int, force: bool = False) -> Report:
        """Go back to the checkpoint of a step: what was acknowledged after it is pending again, none of it twice.

        CRASH: the ledger forgets first; should this process die before the queue has followed, calling it again,
        or reconciling, brings the rest back. Idempotent.

        Args:
            force: even while others lease refs.

        Raises:
            LeasesHeldError: another owner leases refs; nothing was changed.
        """
        with side_of(self.require_queue("rewind"), self.store) as side:
            rewind(side, self.store, after_step, force)
            report = reconcile(side, self.store)
        self._owe_nothing()
        return report

    # -- looking ------------------------------------------------------------------------------------------------

    def health(self) -> dict[str, int]:
        """Say how much is pending or leased in the queue: refs, and bytes by their estimated_bytes.

        Bytes are those of the ledger's unacknowledged samples, less the share of samples that left the queue as
        dead letters. Without a queue, the ledger's are all that is known.
        """
        waiting, waiting_bytes = self.store.backlog()
        queue = self.sample_queue
        refs = waiting if queue is None else queue.depth() + queue.in_flight()
        share = waiting_bytes if refs >= waiting else waiting_bytes * refs // waiting
        return {"resident_refs": refs, "resident_bytes": share}

    def status(self) -> dict[str, Any]:
        """Count prompts, samples, leases and members, and name the last durable step."""
        acked, global_step = self.store.progress()
        committed = self.store.committed_count()
        queue = self.sample_queue
        with self._mutex:
            members = {"rollout_workers": len(self._workers), "trainers": len(self._trainers)}
        found: dict[str, Any] = {
            "run_id": self.run_id,
            **self._prompts.status(),
            "samples_committed": committed,
            "train_backlog": committed - acked,
            "queue_depth": 0 if queue is None else queue.depth(),
            "queue_in_flight": 0 if queue is None else queue.in_flight(),
            **members,
            "durable_global_step": global_step,
            "durable_acked": acked,
        }
        if self.backpressure is not None:
            found["backpressure"] = self.backpressure.snapshot()
        return found
