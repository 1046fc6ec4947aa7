"""The kinds of subjects that this project measures itself with, and how each is opened."""

from __future__ import annotations

import os

from against_sqlite.queue import PlainSqliteQueue, TunedSqliteQueue
from fsqueue import FileSampleRefQueue, MemorySampleRefQueue, SampleRef
from fsqueue.format.codec import Codec
from subjects.floor import Floor, FloorSubject
from subjects.sample import LEASE_TIMEOUT_S, sample
from subjects.subject import QueueSubject, Subject

SUBJECTS = {
    "file": "FileSampleRefQueue",
    "floor": "file operations alone",
    "sqlite": "SQLite, plain",
    "sqlite-tuned": "SQLite, tuned",
    "memory": "MemorySampleRefQueue",
}
ALONE = ("memory",)
WAITING = ("file", "sqlite", "sqlite-tuned")


def open_subject(kind: str, path: str, owner: str, durable: bool, lease_timeout_s: float = LEASE_TIMEOUT_S) -> Subject:
    """Open one of `SUBJECTS` over a directory, which is made where it is missing."""
    os.makedirs(path, exist_ok=True)
    if kind == "floor":
        return FloorSubject(Floor(path, owner, Codec(SampleRef).encode(sample(owner)), durable))
    if kind == "memory":
        memory: MemorySampleRefQueue[SampleRef] = MemorySampleRefQueue(lease_timeout_s=lease_timeout_s)
        return QueueSubject(memory, memory)
    if kind == "file":
        handles = [
            FileSampleRefQueue(os.path.join(path, "queue"), lease_timeout_s=lease_timeout_s, owner=owner, durable=d)
            for d in _durabilities(durable)
        ]
        return QueueSubject(handles[0], handles[-1])
    cls = PlainSqliteQueue if kind == "sqlite" else TunedSqliteQueue
    queues = [
        cls(os.path.join(path, "queue.sqlite3"), lease_timeout_s=lease_timeout_s, durable=d)
        for d in _durabilities(durable)
    ]
    return QueueSubject(queues[0], queues[-1])


def _durabilities(durable: bool) -> tuple[bool, ...]:
    return (True, False) if durable else (False,)
