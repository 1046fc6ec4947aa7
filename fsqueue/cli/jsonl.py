"""Read sample refs from JSON Lines, checking each line for all that a put would refuse, and for mistyped keys."""

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
    """Say why a line holds no sample ref.

    Attributes:
        number: the line's, from 1.
        where: the path inside the record, ``$`` being the record.
    """

    number: int
    where: str
    problem: str


class LineReader:
    """Read lines into sample refs."""

    def __init__(self) -> None:
        self._codec = Codec(SampleRef)
        self._decode = msgspec.json.Decoder(SampleRef).decode
        self._decode_any = msgspec.json.Decoder().decode

    def read(self, number: int, line: bytes) -> SampleRef | BadLine:
        """Read the line of this number."""
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
    """Return the path of the first key that reading dropped, but for a file's own bookkeeping, which is meant to be."""
    if not isinstance(given, dict) or not isinstance(kept, dict):
        return None
    for key, value in given.items():
        path = f"{where}.{key}"
        found = _unknown_key(value, kept[key], path) if key in kept else path
        if found and found != f"$.{RESERVED}":
            return found
    return None
