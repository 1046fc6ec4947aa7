"""Sample refs from JSON Lines: each line is checked for everything that a put would refuse, and for typing errors."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import msgspec

from fsqueue.errors import InvalidRefError
from fsqueue.format.codec import RESERVED, UNDECODABLE, Codec
from fsqueue.format.names import stem_of
from fsqueue.records import SampleRef

_split_path = re.compile(r"(.*) - at `([^`]+)`\Z", re.DOTALL).match


class BadLine(NamedTuple):
    """Why a line holds no sample ref.

    Attributes:
        number: the line's, from 1.
        where: the path inside the record, ``$`` being the record.
    """

    number: int
    where: str
    problem: str


class LineReader:
    """Reads lines into sample refs."""

    def __init__(self) -> None:
        self._codec = Codec(SampleRef)
        self._decode = msgspec.json.Decoder(SampleRef).decode
        self._decode_any = msgspec.json.Decoder().decode

    def read(self, number: int, line: bytes) -> SampleRef | BadLine:
        try:
            ref = self._decode(line)
            stem_of(ref.sample_id)
            written = self._codec.encode(ref)
            unknown = _unknown_key(self._decode_any(line), self._decode_any(written), "$")
        except UNDECODABLE as error:
            match = _split_path(str(error))
            return BadLine(number, match[2], match[1]) if match else BadLine(number, "$", str(error))
        except InvalidRefError as error:
            return BadLine(number, error.where.replace("<root>", "$"), str(error).removeprefix(f"{error.where}: "))
        return BadLine(number, unknown, "a sample ref has no such key") if unknown else ref


def _unknown_key(given: Any, kept: Any, where: str) -> str | None:
    """The path of the first key that reading the record dropped; a file's own bookkeeping is meant to be."""
    if not isinstance(given, dict) or not isinstance(kept, dict):
        return None
    for key, value in given.items():
        path = f"{where}.{key}"
        if key not in kept:
            if path == f"$.{RESERVED}":
                continue
            return path
        found = _unknown_key(value, kept[key], path)
        if found:
            return found
    return None
