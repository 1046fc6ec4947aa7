"""Put fsqueue's classes in the place of SpecForge's, as a plugin of pytest, before its own tests import them.

FSQUEUE_PLUGGED names the parts: controller, queue, ledger, store. The tests themselves stay as they are: a queue that
is made without a path gets a directory of its own. Processes that a test starts run with SpecForge's own classes.
Stands alone, for a checkout has a package `tests` of its own.
"""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from specforge.runtime.contracts import SampleRef

from fsqueue import FileMetadataStore, FileSampleRefQueue
from fsqueue.control import DataFlowController

PARTS = ("controller", "queue", "ledger", "store")

_runtime = "specforge.runtime"
_folder = tempfile.TemporaryDirectory(prefix="plugged-in-", ignore_cleanup_errors=True)
_serial = itertools.count()


def _own_directory() -> Path:
    return Path(_folder.name) / str(next(_serial))


class Queue(FileSampleRefQueue[Any]):
    """A queue in a directory of its own, for their queue is one in memory."""

    def __init__(self) -> None:
        super().__init__(_own_directory(), ref_type=SampleRef, durable=False)


class Ledger(FileMetadataStore[Any]):
    """A ledger at a path, for theirs in SQLite."""

    def __init__(self, path: str) -> None:
        super().__init__(path, ref_type=SampleRef, durable=False)


class OwnLedger(Ledger):
    """A ledger in a directory of its own, for theirs in memory."""

    def __init__(self) -> None:
        super().__init__(str(_own_directory()))


def _store() -> type[Any]:
    """Return a feature store with the two arguments that theirs has besides: a name below root, and a password."""
    from fsqueue.integrations.specforge.store import SharedFeatureStore

    policy = importlib.import_module(f"{_runtime}.data_plane.disaggregated").AuthPolicy

    class Store(SharedFeatureStore):
        def __init__(
            self, root: str, store_id: str | None = None, *, auth: Any = None, credential: Any = None, **options: Any
        ) -> None:
            self._auth = auth or policy()
            self._auth.check(credential)
            Path(root).mkdir(parents=True, exist_ok=True)
            super().__init__(Path(root) / (store_id or f"store-{next(_serial)}"), durable=False, **options)

        def health(self) -> dict[str, Any]:
            return super().health() | {"auth_required": self._auth.required}

    return Store


def _controller() -> None:
    _replace("control_plane.controller", "DataFlowController", DataFlowController)
    acknowledging = sys.modules[f"{_runtime}.control_plane.dp_ack"]
    theirs = acknowledging.DPAckController
    ours = importlib.reload(acknowledging).DPAckController  # which derives from the controller
    _everywhere(theirs, ours)


def _queue() -> None:
    _replace("data_plane.sample_ref_queue", "SampleRefQueue", Queue)


def _ledger() -> None:
    _replace("control_plane.metadata_store", "SQLiteMetadataStore", Ledger)
    _replace("control_plane.metadata_store", "InMemoryMetadataStore", OwnLedger)


def _feature_store() -> None:
    _replace("data_plane.disaggregated", "SharedDirFeatureStore", _store())


_PLUGS: dict[str, Callable[[], None]] = dict(zip(PARTS, (_controller, _queue, _ledger, _feature_store), strict=True))


def _replace(module: str, name: str, ours: Any) -> None:
    _everywhere(getattr(importlib.import_module(f"{_runtime}.{module}"), name), ours)


def _everywhere(theirs: Any, ours: Any) -> None:
    """Let each of their modules that has imported a class have ours instead."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "specforge":
            for attribute, value in list(vars(module).items()):
                if value is theirs:
                    setattr(module, attribute, ours)


def pytest_configure(config: pytest.Config) -> None:
    importlib.import_module(f"{_runtime}.control_plane")
    for part in os.environ.get("FSQUEUE_PLUGGED", "").split():
        _PLUGS[part]()


def pytest_unconfigure(config: pytest.Config) -> None:
    _folder.cleanup()
