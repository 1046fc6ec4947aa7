"""Say what a controller asks of a ledger; a ledger in memory, and a coat for those of other packages."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypedDict, TypeVar, cast, runtime_checkable

from fsqueue.records import id_of_ref

R = TypeVar("R")


class Marker(TypedDict):
    """Say what the trainer has durably done.

    Attributes:
        acked: ids of the samples that are in the optimizer state.
        global_step: the last optimizer step that an acknowledgement named; None where none did.
        optimizer_durable: whether the last acknowledgement said that the optimizer state is on disk.
    """

    acked: set[str]
    global_step: int | None
    optimizer_durable: bool


class CommonLedger(Protocol[R]):
    """Do what every ledger does, also those of other packages; `as_store` makes a `MetadataStore` of one."""

    @abstractmethod
    def commit_sample(self, ref: R) -> bool:
        """Record one sample durably; False where its id was committed before."""

    @abstractmethod
    def is_committed(self, sample_id: str) -> bool: ...
    @abstractmethod
    def get_committed(self, sample_id: str) -> R | None: ...
    @abstractmethod
    def committed_count(self) -> int: ...

    @abstractmethod
    def all_committed_ids(self) -> list[str]:
        """Return every committed id, in commit order."""

    @abstractmethod
    def record_train_ack(self, sample_ids: list[str], *, global_step: int | None, optimizer_durable: bool) -> None:
        """Record ids, step and marker as one durable fact: all of it is there after a crash, or nothing."""

    @abstractmethod
    def durable_marker(self) -> Marker: ...


@runtime_checkable
class MetadataStore(CommonLedger[R], Protocol[R]):
    """Remember which samples were committed, and which of them are acknowledged as trained.

    The methods after `forget_acks` have defaults, some of which copy all acknowledged ids.
    """

    @abstractmethod
    def commit_samples(self, refs: Iterable[R]) -> list[bool]:
        """Record samples in one durable transaction; False for those whose id was committed before."""

    @abstractmethod
    def forget_acks(self, *, after_step: int) -> list[str]:
        """Take back every acknowledgement of a step after this one, durably; returns their ids, in commit order."""

    def commit_sample(self, ref: R) -> bool:
        return self.commit_samples([ref])[0]

    def acked_steps(self, sample_ids: Sequence[str]) -> dict[str, int | None]:
        """Return those of the ids that are acknowledged, each with the step that was named first, or None."""
        acked = self.durable_marker()["acked"]
        return {sample_id: None for sample_id in sample_ids if sample_id in acked}

    def progress(self) -> tuple[int, int | None]:
        """Return how many ids are acknowledged, and the last step that an acknowledgement named."""
        marker = self.durable_marker()
        return len(marker["acked"]), marker["global_step"]

    def backlog(self) -> tuple[int, int]:
        """Return how many committed samples are not acknowledged, and the sum of their estimated_bytes."""
        acked = self.durable_marker()["acked"]
        waiting = [sample_id for sample_id in self.all_committed_ids() if sample_id not in acked]
        return len(waiting), sum(weight_of(self.get_committed(sample_id)) for sample_id in waiting)

    def note_in(self, queue: object) -> None:
        """Let a queue name this ledger, where both of them are on files."""
        return None

    def close(self) -> None:
        """Let go of files; what was recorded stays."""
        return None


class InMemoryMetadataStore(MetadataStore[R]):
    """Keep a ledger within one process, for tests and runs that need not survive."""

    def __init__(self) -> None:
        self._mutex = threading.RLock()
        self._refs: dict[str, R] = {}
        self._steps: dict[str, int | None] = {}
        self._global_step: int | None = None
        self._optimizer_durable = False

    def commit_samples(self, refs: Iterable[R]) -> list[bool]:
        with self._mutex:
            return [self._commit_locked(id_of_ref(ref), ref) for ref in refs]

    def _commit_locked(self, sample_id: str, ref: R) -> bool:
        fresh = sample_id not in self._refs
        self._refs.setdefault(sample_id, ref)
        return fresh

    def is_committed(self, sample_id: str) -> bool:
        return sample_id in self._refs

    def get_committed(self, sample_id: str) -> R | None:
        return self._refs.get(sample_id)

    def committed_count(self) -> int:
        return len(self._refs)

    def all_committed_ids(self) -> list[str]:
        with self._mutex:
            return list(self._refs)

    def record_train_ack(self, sample_ids: Iterable[str], *, global_step: int | None, optimizer_durable: bool) -> None:
        with self._mutex:
            for sample_id in sample_ids:
                self._steps.setdefault(sample_id, global_step)
            if global_step is not None:
                self._global_step = global_step
            self._optimizer_durable = bool(optimizer_durable)

    def durable_marker(self) -> Marker:
        with self._mutex:
            return Marker(
                acked=set(self._steps), global_step=self._global_step, optimizer_durable=self._optimizer_durable
            )

    def forget_acks(self, *, after_step: int) -> list[str]:
        with self._mutex:
            forgotten = {i for i, step in self._steps.items() if step is not None and step > after_step}
            for sample_id in forgotten:
                del self._steps[sample_id]
            if self._global_step is not None:
                self._global_step = min(self._global_step, after_step)
            return [sample_id for sample_id in self._refs if sample_id in forgotten]

    def acked_steps(self, sample_ids: Sequence[str]) -> dict[str, int | None]:
        with self._mutex:
            return {i: self._steps[i] for i in sample_ids if i in self._steps}


def weight_of(ref: object) -> int:
    """Return a ref's estimated_bytes; 0 where its class has no such field."""
    found = getattr(ref, "estimated_bytes", 0)
    return found if isinstance(found, int) and found > 0 else 0


def as_store(ledger: CommonLedger[R]) -> MetadataStore[R]:
    """Return a ledger itself where it is a `MetadataStore`; where not, one that asks it the common part alone."""
    return ledger if isinstance(ledger, MetadataStore) else cast("MetadataStore[R]", _Foreign(ledger))


class _Foreign:
    """Wrap another package's ledger, never asking which ids are acknowledged: it would copy them all to answer."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def commit_samples(self, refs: Iterable[Any]) -> list[bool]:
        batch = getattr(self._ledger, "commit_samples", None)
        return [self._ledger.commit_sample(ref) for ref in refs] if batch is None else list(batch(refs))

    def acked_steps(self, sample_ids: Sequence[str]) -> dict[str, int | None]:
        return {}

    progress = MetadataStore.progress

    def backlog(self) -> tuple[int, int]:
        return 0, 0

    def note_in(self, queue: object) -> None:
        pass
