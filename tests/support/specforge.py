"""SpecForge's classes and fsqueue's that take their place, behind one way to make them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from fsqueue import FileMetadataStore, FileSampleRefQueue, InMemoryMetadataStore, MemorySampleRefQueue
from fsqueue.control import DataFlowController
from tests.support.upstream import required

contracts = required("specforge.runtime.contracts")
control_plane = required("specforge.runtime.control_plane")
staging = required("specforge.runtime.data_plane.sample_ref_queue")

SampleRef: Any = contracts.SampleRef
FeatureSpec: Any = contracts.FeatureSpec

Make = Callable[[Path], Any]

QUEUES: dict[str, Make] = {
    "theirs": lambda path: staging.SampleRefQueue(),
    "ours": lambda path: FileSampleRefQueue(path / "queue", ref_type=SampleRef, durable=False),
    "ours in memory": lambda path: MemorySampleRefQueue(ref_type=SampleRef),
}

LEDGERS: dict[str, Make] = {
    "theirs": lambda path: control_plane.InMemoryMetadataStore(),
    "theirs in SQLite": lambda path: control_plane.SQLiteMetadataStore(str(path / "ledger.db")),
    "ours": lambda path: FileMetadataStore(path / "ledger", ref_type=SampleRef, durable=False),
    "ours in memory": lambda path: InMemoryMetadataStore(),
}

STORES: dict[str, Make] = {
    "theirs": lambda path: _data_plane("LocalFeatureStore")("store"),
    "theirs in a directory": lambda path: _data_plane("SharedDirFeatureStore")(str(path / "features"), "store"),
    "ours": lambda path: _ours("SharedFeatureStore")(path / "features", durable=False),
}
"""Feature stores of their contract."""

CONTROLLERS: dict[str, tuple[str, str, str]] = {
    "theirs": ("theirs", "theirs", "theirs in SQLite"),
    "ours": ("ours", "ours", "ours"),
    "ours in memory": ("ours", "ours in memory", "ours in memory"),
    "theirs over ours": ("theirs", "ours", "ours"),
    "ours over theirs": ("ours", "theirs", "theirs in SQLite"),
    "their DPAckController over ours": ("DPAckController", "ours", "ours"),
}
"""The controller, and the queue and the ledger that it works on."""


def _data_plane(name: str) -> Any:
    """A class that needs torch, which the control plane does not."""
    return getattr(required("specforge.runtime.data_plane"), name)


def _ours(name: str) -> Any:
    return getattr(required("fsqueue.integrations.specforge"), name)


class Site:
    """A place where things of one kind are made; what is made there is closed at the end."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.is_theirs = kind.startswith("theirs")
        self.closing = ExitStack()

    def _made(self, it: Any) -> Any:
        self.closing.callback(getattr(it, "close", lambda: None))
        return it

    def queue(self) -> Any:
        return self._made(QUEUES[self.kind](self.path))

    def ledger(self) -> Any:
        return self._made(LEDGERS[self.kind](self.path))

    def controller(self, **options: Any) -> Any:
        """A controller; where its parts are files, one that goes on with those of the one before it."""
        kind, queue, ledger = CONTROLLERS[self.kind]
        options = {"metadata_store": self._made(LEDGERS[ledger](self.path)), **options}
        if kind == "ours":
            if options.get("enable_sample_queue", True):
                options["sample_queue"] = self._made(QUEUES[queue](self.path))
            return DataFlowController("run", **options)
        name = "DPAckController" if kind == "DPAckController" else "DataFlowController"
        made = getattr(control_plane, name)("run", **options)
        if made.sample_queue is not None and queue != "theirs":
            made.sample_queue = self._made(QUEUES[queue](self.path))
        return made


def ref(sample_id: str, **fields: Any) -> Any:
    """A ref of theirs, with all that a rollout fills in."""
    return SampleRef(
        **{
            "sample_id": sample_id,
            "run_id": "run",
            "source_task_id": None,
            "feature_store_uri": f"mem://store/{sample_id}?generation=1",
            "feature_keys": {"hidden": f"{sample_id}/hidden"},
            "feature_specs": {"hidden": FeatureSpec("hidden", (4, 8), "float32")},
            "strategy": "eagle3",
            "estimated_bytes": 128,
        }
        | fields
    )


def refs(*sample_ids: str) -> list[Any]:
    return [ref(sample_id) for sample_id in sample_ids]


class Tensor:
    """Looks like one."""

    dtype = shape = device = None
