"""The control plane on files: a durable ledger of what was committed and acknowledged, and the controller over it."""

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
    NoSampleQueueError,
)
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.control.ledger.metadata_store import InMemoryMetadataStore, MetadataStore
from fsqueue.control.train_lease import TrainLease

__all__ = [
    "BackpressureConfig",
    "BackpressureConfigError",
    "BackpressureController",
    "DataFlowController",
    "FileMetadataStore",
    "InMemoryMetadataStore",
    "LedgerClosedError",
    "LedgerDamagedError",
    "LedgerError",
    "LedgerFormatError",
    "LedgerLockUnsupportedError",
    "LedgerLockedError",
    "LiveNamesakeError",
    "MetadataStore",
    "NoSampleQueueError",
    "TrainLease",
]
