"""Read a ref's file without knowing the ref's type: pure functions, no I/O."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from fsqueue.errors import CorruptRefError, InvalidRefError
from fsqueue.format import names
from fsqueue.format.codec import RESERVED, UNDECODABLE, Bookkeeping, split

_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Place(NamedTuple):
    """Hold what a file's name in a state's directory says.

    Attributes:
        owner: who leases the ref; of one that waits for its time, who failed it.
        due: when a ref that waits comes back to pending/, by the filesystem's clock; None: it does not wait.
    """

    stem: str
    owner: str | None = None
    step: int | None = None
    due: float | None = None


class RefSight(NamedTuple):
    """Hold what a ref file's bytes show.

    Attributes:
        fields: the JSON object without the reserved key; None where there is none.
        sample_id: None where the object has no usable one.
        bookkeeping: as far as it decodes.
        torn: the bookkeeping does not decode, though the ref before it does.
        problem: why this is no ref; None where it is one.
    """

    fields: dict[str, Any] | None
    sample_id: str | None
    bookkeeping: Bookkeeping
    torn: bool
    problem: str | None


def place_of(state: str, name: str) -> Place | None:
    """Parse a name in a state's directory; None outside the grammar."""
    if state == "leased":
        leased = names.parse_leased(name)
        return Place(leased.stem, owner=leased.owner, due=leased.due) if leased else None
    if state == "done":
        done = names.parse_done(name)
        return Place(done[0], step=done[1]) if done else None
    stem = names.parse_pending(name) if state == "pending" else names.parse_ref(name)
    return Place(stem) if stem else None


def sight(data: bytes) -> RefSight:
    """Look at a file's bytes, setting torn bookkeeping aside."""
    try:
        offset, bookkeeping = split(data)
        fields, torn = _fields(data, offset)
    except CorruptRefError:
        return RefSight(None, None, Bookkeeping(), False, "holds no JSON object" if data.strip() else "is empty")
    try:
        names.stem_of(fields.get("sample_id", ""))
    except InvalidRefError:
        return RefSight(fields, None, bookkeeping, torn, "has no usable sample_id")
    return RefSight(fields, fields["sample_id"], bookkeeping, torn, None)


def _fields(data: bytes, offset: int) -> tuple[dict[str, Any], bool]:
    """Return the fields without the reserved key, and whether the bookkeeping is torn."""
    try:
        fields = _values(data)
        msgspec.convert(fields.pop(RESERVED, {}), Bookkeeping)
        return fields, False
    except (*UNDECODABLE, TypeError):
        pass
    for braces in (b"}", b"}}"):  # the paths of tuples come before the offset, under the reserved key
        with suppress(*UNDECODABLE):
            fields = _values(data[:offset] + braces)
            fields.pop(RESERVED, None)
            return fields, True
    raise CorruptRefError("no JSON object with fields")


def _values(data: bytes) -> dict[str, Any]:
    """Decode the fields of a JSON object; a value that cannot be decoded stays as its text."""
    with suppress(*UNDECODABLE):
        return msgspec.json.decode(data, type=dict[str, Any])
    try:
        raw = _decode_raw(data)
    except UnicodeDecodeError:
        raw = _decode_raw(data.decode("utf-8", "replace").encode())
    return {key: _value(value) for key, value in raw.items()}


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except UNDECODABLE:
        return bytes(raw).decode("utf-8", "replace")


def same_ref(one: bytes, other: bytes) -> bool:
    """Return whether two files hold the same ref, whatever their bookkeeping says."""
    first, second = sight(one), sight(other)
    return first.problem is None and second.problem is None and first.fields == second.fields


def type_name(status: os.stat_result) -> str:
    """Name the kind of a directory entry that is no regular file."""
    kinds = (
        (stat.S_ISDIR, "directory"),
        (stat.S_ISLNK, "symbolic link"),
        (stat.S_ISFIFO, "FIFO"),
        (stat.S_ISSOCK, "socket"),
    )
    return next((word for test, word in kinds if test(status.st_mode)), "device")


def allows(status: os.stat_result, *, write: bool) -> bool:
    """Return whether the mode lets this user read (and write) a file."""
    if os.geteuid() == 0:
        return True
    wanted = 0o6 if write else 0o4
    if status.st_uid == os.geteuid():
        wanted <<= 6
    elif status.st_gid == os.getegid() or status.st_gid in os.getgroups():
        wanted <<= 3
    return status.st_mode & wanted == wanted
