"""Peers that keep their messages in a SQLite database."""

from __future__ import annotations

import os
from typing import Any

from against_peers.base import OneByOne, PeerSubject, Taken


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
