"""Make a queue say again what the ledger says, when a controller was restarted.

    state of a sample                              after reconciling
    committed, and live nowhere                    pending: it was committed and not put, or its file is gone
    committed, acknowledged on the queue alone     pending: the ledger decides, and it knows nothing of it
    committed, pending or leased by a live owner   as it was
    committed, leased by a dead predecessor        pending, an attempt counted
    acknowledged in the ledger, pending or leased  done, under the step that the ledger knows
    a dead letter in failed/                       as it was: `fsqueue requeue` brings it back

A file queue is listed once and changed by name. Any other queue is asked through the contract alone.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any, NamedTuple, TypedDict

from fsqueue.control.errors import LiveNamesakeError
from fsqueue.control.ledger.file_store import FileMetadataStore
from fsqueue.control.ledger.metadata_store import MetadataStore
from fsqueue.control.sample_queue import SampleQueue
from fsqueue.disk import fileops
from fsqueue.disk.fileops import explained
from fsqueue.engine import rewind as rewinding
from fsqueue.engine.annotations import record
from fsqueue.engine.attempts import return_or_bury
from fsqueue.engine.handle import Handle
from fsqueue.engine.letters import letters_beside
from fsqueue.engine.listing import done_among
from fsqueue.engine.owners import Liveness, read_record
from fsqueue.engine.progress import Progress, unheard
from fsqueue.format import names
from fsqueue.operate import operator
from fsqueue.operate.requeue import requeue
from fsqueue.queue import FileSampleRefQueue, open_owners

_BATCH = 1024


class Report(TypedDict):
    """Say what reconciling found and did; ids are in commit order.

    Attributes:
        released: acknowledged in the ledger, and now live nowhere in the queue.
        requeued: every other committed sample that is pending now, or comes back when its lease ends.
        leased: those of requeued that a live owner leases.
        failed: dead letters, which stay where they are.
    """

    requeued: list[str]
    released: list[str]
    leased: list[str]
    failed: list[str]
    global_step: int | None
    optimizer_durable: bool


@contextmanager
def side_of(queue: SampleQueue[Any], store: MetadataStore[Any]) -> Iterator[ContractSide]:
    """Open a queue for reconciling."""
    if not isinstance(queue, FileSampleRefQueue):
        yield ContractSide(queue, store)
        return
    with fileops.using(queue.ops), operator.operator(queue.path, queue.settings) as handle:
        yield FileSide(queue, store, handle)


def reconcile(side: ContractSide, store: MetadataStore[Any]) -> Report:
    """Make the queue agree with the ledger.

    RACE: other controllers may go on meanwhile. Ids are read before the queue is listed and acknowledgements after
    it, so that a sample which they bring to its end in between is not taken for one that is missing. What is left,
    an acknowledgement between here and the put, is caught where refs are leased.
    """
    committed = store.all_committed_ids()
    side.look()
    marker = store.durable_marker()
    released = [sample_id for sample_id in committed if sample_id in marker["acked"]]
    steps = store.acked_steps(released)
    acked = {sample_id: steps.get(sample_id) for sample_id in released}
    rest = [sample_id for sample_id in committed if sample_id not in acked]
    failed, leased = side.agree(acked, rest)
    return Report(
        requeued=[i for i in rest if i not in failed],
        released=released,
        leased=[i for i in rest if i not in failed and names.stem_of(i) in leased] if leased else [],
        failed=[i for i in rest if i in failed],
        global_step=marker["global_step"],
        optimizer_durable=marker["optimizer_durable"],
    )


class Rewound(NamedTuple):
    """Say what a rewind brought back.

    Attributes:
        returned: ids put back into pending/, in the order of their steps.
        missing: ids whose acknowledgement the ledger has taken back and that are live nowhere in the queue, which
            keeps no file of them: `reconcile` puts them anew.
    """

    returned: list[str]
    missing: list[str]


def rewind(
    side: ContractSide,
    store: MetadataStore[Any],
    after_step: int,
    force: bool,
    progress: Progress = unheard,
    each: Callable[[str], None] | None = None,
) -> Rewound:
    """Take back every acknowledgement of a later step, first in the ledger, then in the queue.

    CRASH: doing it again completes it, as does `reconcile`.

    Raises:
        LeasesHeldError: another owner leases refs, and force is not set; nothing was changed.
    """
    side.end_dead_leases(predecessor_gone=False)
    if not force:
        side.refuse_while_leased()
    forgotten = store.forget_acks(after_step=after_step)
    returned = side.rewind(after_step, progress, each)
    side.look()
    return Rewound(returned, side.missing(forgotten))


class ContractSide:
    """Reconcile any queue through put and ack alone; both may be told what they know already."""

    def __init__(self, queue: SampleQueue[Any], store: MetadataStore[Any]) -> None:
        self._queue = queue
        self._store = store

    def end_dead_leases(self, predecessor_gone: bool) -> None:
        """Do nothing: the contract tells nothing about owners, and their leases expire."""

    def refuse_while_leased(self) -> None:
        """Refuse nothing: the contract tells nothing about owners."""

    def rewind(
        self, after_step: int, progress: Progress = unheard, each: Callable[[str], None] | None = None
    ) -> list[str]:
        """Return nothing: the contract knows no steps, and what the ledger forgot is put anew."""
        return []

    def look(self) -> None: ...

    def missing(self, sample_ids: Iterable[str]) -> list[str]:
        """Return all of them: the contract cannot be asked, so any may be missing."""
        return list(sample_ids)

    def agree(self, acked: dict[str, int | None], rest: list[str]) -> tuple[set[str], Collection[str]]:
        """Acknowledge some samples and put the others; returns the ids of dead letters, and the stems of leases."""
        for refs in self._refs(acked):
            self._queue.ack(refs)
        self._put(rest)
        return set(), ()

    def _put(self, sample_ids: Iterable[str]) -> None:
        for refs in self._refs(sample_ids):
            self._queue.put(refs)

    def _refs(self, sample_ids: Iterable[str]) -> Iterator[list[Any]]:
        """Read refs from the ledger, in batches."""
        for batch in _batches(sample_ids):
            refs = [ref for ref in map(self._store.get_committed, batch) if ref is not None]
            if refs:
                yield refs


def _batches(sample_ids: Iterable[str]) -> Iterator[list[str]]:
    ids = iter(sample_ids)
    while batch := list(islice(ids, _BATCH)):
        yield batch


class FileSide(ContractSide):
    """Reconcile a file queue, through a handle of its own, which has no leases to fence off."""

    def __init__(self, queue: FileSampleRefQueue[Any], store: MetadataStore[Any], handle: Handle) -> None:
        super().__init__(queue, store)
        self._files = queue
        self._handle = handle
        self._pending: set[str] = set()  # stems, and what other names there are
        self._holders: dict[str, list[names.Lease]] = {}

    def end_dead_leases(self, predecessor_gone: bool) -> None:
        """Bring back what expired owners lease, and what a dead predecessor of the same stable name does.

        Raises:
            LiveNamesakeError: an owner of that name is alive, or may be; nothing was taken from anybody.
        """
        self._files.reclaim()
        holders = self._handle.moves.holders()
        counts = Counter(
            lease.owner for leases in holders.values() for lease in leases if lease.owner != self._files.owner
        )
        dead = {owner for owner, count in counts.items() if self._is_gone(owner, count, predecessor_gone)}
        back: list[str] = []
        try:
            for lease in chain.from_iterable(holders.values()):
                if lease.owner in dead and lease.is_held:
                    self._take_back(lease, back)
        finally:
            self._handle.order.append_soon(back)

    def _is_gone(self, owner: str, count: int, predecessor_gone: bool) -> bool:
        liveness = self._liveness(owner)
        if liveness == "dead":
            return True
        if self._files.options.owner is None or _name_of(owner) != _name_of(self._files.owner):
            return False
        if liveness == "alive":
            raise LiveNamesakeError(owner, count, f"its process {names.pid_of(owner)} runs on this host")
        if not predecessor_gone:
            raise LiveNamesakeError(owner, count, "whether its process lives cannot be seen from this host")
        return True

    def _liveness(self, owner: str) -> Liveness:
        """Tell whether an owner lives; a handle of this process does while it is open."""
        found = read_record(self._handle.layout.owners, owner)
        if found is None:
            return "unknown"
        liveness = found.liveness()
        if liveness == "alive" and found.pid == os.getpid() and owner not in open_owners():
            return "dead"
        return liveness

    def _take_back(self, lease: names.Lease, back: list[str]) -> None:
        handle = self._handle
        claim = handle.moves.new_claim(lease.stem)
        if handle.moves.fetch(handle.layout.leased, lease.file, claim):
            reason = "the controller that leased it is gone"
            counted = record("expired", handle.clock.now(), lease.holder, reason)
            return_or_bury(handle, claim, counted, reason, self._files.options.limits, back)

    def refuse_while_leased(self) -> None:
        """Raise LeasesHeldError where another owner leases refs."""
        owners = self._handle.moves.owners_holding() - {self._files.owner, self._handle.owner}
        rewinding.refuse_while_held(self._handle.layout, owners)

    def rewind(
        self, after_step: int, progress: Progress = unheard, each: Callable[[str], None] | None = None
    ) -> list[str]:
        """Let the queue put back what it knows the step of, and note in each ref's history why."""
        with explained("rewinding", self._files.path):
            reclaimer = self._files.engine.reclaimer
            return rewinding.rewind(self._files.handle, reclaimer, after_step, True, progress, each)

    def look(self) -> None:
        """List what is live. What moves from one directory to the other meanwhile is seen in one of them."""
        moves, pending = self._handle.moves, self._handle.layout.pending
        with explained("listing", self._files.path):
            before = moves.holders()
            listed = pending.listing()
            self._holders = before | moves.holders()
            self._pending = {name.removesuffix(names.SUFFIX) for name in listed if name.endswith(names.SUFFIX)}
            self._pending.update(filter(None, (names.parse_pending(name) for name in listed if "@" in name)))

    def missing(self, sample_ids: Iterable[str]) -> list[str]:
        """Return those that are neither pending nor leased."""
        ids, live = list(sample_ids), self._pending | self._holders.keys()
        return [i for i, stem in zip(ids, names.stems_of(ids), strict=True) if stem not in live]

    def agree(self, acked: dict[str, int | None], rest: list[str]) -> tuple[set[str], Collection[str]]:
        self._mark_done(acked)
        failed = self._failed(rest)
        self._requeue([sample_id for sample_id in rest if sample_id not in failed])
        return failed, self._holders

    def _failed(self, sample_ids: Collection[str]) -> set[str]:
        """Return those that are dead letters and not live again."""
        listing = self._handle.layout.failed.listing()
        if not listing:
            return set()
        letters = {stem for name in listing if (stem := names.parse_ref(name))}
        letters |= letters_beside(self._handle.layout, {names.stem_of(i) for i in sample_ids} - letters).keys()
        letters -= self._pending
        letters -= self._holders.keys()
        return {sample_id for sample_id in sample_ids if names.stem_of(sample_id) in letters}

    def _mark_done(self, acked: dict[str, int | None]) -> None:
        """Move acknowledged samples to done/, whoever holds them."""
        handle, layout, keep = self._handle, self._handle.layout, self._files.options.keep_done
        with explained("acknowledging refs in", self._files.path):
            for sample_id, step in acked.items():
                stem = names.stem_of(sample_id)
                for lease in self._holders.pop(stem, ()):
                    handle.moves.finish(layout.leased, lease.file, stem, step, keep)
                if stem in self._pending:
                    handle.moves.finish(layout.pending, names.ref_file(stem), stem, step, keep)

    def _requeue(self, sample_ids: list[str]) -> None:
        """Put what is live nowhere; a file in done/ that the ledger does not know of is moved back."""
        missing = self.missing(sample_ids)
        if not missing:
            return
        stems = names.stems_of(missing)
        done = done_among(self._handle.layout, set(stems))
        if done:
            back = [sample_id for sample_id, stem in zip(missing, stems, strict=True) if stem in done]
            requeue(self._files.path, back, ledger_agrees=True)
        self._put(sample_id for sample_id, stem in zip(missing, stems, strict=True) if stem not in done)

    def _put(self, sample_ids: Iterable[str]) -> None:
        """Put refs as the ledger has them, where the queue's files hold them in the same way."""
        for batch in _batches(sample_ids):
            files = self._files_of(batch)
            if not files or max(map(len, files.values())) > fileops.REF_LIMIT_BYTES:
                super()._put(batch)
                continue
            self._files.put([])  # is refused what every put is refused
            engine = self._files.engine
            try:
                engine.contents.agree_to_put()
                engine.putter.put([(names.stem_of(sample_id), data) for sample_id, data in files.items()])
            except BaseException as error:
                engine.give_up("putting refs into", error)

    def _files_of(self, batch: list[str]) -> dict[str, bytes]:
        """Return the files of refs, by id; none where the ledger's and the queue's differ in class or codec."""
        store, queue = self._store, self._files
        if not isinstance(store, FileMetadataStore) or queue.options.codec is not None:
            return {}
        return store.files_of(batch) if store.ref_type is queue.engine.contents.ref_type else {}


def _name_of(owner: str) -> str:
    return owner.rsplit(".", 2)[0]
