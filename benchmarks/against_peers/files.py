"""Peers that keep a message in a file of its own."""

from __future__ import annotations

import os
import queue
from functools import partial
from typing import Any

from against_peers.base import OneByOne, PeerSubject, Taken


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
