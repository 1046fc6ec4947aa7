"""Keep a copy of the index of the commit log, so that opening a large ledger does not read all refs again.

``commits.index`` is a hint: it may be missing, torn or out of date, and is believed only when it verifies and the
record that it ends with stands in the log as it did. Its first line is JSON, then come the ids, and three arrays.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from itertools import accumulate, pairwise
from zlib import crc32

import msgspec

from fsqueue.control.ledger.files import CHUNK_BYTES
from fsqueue.control.ledger.index import Index
from fsqueue.control.ledger.log import Log
from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps
from fsqueue.disk.publish import replace_file

NAME = "commits.index"
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Head(msgspec.Struct, rename={"file": "segment"}):
    """Say what a snapshot is of.

    Attributes:
        file: the log's file.
        last_bytes: where its last record begins.
        end_bytes: where that record ends.
        last_crc: of that record.
        byteorder: of the arrays.
        lengths: of the four parts that follow, in bytes.
        crc: of those parts.
    """

    file: str
    last_bytes: int
    end_bytes: int
    last_crc: int
    byteorder: str
    lengths: list[int]
    crc: int


def save(ops: FileOps, root: Directory, index: Index, log: Log) -> None:
    """Write the snapshot; where that fails, the next opening takes longer, and nothing else."""
    parts = [msgspec.json.encode(list(index.numbers)), *index.places_as_bytes()]
    body = b"".join(parts)
    with suppress(OSError):
        last_crc = crc32(log.read(log.end_bytes - log.last_bytes, log.last_bytes))
        lengths = [len(part) for part in parts]
        head = _Head(log.name, log.last_bytes, log.end_bytes, last_crc, sys.byteorder, lengths, crc32(body))
        replace_file(ops, root, NAME, msgspec.json.encode(head) + b"\n" + body, durable=False)


def load(ops: FileOps, root: Directory, index: Index, log: Log) -> int:
    """Fill an empty index from the snapshot; returns where to go on reading the log, 0 where it cannot be believed."""
    try:
        line, _, body = _read(ops, root).partition(b"\n")
        head = msgspec.json.decode(line, type=_Head)
        if (head.file, head.byteorder) != (log.name, sys.byteorder) or crc32(body) != head.crc:
            return 0
        if crc32(log.read(head.end_bytes - head.last_bytes, head.last_bytes)) != head.last_crc:
            return 0
        ids, *places = _split(body, head.lengths)
        index.restore(msgspec.json.decode(ids, type=list[str]), places)
    except (OSError, ValueError):
        return 0
    return head.end_bytes


def _read(ops: FileOps, root: Directory) -> bytes:
    fd = ops.open(NAME, _FLAGS, dir_fd=root.fd)
    try:
        parts = [ops.read(fd, CHUNK_BYTES)]
        while parts[-1]:
            parts.append(ops.read(fd, CHUNK_BYTES))
        return b"".join(parts)
    finally:
        ops.close_read(fd)


def _split(body: bytes, lengths: list[int]) -> list[bytes]:
    ends = list(accumulate(lengths, initial=0))
    return [body[start:end] for start, end in pairwise(ends)]
