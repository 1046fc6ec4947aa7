"""Other projects' queues behind the interface of `subjects`, each used as its documentation says.

All carry the same payload, the JSON of a ref in fsqueue's encoding. A call with several refs is the peer's own
batch call where it has one, otherwise a loop. A peer's package is imported when it is opened and not before.
"""

from __future__ import annotations

import importlib
import os
import queue
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import Any

from subjects import sample

from fsqueue import SampleRef
from fsqueue.codec import Codec

_BULK = 1_000
Taken = tuple[Any, bytes]
"""What finishes a message, and its content."""


class PeerSubject(ABC):
    """What the adapters share; a peer stores bytes or text, and knows nothing of refs.

    Attributes:
        label: its name in tables.
        package, module: what is installed, with the versions that this was written for, and what is imported.
        exclusive: whether what one process was given is kept from others until it is finished or its time is up.
        recovers: what gives a killed consumer's messages to others, as its documentation has it.
        shared: whether several hosts may use it through one filesystem.
    """

    label: str
    package: str
    module: str
    exclusive: bool
    recovers: str
    shared: bool

    def __init__(self, path: str, lease_timeout_s: float) -> None:
        self._codec = Codec(SampleRef)
        self._taken: dict[str, Any] = {}
        self._lease_timeout_s = lease_timeout_s
        self._open(importlib.import_module(self.module), path)

    def plan(self, sample_ids: list[str], count: int) -> tuple[Any, Any]:
        return [sample(sample_id) for sample_id in sample_ids], count

    def put(self, batch: Sequence[SampleRef]) -> None:
        self._put([self._codec.encode(ref) for ref in batch])

    def get(self, wanted: int) -> list[SampleRef]:
        refs = []
        for receipt, content in self._take(wanted):
            ref = self._codec.decode(content)
            self._taken[ref.sample_id] = receipt
            refs.append(ref)
        return refs

    def ack(self, batch: Sequence[SampleRef]) -> None:
        self._finish([self._taken.pop(ref.sample_id) for ref in batch])

    def fill(self, sample_ids: list[str]) -> None:
        for start in range(0, len(sample_ids), _BULK):
            self.put([sample(sample_id) for sample_id in sample_ids[start : start + _BULK]])

    def drain(self) -> list[str]:
        found: list[str] = []
        while refs := self.get(_BULK):
            found.extend(ref.sample_id for ref in refs)
            self.ack(refs)
        return found

    def recover(self) -> None:
        """Get back what a killed consumer had; most peers have nothing for it, or need no call."""
        return None

    @abstractmethod
    def _open(self, module: Any, path: str) -> None: ...

    @abstractmethod
    def _put(self, contents: list[bytes]) -> None: ...

    @abstractmethod
    def _take(self, count: int) -> list[Taken]:
        """Up to count messages, the next ones; fewer where there are no more."""

    @abstractmethod
    def _finish(self, receipts: list[Any]) -> None: ...

    @abstractmethod
    def leftover(self) -> int:
        """Messages that are pending or taken."""

    @abstractmethod
    def close(self) -> None: ...


class OneByOne(PeerSubject):
    """A peer without batches."""

    def _put(self, contents: list[bytes]) -> None:
        for content in contents:
            self._put_one(content)

    def _take(self, count: int) -> list[Taken]:
        found: list[Taken] = []
        while len(found) < count and (taken := self._take_one()) is not None:
            found.append(taken)
        return found

    def _finish(self, receipts: list[Any]) -> None:
        for receipt in receipts:
            self._finish_one(receipt)

    @abstractmethod
    def _put_one(self, content: bytes) -> None: ...

    @abstractmethod
    def _take_one(self) -> Taken | None: ...

    def _finish_one(self, receipt: Any) -> None:
        """Nothing where a message is gone once it was taken."""


class PersistQueue(OneByOne):
    """persist-queue's SQLiteAckQueue.

    Exclusive: no. A get is a SELECT and then an UPDATE in a transaction of its own, under a lock of threads; the
    author: "multiprocessing is not supported and verified" (its issue 132). Recovers: opening it, which by default
    (`auto_resume`) makes everything unacknowledged pending again, also what live processes hold. Shared: no,
    SQLite in WAL mode (sqlite.org/wal.html: "WAL does not work over a network filesystem").
    """

    label = "persist-queue SQLiteAckQueue"
    package = "persist-queue>=1.0,<2"
    module = "persistqueue"
    exclusive = False
    recovers = "reopening"
    shared = False

    def _open(self, module: Any, path: str) -> None:
        self._queue = module.SQLiteAckQueue(path)
        self._empty = module.Empty

    def _put_one(self, content: bytes) -> None:
        self._queue.put(content)

    def _take_one(self) -> Taken | None:
        try:
            item = self._queue.get(block=False, raw=True)
        except self._empty:
            return None
        return item["pqid"], item["data"]

    def _finish_one(self, receipt: Any) -> None:
        self._queue.ack(id=receipt)

    def leftover(self) -> int:
        return len(self._queue.queue()) - int(self._queue.acked_count())

    def close(self) -> None:
        self._queue.close()


class LiteQueue(OneByOne):
    """litequeue.

    Exclusive: yes, one UPDATE ... RETURNING in an immediate transaction; no time limit, and a late `done` is not
    fenced off. Recovers: `list_locked(seconds)` and `retry` of each, by whoever calls them. Shared: no, SQLite in
    WAL mode.
    """

    label = "litequeue"
    package = "litequeue>=0.9,<0.10"
    module = "litequeue"
    exclusive = True
    recovers = "list_locked, retry"
    shared = False

    def _open(self, module: Any, path: str) -> None:
        self._queue = module.LiteQueue(os.path.join(path, "queue.sqlite3"))

    def _put_one(self, content: bytes) -> None:
        self._queue.put(content.decode())

    def _take_one(self) -> Taken | None:
        message = self._queue.pop()
        return None if message is None else (message.message_id, message.data.encode())

    def _finish_one(self, receipt: Any) -> None:
        self._queue.done(receipt)

    def leftover(self) -> int:
        return int(self._queue.qsize())

    def recover(self) -> None:
        for message in list(self._queue.list_locked(threshold_seconds=self._lease_timeout_s)):
            self._queue.retry(message.message_id)

    def close(self) -> None:
        self._queue.close()


def deliver(ref: str) -> str:
    """What a task-queue task holds; it is never executed here."""
    return ref


class TaskQueue(PeerSubject):
    """task-queue with fq://, the closest relative: a file a task, the time until which it is leased in its name.

    Exclusive: yes, until the time in the name is over; a late `delete` removes the task whoever holds it. Recovers:
    the time passing. Shared: yes, its README: "can be used in a distributed fashion on a network filesystem"; it
    rests on fcntl locks and rename. Order: random within 250 entries of a directory. Without threads: with the
    default of 40, starting and ending them costs a call a tenth of a second.
    """

    label = "task-queue fq://"
    package = "task-queue>=2.14,<3"
    module = "taskqueue"
    exclusive = True
    recovers = "lease timeout"
    shared = True

    def _open(self, module: Any, path: str) -> None:
        self._empty = module.QueueEmptyError
        module.queueable(deliver)
        self._queue = module.TaskQueue(f"fq://{path}", n_threads=0, progress=False)

    def _put(self, contents: list[bytes]) -> None:
        self._queue.insert([partial(deliver, content.decode()) for content in contents])

    def _take(self, count: int) -> list[Taken]:
        try:
            found = self._queue.lease(seconds=max(1, round(self._lease_timeout_s)), num_tasks=count)
        except self._empty:
            return []
        return [(task, task.args[0].encode()) for task in ([found] if count == 1 else found)]

    def _finish(self, receipts: list[Any]) -> None:
        self._queue.delete(receipts)

    def leftover(self) -> int:
        return int(self._queue.enqueued)

    def close(self) -> None:
        """It holds nothing open."""


class Dirq(OneByOne):
    """dirq's QueueSimple.

    Exclusive: yes, by a hard link; but the link's time is stamped after it is made, so that a purge in between
    takes the lock of a message that waited longer than `maxlock` for stale, and `remove` is not fenced off.
    Recovers: `purge(maxlock=seconds)`, by whoever calls it. Shared: yes, where there are hard links: link and
    rename only, no lock; on several hosts by their clocks.
    """

    label = "dirq QueueSimple"
    package = "dirq>=1.8,<2"
    module = "dirq.QueueSimple"
    exclusive = True
    recovers = "purge(maxlock)"
    shared = True

    def _open(self, module: Any, path: str) -> None:
        self._queue = module.QueueSimple(path)

    def _put_one(self, content: bytes) -> None:
        self._queue.add(content)

    def _take_one(self) -> Taken | None:
        """The next element of the pass; a new pass where this one has come to its end."""
        for advance in (self._queue.next, self._queue.first):
            name = advance()
            while name:
                if self._queue.lock(name):
                    return name, self._queue.get(name)
                name = self._queue.next()
        return None

    def _finish_one(self, receipt: Any) -> None:
        self._queue.remove(receipt)

    def leftover(self) -> int:
        return int(self._queue.count())

    def recover(self) -> None:
        self._queue.purge(maxlock=self._lease_timeout_s)

    def close(self) -> None:
        """It holds nothing open."""


class HueyFiles(OneByOne):
    """huey's FileHuey, by its storage.

    Exclusive: yes, a message is removed when it is taken. Recovers: nothing does, for the same reason. Shared: no,
    one flock around everything; its documentation: "should NOT be used in production".
    """

    label = "huey FileHuey"
    package = "huey>=3,<4"
    module = "huey"
    exclusive = True
    recovers = "-"
    shared = False

    def _open(self, module: Any, path: str) -> None:
        self._storage = module.FileHuey("bench", path=path).storage

    def _put_one(self, content: bytes) -> None:
        self._storage.enqueue(content)

    def _take_one(self) -> Taken | None:
        content = self._storage.dequeue()
        return None if content is None else (None, content)

    def leftover(self) -> int:
        return int(self._storage.queue_size())

    def close(self) -> None:
        """It holds nothing open."""


class DiskcacheDeque(PeerSubject):
    """diskcache's Deque; a batch is one `transact()`.

    Exclusive: yes, a message is removed when it is taken. Recovers: nothing does, for the same reason. Shared: no,
    SQLite in WAL mode.
    """

    label = "diskcache Deque"
    package = "diskcache>=5.6,<6"
    module = "diskcache"
    exclusive = True
    recovers = "-"
    shared = False

    def _open(self, module: Any, path: str) -> None:
        self._deque = module.Deque(directory=path)

    def _put(self, contents: list[bytes]) -> None:
        with self._deque.transact():
            self._deque.extend(contents)

    def _take(self, count: int) -> list[Taken]:
        with self._deque.transact():
            found: list[Taken] = []
            while len(found) < count and len(self._deque):
                found.append((None, self._deque.popleft()))
            return found

    def _finish(self, receipts: list[Any]) -> None:
        """It was removed when it was taken."""

    def leftover(self) -> int:
        return len(self._deque)

    def close(self) -> None:
        self._deque.cache.close()


class KombuFiles(OneByOne):
    """kombu's filesystem transport, by its SimpleQueue.

    Exclusive: yes, a message is moved away when it is taken. Recovers: nothing does; unacknowledged messages are
    written back when a channel is closed, and a killed process closes none. Shared: no promise is made; the move
    has one winner, but a message is visible while it is written (the reader does not take the writer's flock).
    """

    label = "kombu filesystem://"
    package = "kombu>=5.5,<6"
    module = "kombu"
    exclusive = True
    recovers = "-"
    shared = False

    def _open(self, module: Any, path: str) -> None:
        data, processed, control = (os.path.join(path, name) for name in ("data", "processed", "control"))
        for folder in (data, processed, control):
            os.makedirs(folder, exist_ok=True)
        options = {
            "data_folder_in": data,
            "data_folder_out": data,
            "store_processed": True,  # otherwise a message is moved to the temporary directory, another filesystem
            "processed_folder": processed,
            "control_folder": control,
        }
        self._connection = module.Connection("filesystem://", transport_options=options)
        self._queue = self._connection.SimpleQueue("refs")

    def _put_one(self, content: bytes) -> None:
        self._queue.put(content.decode())

    def _take_one(self) -> Taken | None:
        try:
            message = self._queue.get(block=False)
        except queue.Empty:
            return None
        return message, message.payload.encode()

    def _finish_one(self, receipt: Any) -> None:
        receipt.ack()

    def leftover(self) -> int:
        return len(self._queue)

    def close(self) -> None:
        self._queue.close()
        self._connection.close()


PEERS: dict[str, type[PeerSubject]] = {
    "task-queue": TaskQueue,
    "dirq": Dirq,
    "huey": HueyFiles,
    "kombu": KombuFiles,
    "persist-queue": PersistQueue,
    "litequeue": LiteQueue,
    "diskcache": DiskcacheDeque,
}
