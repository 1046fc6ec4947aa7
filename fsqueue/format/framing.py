"""Frame the lines of logs and of packed refs with checksums: pure functions, no I/O.

A record is one line of JSON that begins with its own checksum and length, so that it verifies by itself and
`jq` reads it all the same::

    {"crc":"9d1c5fb2","len":"0000028a","ids":["s17"],...}

``len`` is the length of the line in bytes with its line feed, ``crc`` the CRC-32 of everything from ``"len"`` to
that line feed, both in lower-case hex. A line feed occurs only at the end. After the last record there may be
further line feeds, written in advance so that the next append need not make the file longer.
"""

from __future__ import annotations

from zlib import crc32

_START = b'{"crc":"'
_LEN = b'","len":"'
_CRC_FROM = 18
PREFIX_BYTES = 35
SHORTEST_BYTES = PREFIX_BYTES + 2
RECORD_LIMIT = 1 << 31


def frame(body: bytes) -> bytes:
    """Return the record whose fields are body, such as ``"ids":["s17"]``."""
    length = PREFIX_BYTES + len(body) + 2
    if length > RECORD_LIMIT:
        raise ValueError(f"a transaction of {length} bytes is over the limit of {RECORD_LIMIT}: split the batch")
    rest = b'"len":"%08x",%s}\n' % (length, body)
    return b'{"crc":"%08x",%s' % (crc32(rest), rest)


def scan(data: bytes) -> list[tuple[int, int]]:
    """Return (start, end) of the whole records at the beginning of data, up to the first byte that is in none."""
    found: list[tuple[int, int]] = []
    start, size = 0, len(data)
    view = memoryview(data)
    while data[start : start + 8] == _START and data[start + 16 : start + 25] == _LEN:
        try:
            end = start + int(data[start + 25 : start + 33], 16)
        except ValueError:
            break
        if not start + SHORTEST_BYTES <= end <= size:
            break
        if data[start + 8 : start + 16] != b"%08x" % crc32(view[start + _CRC_FROM : end]):
            break
        found.append((start, end))
        start = end
    return found


def find_later(data: bytes) -> int | None:
    """Return where a whole record begins in data after its first byte; None where there is none."""
    start = data.find(_START, 1)
    while start >= 0:
        if scan(data[start:]):
            return start
        start = data.find(_START, start + 1)
    return None


def fields(data: bytes, start: int, end: int) -> bytes:
    """Return the JSON object of a record's own fields, without checksum and length."""
    return b"{" + data[start + PREFIX_BYTES : end - 1]
