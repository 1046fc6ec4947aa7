"""fsqueue: a durable, exclusive, cross-process queue that needs nothing but a directory.

The queue is imported at once, what is built around it when it is first asked for. What needs torch is not in
`__all__`, so that a star import works without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fsqueue.disk.counting import Counts
from fsqueue.engine.get import UnreadableRefWarning
from fsqueue.engine.lock import StaleLockWarning
from fsqueue.errors import (
    CorruptRefError,
    FsQueueError,
    InvalidArgumentError,
    InvalidRefError,
    LeasesHeldError,
    LockTimeoutError,
    LockUnsupportedError,
    MemberFailedError,
    NotAQueueError,
    OtherProcessError,
    QueueClosedError,
    QueueConfigError,
    QueueIOError,
    RefTypeError,
    StreamEndedError,
    StreamStalledError,
    TensorInRefError,
    TooLongError,
    UnreadableRefError,
    UnsupportedFormatError,
)
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import FeatureSpec, PromptTask, SampleRef, assert_no_tensors, dp_partition

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
    "MemorySampleRefQueue",
    "MetadataStore",
    "NotAQueueError",
    "OtherProcessError",
    "PartialWindowWarning",
    "PromptTask",
    "QueueClosedError",
    "QueueConfigError",
    "QueueIOError",
    "RefTypeError",
    "SampleRef",
    "StaleLockWarning",
    "StreamEndedError",
    "StreamStalledError",
    "TensorInRefError",
    "TooLongError",
    "TrainLease",
    "TrainerView",
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
