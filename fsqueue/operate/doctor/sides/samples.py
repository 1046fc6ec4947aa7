"""Make the refs that a verification puts."""

from __future__ import annotations

from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import SampleRef

Queue = FileSampleRefQueue[SampleRef]


def sample(sample_id: str) -> SampleRef:
    """Return a ref with this id and nothing behind it."""
    return SampleRef(sample_id, "verification", None, "file:///features", {}, {}, "eagle3")
