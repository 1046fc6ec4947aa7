"""The directory of a soak: where its queue, logs and nodes are, and the clock that all of them share.

DIR/soak.json               what the first node has settled
DIR/end.json                when it ends, by the filesystem's clock; once all workers of the first node have begun
DIR/queue/                  the queue; DIR/disk/queue/ where a small disk is mounted on DIR/disk
DIR/nodes/<node>.json       one per node: how exact its clock is, if its workers have begun, if it is done, what it did
DIR/logs/<node>/*.jsonl     the calls of each process, one file each; what the node's chaos did; who died when
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fsqueue import SampleRef

_CLOCK_SAMPLES = 64
_TICK_S = 0.01


@dataclass(frozen=True)
class Settings:
    """What all nodes must agree on."""

    queue: str
    lease_timeout_s: float
    seed: int


@dataclass(frozen=True)
class Clock:
    """The filesystem's clock, as one host's monotonic clock plus what was measured between the two.

    Attributes:
        unsure_s: how far two hosts' ideas of it may be apart, at most twice.
    """

    offset_s: float
    unsure_s: float

    def __call__(self) -> float:
        return time.monotonic() + self.offset_s

    @staticmethod
    def measured(directory: Path) -> Clock:
        """Touch a file many times: its stamp is never later than the moment at which the touch returned."""
        offsets, durations = [], []
        with tempfile.NamedTemporaryFile(dir=directory, prefix=".clock-") as file:
            for _ in range(_CLOCK_SAMPLES):
                before = time.monotonic()
                os.utime(file.fileno())
                stamp = os.fstat(file.fileno()).st_mtime
                after = time.monotonic()
                offsets.append(stamp - after)
                durations.append(after - before)
        return Clock(max(offsets), min(durations) + _TICK_S)


class Site:
    """The directory, as one node sees it."""

    def __init__(self, directory: str, node: str | None = None) -> None:
        self.directory = Path(directory).absolute()
        self.node = node or f"{socket.gethostname().partition('.')[0]}-{os.getpid()}"
        self.disk = self.directory / "disk"
        self._settings = self.directory / "soak.json"
        self._end = self.directory / "end.json"

    @property
    def logs(self) -> Path:
        """This node's logs."""
        return self.directory / "logs" / self.node

    def make(self) -> None:
        (self.directory / "nodes").mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(parents=True)

    def publish(self, settings: Settings) -> None:
        _write(self._settings, asdict(settings))

    def settings(self) -> Settings | None:
        """What the first node has settled; None as long as it has not."""
        try:
            return Settings(**json.loads(self._settings.read_bytes()))
        except FileNotFoundError:
            return None

    def publish_end(self, ends_at: float) -> None:
        _write(self._end, {"ends_at": ends_at})

    def ends_at(self) -> float | None:
        """When the soak ends; None as long as its time has not begun."""
        try:
            return float(json.loads(self._end.read_bytes())["ends_at"])
        except FileNotFoundError:
            return None

    def queue_of(self, settings: Settings) -> Path:
        return self.directory / settings.queue

    def announce(self, **facts: Any) -> None:
        _write(self.directory / "nodes" / f"{self.node}.json", facts)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """What each node has announced last."""
        found = (self.directory / "nodes").glob("*.json")
        return {path.stem: json.loads(path.read_bytes()) for path in sorted(found)}


def _write(path: Path, facts: dict[str, Any]) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(facts))
    new.replace(path)


def append_line(path: Path, facts: dict[str, Any]) -> None:
    """Add one line to a log that the processes of one node share."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, json.dumps(facts).encode() + b"\n")
    finally:
        os.close(fd)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The lines of such a log, but for one that a kill has cut short."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def wait_until(condition: Callable[[], bool], timeout_s: float, pause_s: float = 0.1) -> bool:
    """Whether the condition held before the time was over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause_s)
    return True


def make_ref(sample_id: str) -> SampleRef:
    """A ref whose content follows from its id, so that whoever gets it can tell whether it is whole."""
    digest = zlib.crc32(sample_id.encode())
    keys = {"hidden": f"{sample_id}/hidden"}
    metadata = {"digest": digest, "padding": "x" * (digest % 900)}
    return SampleRef(sample_id, "soak", None, "file:///features", keys, {}, "eagle3", metadata=metadata)
