"""The ledger: which samples were committed, and which of them were acknowledged as trained, at which step.

    metadata_store.py  the contract, and a ledger in memory
    file_store.py      `FileMetadataStore`, the ledger on files
    replica.py         what one process knows of it, and the transactions
    index.py           the ids in memory             entries.py  what records say
    log.py             appending durably             log_reader.py  locking, and reading what others append
    files.py           the directory and its files   snapshot.py  opening a large ledger again
    flock.py           waiting for the lock          noted.py  which ledger speaks for a queue

Two logs: ``commits`` holds the refs, each once, and never shrinks; ``acks`` holds acknowledgements and is compacted
when most of it says what fewer records could say. A transaction is one record, a line of JSON::

    jq -c '.refs[]?' ledger/commits-*.jsonl
"""

from fsqueue.control.ledger.file_store import LOCK_TIMEOUT_S, FileMetadataStore

__all__ = ["LOCK_TIMEOUT_S", "FileMetadataStore"]
