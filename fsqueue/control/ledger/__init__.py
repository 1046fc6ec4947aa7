"""The ledger: which samples were committed, and which of them were acknowledged as trained, at which step."""

from fsqueue.control.ledger.file_store import LOCK_TIMEOUT_S, FileMetadataStore

__all__ = ["LOCK_TIMEOUT_S", "FileMetadataStore"]
