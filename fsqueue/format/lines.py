"""Make and read the lines of the order: pure functions, no I/O.

    <stem> <mark>

A mark is room for four characters, which tell a ref's place in many partitions. Whoever appends a line leaves it
blank; the first get for a partition that comes to it fills it in. So each id is hashed once, and not by every
partition: the others find their lines by a pattern. A line may also be a stem alone, as other programs write it; one
that was handed out before the cursor came to it begins with ``#``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from math import gcd

from fsqueue.format.names import id_of, is_stem

DEAD = ord("#")
_BLANK = "...."
_UNTOLD = b"~~~~"  # of an id that was cut in its stem: only the file tells
_EXTRA = 1 + len(_BLANK)
_BLANK_END = f" {_BLANK}\n".encode()
_DIGITS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_BITS, _SEVENTHS, _ELEVENTHS = 4096, 63, 55  # without a common divisor, so together they tell all of their product
_blank_line = re.compile(rb"^([^#\n ][^\n ]*) \.{4}$", re.MULTILINE)
_written = re.compile(r"^([^# \n][^ \n]*)(?: [^\n]{4})?$", re.MULTILINE).findall
_dead_line = re.compile(rb"\n#[^\n]*(?=\n)")

find_line = re.compile(r"^([A-Za-z0-9_%-][A-Za-z0-9._%~-]*)(?: [^\n]{4})?(?:\n|\Z)", re.MULTILINE).search
"""Find the next line that may name a stem, its first group: one that is neither blank nor handed out."""


def lines_of(stems: Iterable[str]) -> bytes:
    """Return lines that name these, and a blank one before them, which ends what a torn append left behind."""
    return "\n".join(["", *(f"{stem} {_BLANK}" for stem in stems), ""]).encode("ascii")


def length_of(stem: str) -> int:
    """Return how many bytes a stem's line has."""
    return len(stem) + _EXTRA + 1


def stem_in(line: str) -> str | None:
    """Return the stem on a line, which comes without its line feed; None for a blank, dead, torn or foreign one."""
    stem = line[:-_EXTRA] if line[-_EXTRA : 1 - _EXTRA] == " " else line
    return stem if stem and is_stem(stem) else None


def stems_in(lines: bytes) -> Iterator[str]:
    """Yield the stems that lines name, those of dead ones not."""
    return filter(None, map(stem_in, lines.decode("ascii", "replace").split("\n")))


def written_in(lines: bytes) -> list[str]:
    """Return what lines name, but for dead ones; not all of that need be stems."""
    return _written(lines.decode("ascii", "replace"))


def dead_bytes_in(lines: str) -> int:
    """Return how long those of the lines are, with their line feeds, that were handed out already."""
    return sum(len(line) + 1 for line in lines.split("\n") if line.startswith("#"))


def without_dead(lines: bytes) -> bytes:
    """Return lines without those that were handed out already."""
    return _dead_line.sub(b"", b"\n" + lines)[1:]


def has_marks(lines: bytes) -> bool:
    """Return whether all lines have room for a mark, and none is blank."""
    blank_lines = lines.count(b"\n\n") + lines.startswith(b"\n")
    return lines.count(b" ") == lines.count(b"\n") - blank_lines and _BLANK_END not in lines


def filled(lines: bytes) -> bytes:
    """Return the same lines, at the same offsets, with a mark where there was room for one."""
    return _blank_line.sub(_fill, lines) if _BLANK_END in lines else lines


def _fill(found: re.Match[bytes]) -> bytes:
    stem = found[1].decode("ascii", "replace")
    if not is_stem(stem):
        return found[0]
    sample_id = id_of(stem)
    return b"%s %s" % (found[1], _UNTOLD if sample_id is None else mark_of(sample_id))


def mark_of(sample_id: str) -> bytes:
    """Return the mark of an id: its hash, as `dp_partition` takes it, modulo 64, by 64 modulo 64, modulo 63 and 55."""
    number = int.from_bytes(hashlib.sha1(sample_id.encode()).digest(), "big")
    bits, rest = number % _BITS, number % (_SEVENTHS * _ELEVENTHS)
    return bytes((_DIGITS[bits & 63], _DIGITS[bits >> 6], _DIGITS[rest % _SEVENTHS], _DIGITS[rest % _ELEVENTHS]))


@lru_cache(maxsize=1024)
def finder(index: int, count: int) -> Callable[[bytes], Iterator[re.Match[bytes]]] | None:
    """Return what finds the marks of a partition in lines; None where marks do not tell partitions of this count."""
    if (_BITS * _SEVENTHS * _ELEVENTHS) % count:
        return None
    low = gcd(count, _BITS)
    places = (
        _digits(index, min(low, 64), 64),
        _digits(index // 64, max(low // 64, 1), 64),
        _digits(index, gcd(count, _SEVENTHS), _SEVENTHS),
        _digits(index, gcd(count, _ELEVENTHS), _ELEVENTHS),
    )
    return re.compile(rb" (?:%s|%s)\n" % (b"".join(places), _UNTOLD)).finditer


def _digits(value: int, modulus: int, count: int) -> bytes:
    """Return a pattern for the digits, of so many, that are this value modulo something."""
    if modulus == 1:
        return b"."
    return b"[%s]" % re.escape(bytes(_DIGITS[digit] for digit in range(value % modulus, count, modulus)))
