"""fsqueue: a durable, exclusive, cross-process queue that needs nothing but a directory."""

from fsqueue.errors import (
    CorruptRefError,
    FsQueueError,
    InvalidRefError,
    LockTimeoutError,
    LockUnsupportedError,
    NotAQueueError,
    QueueClosedError,
    QueueConfigError,
    QueueIOError,
    TensorInRefError,
    UnsupportedFormatError,
)
from fsqueue.lock import StaleLockWarning
from fsqueue.memory import MemorySampleRefQueue
from fsqueue.queue import Counts, FileSampleRefQueue
from fsqueue.records import FeatureSpec, PromptTask, SampleRef, assert_no_tensors, dp_partition

__all__ = [
    "CorruptRefError",
    "Counts",
    "FeatureSpec",
    "FileSampleRefQueue",
    "FsQueueError",
    "InvalidRefError",
    "LockTimeoutError",
    "LockUnsupportedError",
    "MemorySampleRefQueue",
    "NotAQueueError",
    "PromptTask",
    "QueueClosedError",
    "QueueConfigError",
    "QueueIOError",
    "SampleRef",
    "StaleLockWarning",
    "TensorInRefError",
    "UnsupportedFormatError",
    "assert_no_tensors",
    "dp_partition",
]
__version__ = "0.1.0"
