"""Two SQLite queues with the contract of fsqueue's, to measure it against.

`PlainSqliteQueue` is the design that clusters use today: one table of pending and leased refs with a sequence
number, wall-clock leases, one statement a ref, and a get that reads the backlog in order and picks from it.
`TunedSqliteQueue` is what SQLite can do: partial indexes, one ``UPDATE ... RETURNING`` a get, one
``executemany`` a put and ack. Both use WAL, ``BEGIN IMMEDIATE``, a busy timeout of 5 s, and fsqueue's codec.

Neither fences a late ack: they settle a ref by its id, whoever holds the lease.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fsqueue import InvalidRefError, SampleRef, dp_partition
from fsqueue.format.codec import Codec

BUSY_TIMEOUT_S = 5.0


class SqliteQueue(ABC):
    """What both have in common: the connection, transactions, and a get that polls.

    Attributes:
        schema: statements that create the tables where they are missing.
        durable: whether a commit reaches the disk (synchronous=FULL) or is left to the kernel (OFF).
    """

    schema: str
    count_pending: str
    count_leased: str

    def __init__(
        self,
        path: str,
        *,
        lease_timeout_s: float | None = None,
        ref_type: type[Any] = SampleRef,
        clock: Callable[[], float] = time.time,
        poll_interval_s: float = 0.05,
        durable: bool = True,
    ) -> None:
        self._codec = Codec(ref_type)
        self._lease_timeout_s = lease_timeout_s
        self._clock = clock
        self._poll_interval_s = poll_interval_s
        self._mutex = threading.RLock()
        self._db = sqlite3.connect(path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        self._db.create_function("dp_partition", 2, dp_partition, deterministic=True)
        self._db.executescript(self.schema)

    def put(self, refs: Sequence[Any], *, partition_key: str | None = None) -> None:
        rows = [(ref.sample_id, self._codec.encode(ref)) for ref in refs]
        if not all(sample_id for sample_id, _ in rows):
            raise InvalidRefError("<root>.sample_id", "expected a non-empty string")
        with self._transaction():
            self._insert_locked(rows)

    def get(
        self,
        max_refs: int,
        timeout_s: float | None = None,
        *,
        partition_key: str | None = None,
        partition: tuple[int, int] | None = None,
    ) -> list[Any]:
        deadline = time.monotonic() + (timeout_s or 0.0)
        while True:
            with self._transaction():
                now = self._clock()
                if self._lease_timeout_s is not None:
                    self._reclaim_locked(now - self._lease_timeout_s)
                found = self._lease_locked(max_refs, now, partition)
            if found or time.monotonic() >= deadline or (partition and self.depth()):
                return [self._codec.decode(data) for data in found]
            time.sleep(self._poll_interval_s)

    def ack(self, refs: Sequence[Any]) -> None:
        with self._transaction():
            self._remove_locked([ref.sample_id for ref in refs])

    def fail(self, refs: Sequence[Any], reason: str, retryable: bool) -> None:
        ids = [ref.sample_id for ref in refs]
        with self._transaction():
            self._requeue_locked(ids) if retryable else self._remove_locked(ids)

    def depth(self) -> int:
        return self._count(self.count_pending)

    def in_flight(self) -> int:
        return self._count(self.count_leased)

    def close(self) -> None:
        with self._mutex:
            self._db.close()

    def _count(self, statement: str) -> int:
        with self._mutex:
            return int(self._db.execute(statement).fetchone()[0])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._mutex:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @abstractmethod
    def _insert_locked(self, rows: list[tuple[str, bytes]]) -> None: ...

    @abstractmethod
    def _reclaim_locked(self, leased_before: float) -> None: ...

    @abstractmethod
    def _lease_locked(self, max_refs: int, now: float, partition: tuple[int, int] | None) -> list[bytes]: ...

    @abstractmethod
    def _requeue_locked(self, ids: list[str]) -> None: ...

    @abstractmethod
    def _remove_locked(self, ids: list[str]) -> None: ...


class PlainSqliteQueue(SqliteQueue):
    """The design in use: a get reads all pending rows in order and updates those it picks, one by one."""

    schema = """
        CREATE TABLE IF NOT EXISTS refs (
            sample_id TEXT PRIMARY KEY, ref BLOB NOT NULL, state TEXT NOT NULL, seq INTEGER NOT NULL, leased_at REAL);
        CREATE INDEX IF NOT EXISTS by_state ON refs (state, seq);
        CREATE TABLE IF NOT EXISTS counter (one INTEGER PRIMARY KEY CHECK (one = 1), seq INTEGER NOT NULL);
        INSERT OR IGNORE INTO counter VALUES (1, 0);
    """
    count_pending = "SELECT count(*) FROM refs WHERE state = 'pending'"
    count_leased = "SELECT count(*) FROM refs WHERE state = 'leased'"

    def _next_seq_locked(self) -> int:
        self._db.execute("UPDATE counter SET seq = seq + 1")
        return int(self._db.execute("SELECT seq FROM counter").fetchone()[0])

    def _insert_locked(self, rows: list[tuple[str, bytes]]) -> None:
        for sample_id, data in rows:
            if self._db.execute("SELECT 1 FROM refs WHERE sample_id = ?", (sample_id,)).fetchone() is None:
                values = (sample_id, data, self._next_seq_locked())
                self._db.execute("INSERT INTO refs VALUES (?, ?, 'pending', ?, NULL)", values)

    def _reclaim_locked(self, leased_before: float) -> None:
        self._db.execute(
            "UPDATE refs SET state = 'pending', leased_at = NULL WHERE state = 'leased' AND leased_at < ?",
            (leased_before,),
        )

    def _lease_locked(self, max_refs: int, now: float, partition: tuple[int, int] | None) -> list[bytes]:
        backlog = self._db.execute("SELECT sample_id, ref FROM refs WHERE state = 'pending' ORDER BY seq").fetchall()
        if partition is not None:
            index, count = partition
            backlog = [row for row in backlog if dp_partition(row[0], count) == index]
        chosen = backlog[:max_refs]
        for sample_id, _ in chosen:
            self._db.execute("UPDATE refs SET state = 'leased', leased_at = ? WHERE sample_id = ?", (now, sample_id))
        return [data for _, data in chosen]

    def _requeue_locked(self, ids: list[str]) -> None:
        for sample_id in ids:
            self._db.execute(
                "UPDATE refs SET state = 'pending', leased_at = NULL, seq = ? WHERE sample_id = ?",
                (self._next_seq_locked(), sample_id),
            )

    def _remove_locked(self, ids: list[str]) -> None:
        for sample_id in ids:
            self._db.execute("DELETE FROM refs WHERE sample_id = ?", (sample_id,))


class TunedSqliteQueue(SqliteQueue):
    """The same contract with one statement an operation; ``leased_at IS NULL`` means pending."""

    schema = """
        CREATE TABLE IF NOT EXISTS refs (
            seq INTEGER PRIMARY KEY, sample_id TEXT NOT NULL UNIQUE, leased_at REAL, ref BLOB NOT NULL);
        CREATE INDEX IF NOT EXISTS pending ON refs (seq) WHERE leased_at IS NULL;
        CREATE INDEX IF NOT EXISTS leased ON refs (leased_at) WHERE leased_at IS NOT NULL;
    """
    count_pending = "SELECT count(*) FROM refs WHERE leased_at IS NULL"
    count_leased = "SELECT count(*) FROM refs WHERE leased_at IS NOT NULL"

    def _insert_locked(self, rows: list[tuple[str, bytes]]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO refs (sample_id, ref) VALUES (?, ?)", rows)

    def _reclaim_locked(self, leased_before: float) -> None:
        self._db.execute(
            "UPDATE refs SET leased_at = NULL WHERE leased_at IS NOT NULL AND leased_at < ?", (leased_before,)
        )

    def _lease_locked(self, max_refs: int, now: float, partition: tuple[int, int] | None) -> list[bytes]:
        mine, values = ("", ()) if partition is None else ("AND dp_partition(sample_id, ?) = ?", partition[::-1])
        rows = self._db.execute(
            "UPDATE refs SET leased_at = ? WHERE seq IN "
            f"(SELECT seq FROM refs WHERE leased_at IS NULL {mine} ORDER BY seq LIMIT ?) RETURNING seq, ref",
            (now, *values, max_refs),
        ).fetchall()
        return [data for _, data in sorted(rows)]

    def _requeue_locked(self, ids: list[str]) -> None:
        self._db.executemany(
            "UPDATE refs SET leased_at = NULL, seq = (SELECT max(seq) + 1 FROM refs) WHERE sample_id = ?",
            [(sample_id,) for sample_id in ids],
        )

    def _remove_locked(self, ids: list[str]) -> None:
        self._db.executemany("DELETE FROM refs WHERE sample_id = ?", [(sample_id,) for sample_id in ids])
