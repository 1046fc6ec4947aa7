"""Make and parse file names: pure functions, no I/O.

    pending/<id>.json        leased/<id>@<owner>+<claim>.json        done/<id>.json or done/<id>@<step>.json

``<id>``, called the *stem* here, is the sample id percent-encoded outside ``[A-Za-z0-9._-]`` (and a leading
dot); over 160 bytes it is cut to 120 bytes, ``~`` and 32 hex digits of the id's SHA-256. None of ``@``, ``+`` and
``/`` can occur in a stem or an owner, so a name never leads out of its directory and splits in one way only.
Names outside the grammar (dot files, editors' backups) parse to None and are left alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from fsqueue.errors import InvalidRefError

SUFFIX = ".json"
STEM_LIMIT = 160
OWNER_NAME_LIMIT = 64
FILE_NAME_LIMIT = 255
LEASED_EXTRA = FILE_NAME_LIMIT - STEM_LIMIT
"""How many bytes a leased name has besides the stem, at most."""
TIMED_OUT = "t"
RETURNED = "r"
DELAYED = "w"
NOBODY = "retry.0.000000"
"""The owner in the name of a ref that waits to be tried again: nobody has it."""
_CUT = 120

_PLAIN_STEM = r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,159}"
_PLAIN = re.compile(rf"{_PLAIN_STEM}\Z").match
_TO_ESCAPE = re.compile(rb"[^A-Za-z0-9._-]|\A\.")
_WHOLE = r"(?:[A-Za-z0-9_-]|%[0-9a-f]{2})(?:[A-Za-z0-9._-]|%[0-9a-f]{2})*"
_SHORTENED = r"[A-Za-z0-9_%-][A-Za-z0-9._%-]{119}~[0-9a-f]{32}"
_STEM = rf"(?:{_SHORTENED}|{_WHOLE})"
_OWNER = r"[A-Za-z0-9_%-][A-Za-z0-9._%-]*\.[0-9]+\.[0-9a-f]{6}"
_CLAIM = r"[0-9a-f]{1,16}(?:[tr]|w[0-9]{1,15})?|g[0-9a-f]{8}"

_is_stem = re.compile(_STEM + r"\Z").match
_is_owner = re.compile(_OWNER + r"\Z").match
_LEASED = rf"@({_OWNER})(?:\+({_CLAIM}))?\.json\Z"
_DONE = r"(?:@([0-9]+))?\.json\Z"
_parse_leased = re.compile(rf"({_STEM}){_LEASED}").match
_parse_plain_leased = re.compile(rf"({_PLAIN_STEM}){_LEASED}").match
_parse_done = re.compile(rf"({_STEM}){_DONE}").match
_parse_plain_done = re.compile(rf"({_PLAIN_STEM}){_DONE}").match


def stem_of(sample_id: str) -> str:
    """Return the stem of an id.

    Raises:
        InvalidRefError: the id is no string, is empty, or is not valid Unicode.
    """
    if not isinstance(sample_id, str) or not sample_id:
        raise InvalidRefError("<root>.sample_id", f"expected a non-empty string, found {sample_id!r}")
    if _PLAIN(sample_id):
        return sample_id
    try:
        raw = sample_id.encode()
    except UnicodeEncodeError as error:
        raise InvalidRefError("<root>.sample_id", f"not valid Unicode: {error}") from None
    escaped = _escape(raw)
    if len(escaped) <= STEM_LIMIT:
        return escaped
    return f"{escaped[:_CUT]}~{hashlib.sha256(raw).hexdigest()[:32]}"


def stems_of(sample_ids: Sequence[str]) -> Sequence[str]:
    """Return the stems of many ids, at less cost where all of them are plain.

    Raises:
        InvalidRefError: as `stem_of` does.
    """
    return sample_ids if all(map(_PLAIN, sample_ids)) else list(map(stem_of, sample_ids))


def id_of(stem: str) -> str | None:
    """Return the id that a stem was made from; None where the stem was cut, and only the file's content tells."""
    if "~" in stem:
        return None
    if "%" not in stem:
        return stem
    try:
        return unquote_to_bytes(stem).decode()
    except UnicodeDecodeError:
        return None


def owner_name(name: str) -> str:
    """Return a user's or host's name as it appears in owner names; escaped like an id, not cut."""
    return _escape(name.encode())


def _escape(raw: bytes) -> str:
    return _TO_ESCAPE.sub(lambda match: b"%%%02x" % match[0][0], raw).decode("ascii")


def is_stem(text: str) -> bool:
    return _PLAIN(text) is not None or (len(text) <= STEM_LIMIT and _is_stem(text) is not None)


def is_owner(text: str) -> bool:
    return _is_owner(text) is not None


def pid_of(owner: str) -> int:
    """Return the process id in an owner's name."""
    return int(owner.rsplit(".", 2)[1])


def ref_file(stem: str) -> str:
    return stem + SUFFIX


def leased_file(stem: str, owner: str, claim: str = "") -> str:
    return f"{stem}@{owner}+{claim}{SUFFIX}" if claim else f"{stem}@{owner}{SUFFIX}"


def owner_in(holder: str) -> str:
    """Return the owner of a lease that a ref's history names by its holder."""
    return holder.partition("+")[0]


class Lease(NamedTuple):
    """Hold what a name in leased/ says.

    Attributes:
        claim: tells this lease from all others of its owner: the serial number of one that the owner took, in hex,
            with a ``t`` behind it where it was taken from somebody whose time was up, and not looked at again yet,
            or an ``r`` where the lease has ended, and the ref is on its way back to pending/;
            or a random number with a ``w`` and milliseconds of Unix time behind it, where nobody has the ref, and it
            waits for that time;
            or ``g`` and eight hex digits, where it was given to the owner. Empty where somebody made the name by hand.
    """

    stem: str
    owner: str
    claim: str = ""

    @property
    def file(self) -> str:
        return leased_file(*self)

    @property
    def holder(self) -> str:
        """Return what a ref's history calls this lease."""
        return f"{self.owner}+{self.claim}" if self.claim else self.owner

    @property
    def is_timed_take_over(self) -> bool:
        """Return whether the file's stamp may still be that of the owner from whom this lease was taken."""
        return self.claim.endswith(TIMED_OUT)

    @property
    def is_returned(self) -> bool:
        """Return whether this lease has ended, and the ref is only waiting to get its name in pending/."""
        return self.claim.endswith(RETURNED)

    @property
    def due(self) -> float | None:
        """Return when a ref that waits for its time comes back to pending/, by the filesystem's clock; None: now."""
        _, waits, until_ms = self.claim.partition(DELAYED)
        return int(until_ms) / 1000 if waits else None

    @property
    def is_held(self) -> bool:
        """Return whether the owner has the ref: this lease has not ended."""
        return not self.is_returned and DELAYED not in self.claim


MARK_BYTES = 7
"""By how much a stem made by `beside` is longer, where it is not cut."""


def beside(stem: str, mark: str) -> str:
    """Return another stem for a ref, for where a name made of its own cannot be had."""
    marked = f"{stem}.{mark}"
    if "~" not in stem and len(marked) <= STEM_LIMIT:
        return marked
    return f"{stem[:_CUT]}~{hashlib.sha256(marked.encode()).hexdigest()[:32]}"


def may_be_beside(stem: str, of: str) -> bool:
    """Return whether a stem may be one that `beside` made of another; only the file's content tells."""
    if "~" in stem:
        return may_be_cut_beside(of) and stem[:_CUT] == of[:_CUT] and stem != of
    return len(stem) == len(of) + MARK_BYTES and stem.startswith(f"{of}.")


def may_be_cut_beside(of: str) -> bool:
    """Return whether a stem is so long that one that `beside` makes of it may be cut."""
    return len(of) > STEM_LIMIT - 1 - MARK_BYTES


def done_file(stem: str, step: int | None) -> str:
    return stem + SUFFIX if step is None else f"{stem}@{step}{SUFFIX}"


def parse_ref(name: str) -> str | None:
    """Return the stem of a name such as ``<id>.json``."""
    stem = name.removesuffix(SUFFIX)
    return stem if len(stem) != len(name) and is_stem(stem) else None


def parse_pending(name: str) -> str | None:
    """Return the stem of a name in pending/, also where a lease or an acked ref was moved back under its old name."""
    stem = parse_ref(name)
    if stem is not None or "@" not in name:
        return stem
    parsed = parse_leased(name) or parse_done(name)
    return parsed[0] if parsed else None


def parse_leased(name: str) -> Lease | None:
    """Return the stem, the owner and the claim of a name in leased/."""
    match = _parse_plain_leased(name) or _parse_leased(name)
    return Lease(match[1], match[2], match[3] or "") if match and len(match[1]) <= STEM_LIMIT else None


def parse_done(name: str) -> tuple[str, int | None] | None:
    """Return the stem and the optimizer step of a name in done/."""
    match = _parse_plain_done(name) or _parse_done(name)
    return (match[1], int(match[2]) if match[2] else None) if match and len(match[1]) <= STEM_LIMIT else None


_COUNTED = 512
_all_plain = re.compile(rf"(?:{_PLAIN_STEM}\.json\0)*\Z").match
_all_plain_done = re.compile(rf"(?:{_PLAIN_STEM}(?:@[0-9]+)?\.json\0)*\Z").match


def count_refs(listing: Sequence[str], parse: Callable[[str], object]) -> int:
    """Count the names that parse, by many at a time: most are plain ones."""
    return _count(listing, _all_plain, parse)


def count_done(listing: Sequence[str]) -> int:
    """Count the names of done refs."""
    return _count(listing, _all_plain_done, parse_done)


def _count(listing: Sequence[str], are_all: Callable[[str], object], parse: Callable[[str], object]) -> int:
    """Count the names that parse; are_all takes many, each with a NUL behind it, and says that all of them do."""
    parts = (listing[start : start + _COUNTED] for start in range(0, len(listing), _COUNTED))
    return sum(len(part) if are_all("\0".join(part) + "\0") else sum(map(bool, map(parse, part))) for part in parts)


def parse_owner(name: str) -> str | None:
    """Return the owner of a name in owners/."""
    owner = name[: -len(SUFFIX)]
    return owner if name.endswith(SUFFIX) and is_owner(owner) else None
