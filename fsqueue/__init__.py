"""fsqueue: a durable, exclusive, cross-process queue that needs nothing but a directory."""

from fsqueue.control.backpressure import BackpressureConfig, BackpressureConfigError, BackpressureController
from fsqueue.control.controller import DataFlowController
from fsqueue.control.errors import (
    LedgerClosedError,
    LedgerDamagedError,
    LedgerError,
    LedgerFormatError,
    LedgerLockedError,
    LedgerLockUnsupportedError,
    LiveNamesakeError,
)
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.control.store import InMemoryMetadataStore, MetadataStore
from fsqueue.control.train_lease import TrainLease
from fsqueue.errors import (
    CorruptRefError,
    FsQueueError,
    InvalidRefError,
    LeasesHeldError,
    LockTimeoutError,
    LockUnsupportedError,
    MemberFailedError,
    NotAQueueError,
    QueueClosedError,
    QueueConfigError,
    QueueIOError,
    StreamEndedError,
    StreamStalledError,
    TensorInRefError,
    UnsupportedFormatError,
)
from fsqueue.lock import StaleLockWarning
from fsqueue.memory import MemorySampleRefQueue
from fsqueue.queue import Counts, FileSampleRefQueue
from fsqueue.records import FeatureSpec, PromptTask, SampleRef, assert_no_tensors, dp_partition
from fsqueue.view import PartialWindowWarning, TrainerView

__all__ = [
    "BackpressureConfig",
    "BackpressureConfigError",
    "BackpressureController",
    "CorruptRefError",
    "Counts",
    "DataFlowController",
    "FeatureSpec",
    "FileMetadataStore",
    "FileSampleRefQueue",
    "FsQueueError",
    "InMemoryMetadataStore",
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
    "MemorySampleRefQueue",
    "MetadataStore",
    "NotAQueueError",
    "PartialWindowWarning",
    "PromptTask",
    "QueueClosedError",
    "QueueConfigError",
    "QueueIOError",
    "SampleRef",
    "StaleLockWarning",
    "StreamEndedError",
    "StreamStalledError",
    "TensorInRefError",
    "TrainLease",
    "TrainerView",
    "UnsupportedFormatError",
    "assert_no_tensors",
    "dp_partition",
]
__version__ = "0.1.0"
