"""Keep one process's copy of a ledger, by reading both logs, and make its transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import msgspec

from fsqueue.control.errors import LedgerFormatError
from fsqueue.control.ledger import snapshot
from fsqueue.control.ledger.entries import Ack, Commit, ack_body, commit_body, parse_ack, parse_commit, ref_offsets
from fsqueue.control.ledger.files import KINDS, LogFiles, Settings, open_directory
from fsqueue.control.ledger.index import NO_STEP, Index
from fsqueue.control.ledger.log import Log
from fsqueue.control.ledger.log_reader import Spans
from fsqueue.disk.directory import UNREACHABLE
from fsqueue.disk.fileops import FileOps

COMPACT_FROM_BYTES = 1 << 22
SNAPSHOT_EVERY_BYTES = 1 << 26
IDS_A_RECORD = 4096


class Replica:
    """Hold an open ledger. Transactions need the lock of their log, which `Log.acquire` takes.

    Attributes:
        index: what is committed and what is acknowledged.
        global_step, optimizer_durable: the marker.
        commits, acks: the logs.
        settings: those of the ledger.
    """

    def __init__(
        self, ops: FileOps, path: str, durable: bool, lock_timeout_s: float, same_as: Settings | None = None
    ) -> None:
        self.index = Index()
        self._ops = ops
        self._saved_bytes = 0
        self.global_step: int | None = None
        self.optimizer_durable = False
        self._root, self.settings = open_directory(ops, path, durable, lock_timeout_s, same_as)
        files = {kind: LogFiles(ops, self._root, kind, durable) for kind in KINDS}
        self.commits = Log(files["commits"], lock_timeout_s, self._receive_commits, self._begin_commits)
        self.acks = Log(files["acks"], lock_timeout_s, self._receive_acks, self._begin_acks)

    # -- reading ------------------------------------------------------------------------------------------------

    def _receive_commits(self, data: bytes, spans: Spans, offset: int) -> None:
        all_of_them = Commit([], [], [])
        offsets: list[int] = []
        for start, end in spans:
            try:
                commit, refs_at = parse_commit(data, start, end)
            except msgspec.DecodeError as error:
                raise self._unknown("commits", offset + start, error) from None
            all_of_them.ids += commit.ids
            all_of_them.sizes += commit.sizes
            all_of_them.weights += commit.weights
            offsets += ref_offsets(commit.sizes, offset + refs_at)
        self.index.commit(all_of_them.ids, offsets, all_of_them.sizes, all_of_them.weights)

    def _receive_acks(self, data: bytes, spans: Spans, offset: int) -> None:
        for start, end in spans:
            try:
                ack = parse_ack(data, start, end)
            except msgspec.DecodeError as error:
                raise self._unknown("acks", offset + start, error) from None
            self._apply(ack)

    def _apply(self, ack: Ack) -> list[str]:
        """Apply one record; returns the ids whose acknowledgement it takes back."""
        if ack.forget_after_step is not None:
            if self.global_step is not None:
                self.global_step = min(self.global_step, ack.forget_after_step)
            return self.index.forget_acks(ack.forget_after_step)
        self.index.ack(ack.ids, NO_STEP if ack.global_step is None else ack.global_step)
        if ack.global_step is not None:
            self.global_step = ack.global_step
        self.optimizer_durable = ack.optimizer_durable
        return []

    def _begin_commits(self) -> int:
        self.index.forget_commits()
        self._saved_bytes = snapshot.load(self._ops, self._root, self.index, self.commits)
        return self._saved_bytes

    def _begin_acks(self) -> int:
        self.index.forget_all_acks()
        self.global_step, self.optimizer_durable = None, False
        return 0

    def save_if_worthwhile(self) -> None:
        """Spare the next opening the reading of what was committed since the last snapshot."""
        if self.commits.end_bytes - self._saved_bytes >= SNAPSHOT_EVERY_BYTES and self.commits.fd >= 0:
            self._saved_bytes = self.commits.end_bytes
            snapshot.save(self._ops, self._root, self.index, self.commits)

    def _unknown(self, kind: str, offset: int, error: Exception) -> LedgerFormatError:
        return LedgerFormatError(
            self._root.path,
            f"has a record in {kind} at byte {offset} that this fsqueue does not know ({error}): upgrade fsqueue",
        )

    # -- transactions -------------------------------------------------------------------------------------------

    def commit(self, ids: list[str], refs: list[bytes], weights: list[int]) -> None:
        """Record samples that are not committed yet."""
        entry = Commit(ids, [len(data) for data in refs], weights)
        body, refs_at = commit_body(entry, refs)
        offset = self.commits.append(body)
        self.index.commit(ids, ref_offsets(entry.sizes, offset + refs_at), entry.sizes, weights)

    def acknowledge(self, ack: Ack) -> list[str]:
        """Record an acknowledgement, or the taking back of some; returns the ids taken back."""
        self.acks.append(ack_body(ack))
        forgotten = self._apply(ack)
        least_bytes = self.index.acked_chars + 3 * self.index.acked
        if self.acks.end_bytes > max(COMPACT_FROM_BYTES, 2 * least_bytes):
            self.compact()
        return forgotten

    def compact(self) -> None:
        """Rewrite the acknowledgements into as few records as say the same."""
        self.acks.replace(self._compacted())

    def _compacted(self) -> Iterator[bytes]:
        for step, ids in self.index.acked_by_step().items():
            for first in range(0, len(ids), IDS_A_RECORD):
                yield ack_body(Ack(ids[first : first + IDS_A_RECORD], None if step == NO_STEP else step))
        yield ack_body(Ack([], self.global_step, self.optimizer_durable))

    def is_out_of_reach(self) -> bool:
        """Return whether the descriptors lead nowhere any more, as after an NFS export, or a mount, was made anew."""
        try:
            self._ops.fstat(self._root.fd)
        except OSError as error:
            return error.errno in UNREACHABLE
        return False

    def drop(self) -> None:
        """Close all, in whatever state an interrupted call has left it; no lock stays held."""
        for log in (self.commits, self.acks):
            with suppress(OSError):
                log.drop()
        with suppress(OSError):
            self._root.close()

    def close(self) -> None:
        self.commits.close()
        self.acks.close()
        self._root.close()
