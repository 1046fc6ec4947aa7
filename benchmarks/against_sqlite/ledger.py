"""A SQLite ledger with the contract of fsqueue's, to measure it against.

Tables as controllers have them today: one table of committed refs, one of acknowledged ids, one of markers; WAL,
``synchronous=FULL``, one transaction a call, prepared statements, and fsqueue's codec.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any

from fsqueue import SampleRef
from fsqueue.format.codec import Codec


class SqliteMetadataStore:
    """Commits, acknowledgements and the marker in one database file; a batch is one transaction."""

    def __init__(self, path: str) -> None:
        self._codec: Codec[SampleRef] = Codec(SampleRef)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(
            """
            CREATE TABLE IF NOT EXISTS committed (sample_id TEXT PRIMARY KEY, ref BLOB NOT NULL);
            CREATE TABLE IF NOT EXISTS acked (sample_id TEXT PRIMARY KEY);
            CREATE TABLE IF NOT EXISTS marker (name TEXT PRIMARY KEY, value INTEGER);
            """
        )

    def commit_samples(self, refs: Iterable[SampleRef]) -> list[bool]:
        rows = [(ref.sample_id, self._codec.encode(ref)) for ref in refs]
        self._db.execute("BEGIN IMMEDIATE")
        statement = "INSERT OR IGNORE INTO committed VALUES (?, ?)"
        fresh = [self._db.execute(statement, row).rowcount == 1 for row in rows]
        self._db.execute("COMMIT")
        return fresh

    def record_train_ack(self, sample_ids: Iterable[str], *, global_step: int | None, optimizer_durable: bool) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany("INSERT OR IGNORE INTO acked VALUES (?)", [(sample_id,) for sample_id in sample_ids])
        markers = [("global_step", global_step), ("optimizer_durable", int(optimizer_durable))]
        self._db.executemany("INSERT OR REPLACE INTO marker VALUES (?, ?)", markers)
        self._db.execute("COMMIT")

    def committed_count(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM committed").fetchone()[0])

    def durable_marker(self) -> dict[str, Any]:
        found = dict(self._db.execute("SELECT name, value FROM marker").fetchall())
        acked = {sample_id for (sample_id,) in self._db.execute("SELECT sample_id FROM acked")}
        return {
            "acked": acked,
            "global_step": found.get("global_step"),
            "optimizer_durable": bool(found.get("optimizer_durable")),
        }

    def close(self) -> None:
        self._db.close()


class PlainSqliteMetadataStore(SqliteMetadataStore):
    """The design in use: controllers commit sample by sample, so a batch is as many transactions."""

    def commit_samples(self, refs: Iterable[SampleRef]) -> list[bool]:
        return [super(PlainSqliteMetadataStore, self).commit_samples([ref])[0] for ref in refs]
