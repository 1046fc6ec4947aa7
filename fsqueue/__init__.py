"""A durable, exclusive, cross-process queue that needs nothing but a directory.

    from dataclasses import dataclass
    from fsqueue import FileSampleRefQueue

    @dataclass(frozen=True)
    class Job:
        sample_id: str  # the key; two refs with one id are one ref
        page: int

    queue = FileSampleRefQueue("/shared/queue", ref_type=Job, lease_timeout_s=60)
    queue.put([Job("page-1", 1)])               # one process, on one node
    while jobs := queue.get(8, timeout_s=5):    # others, on any node
        ...                                     # the work
        queue.ack(jobs)                         # or queue.fail(jobs, "the reason", retryable=True)

What was put is in exactly one of pending, leased, done and failed, whatever process is killed when. What is not
acknowledged comes again once its lease has expired. The directory is the state: look at it with `ls`, or with the
`fsqueue` command.

The queue:          FileSampleRefQueue; MemorySampleRefQueue, the same within one process; Counts
Its refs:           SampleRef unless ref_type is given; FeatureSpec, PromptTask, dp_partition, assert_no_tensors
A stream over it:   TrainerView, and the queue's producer(), consumer(), put_when_below(), drained(), rewind()
A controller:       DataFlowController, FileMetadataStore, BackpressureController, TrainLease
Tensors of refs:    fsqueue.features, which needs torch
Errors:             FsQueueError is the base of all of them

The queue is imported at once, what is built around it when it is first asked for. What needs torch is not in
`__all__`, so that a star import works without it. README.md, FORMAT.md and the guides say more.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsqueue.disk.counting import Counts
from fsqueue.disk.filesystems import UnfitFilesystemWarning
from fsqueue.engine.get import UnreadableRefWarning
from fsqueue.engine.order_content import StaleLockWarning
from fsqueue.errors import (
    CaseCollisionError,
    CorruptRefError,
    FsQueueError,
    InvalidArgumentError,
    InvalidRefError,
    LeasesHeldError,
    LockTimeoutError,
    LockUnsupportedError,
    MemberFailedError,
    MemberMissingError,
    MemberReplacedError,
    NameTooLongError,
    NotAQueueError,
    OtherProcessError,
    QueueClosedError,
    QueueConfigError,
    QueueIOError,
    QueueReplacedError,
    ReadOnlyError,
    RefTypeError,
    StreamEndedError,
    StreamStalledError,
    TensorInRefError,
    TooLongError,
    UnreadableRefError,
    UnsupportedFormatError,
)
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import FeatureSpec, PromptTask, Put, SampleRef, assert_no_tensors, dp_partition

if TYPE_CHECKING:
    from fsqueue.control import (
        BackpressureConfig,
        BackpressureConfigError,
        BackpressureController,
        DataFlowController,
        FileMetadataStore,
        InMemoryMetadataStore,
        LedgerClosedError,
        LedgerDamagedError,
        LedgerError,
        LedgerFormatError,
        LedgerLockedError,
        LedgerLockUnsupportedError,
        LiveNamesakeError,
        MetadataStore,
        NoSampleQueueError,
        TrainLease,
    )
    from fsqueue.engine.memory import MemorySampleRefQueue
    from fsqueue.features import FeatureDataLoader as FeatureDataLoader
    from fsqueue.features import FeatureDataset as FeatureDataset
    from fsqueue.features import FeatureStore as FeatureStore
    from fsqueue.features import SharedDirFeatureStore as SharedDirFeatureStore
    from fsqueue.stream.view import PartialWindowWarning, TrainerView

__all__ = [
    "BackpressureConfig",
    "BackpressureConfigError",
    "BackpressureController",
    "CaseCollisionError",
    "CorruptRefError",
    "Counts",
    "DataFlowController",
    "FeatureSpec",
    "FileMetadataStore",
    "FileSampleRefQueue",
    "FsQueueError",
    "InMemoryMetadataStore",
    "InvalidArgumentError",
    "InvalidRefError",
    "LeasesHeldError",
    "LedgerClosedError",
    "LedgerDamagedError",
    "LedgerError",
    "LedgerFormatError",
    "LedgerLockUnsupportedError",
    "LedgerLockedError",
    "LiveNamesakeError",
    "LockTimeoutError",
    "LockUnsupportedError",
    "MemberFailedError",
    "MemberMissingError",
    "MemberReplacedError",
    "MemorySampleRefQueue",
    "MetadataStore",
    "NameTooLongError",
    "NoSampleQueueError",
    "NotAQueueError",
    "OtherProcessError",
    "PartialWindowWarning",
    "PromptTask",
    "Put",
    "QueueClosedError",
    "QueueConfigError",
    "QueueIOError",
    "QueueReplacedError",
    "ReadOnlyError",
    "RefTypeError",
    "SampleRef",
    "StaleLockWarning",
    "StreamEndedError",
    "StreamStalledError",
    "TensorInRefError",
    "TooLongError",
    "TrainLease",
    "TrainerView",
    "UnfitFilesystemWarning",
    "UnreadableRefError",
    "UnreadableRefWarning",
    "UnsupportedFormatError",
    "assert_no_tensors",
    "dp_partition",
]
__version__ = "0.1.0"

_MODULE_OF = {
    "FeatureDataLoader": "fsqueue.features",
    "FeatureDataset": "fsqueue.features",
    "FeatureStore": "fsqueue.features",
    "SharedDirFeatureStore": "fsqueue.features",
    "MemorySampleRefQueue": "fsqueue.engine.memory",
    "PartialWindowWarning": "fsqueue.stream.view",
    "TrainerView": "fsqueue.stream.view",
}


def __getattr__(name: str) -> Any:
    """What is in `__all__`, and neither here nor in the table above, is the control plane's."""
    module = _MODULE_OF.get(name, "fsqueue.control" if name in __all__ else None)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted(__all__)
