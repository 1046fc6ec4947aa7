"""fsqueue: a durable, exclusive, cross-process queue that needs nothing but a directory."""

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
    "CorruptRefError",
    "Counts",
    "FeatureSpec",
    "FileSampleRefQueue",
    "FsQueueError",
    "InvalidRefError",
    "LeasesHeldError",
    "LockTimeoutError",
    "LockUnsupportedError",
    "MemberFailedError",
    "MemorySampleRefQueue",
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
    "TrainerView",
    "UnsupportedFormatError",
    "assert_no_tensors",
    "dp_partition",
]
__version__ = "0.1.0"
