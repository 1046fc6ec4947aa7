"""Turn refs into bytes and back, with the bookkeeping that a ref's file gathers: pure functions, no I/O.

A file is the ref's JSON object and, once something happened to the ref, one reserved last key that begins a
line of its own::

    {"sample_id":"s17","run_id":"r1",...,"metadata":{}
    ,"_fsqueue":{"expiries":1,"history":[{"event":"expired","at":1760000000.0,"owner":"node12.4711.9f3a01+1f"}]}}

Invariant: everything before that last line feed is written once and never again. Bookkeeping is added by one
write in place, from the closing brace on. So a ref never has two files, and a write that was cut short costs the
history, not the ref: what precedes the last line feed, closed by braces, still decodes.

JSON turns tuples into lists. A ref that holds tuples where its type says Any names their paths in the same key, on
a line that is written with the ref and never again::

    {"sample_id":"s17",...,"metadata":{"span":[0,128]}
    ,"_fsqueue":{"tuples":[["metadata","span"]]
    ,"expiries":1,"history":[...]}}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property
from itertools import chain
from math import inf
from typing import Any, Generic, TypeVar, cast

import msgspec

from fsqueue.errors import CorruptRefError, InvalidArgumentError, InvalidRefError, UnreadableRefError
from fsqueue.format import names
from fsqueue.format.relaxed import relaxed_decoder
from fsqueue.format.roundtrip import (
    ChangedError,
    compare,
    eq_tells_all,
    equality_of,
    first_unencodable,
    format_path,
    full_name,
    restore_tuples,
)
from fsqueue.records import assert_no_tensors

R = TypeVar("R")

RESERVED = "_fsqueue"
HISTORY_LIMIT = 32
_WORDS_LIMIT = 4096
_BLANKS = b" \t\r\n"
_KEY = b'"_fsqueue"'
_MARK = b'\n,"_fsqueue":'
_TUPLES = b'\n,"_fsqueue":{"tuples":'
REPLACED = "replaced"
_ENDS_A_LEASE = frozenset(("expired", "failed", "released"))
_BEGINS_A_LIFE = frozenset(("requeued", "rewound"))
_encode = msgspec.json.Encoder().encode
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Event(msgspec.Struct, omit_defaults=True):
    """Say what happened to a ref once: expired, replaced, failed, discarded, requeued, released, rewound or
    repaired.

    Attributes:
        owner: whose lease ended, with its claim (``node12.4711.9f3a01+1f``); of other events, who caused it.
    """

    event: str
    at: float
    owner: str | None = None
    reason: str | None = None


class Bookkeeping(msgspec.Struct, omit_defaults=True):
    """Hold the value of the reserved key.

    Attributes:
        attempts: deliveries that failed since the ref was last (re)queued by hand.
        reason: why a dead letter is one.
        tuples: paths of values that were tuples where the type says Any, since JSON knows lists only.
        raw: a file's content, where that was no JSON object.
        expiries: deliveries since then whose lease ended otherwise, with its process or by time.
    """

    attempts: int = 0
    reason: str | None = None
    history: list[Event] = []
    tuples: list[list[str | int]] = []
    raw: str | None = None
    expiries: int = 0

    def add(self, event: Event) -> None:
        self.history = [*self.history, event][-HISTORY_LIMIT:]

    def tells_end_of(self, holders: set[str] | None) -> bool:
        """Return whether a lease of these holders, or any, has ended since the ref was put, requeued or rewound.

        A holder whose process was started again is none of them: what it did since then was thrown away.
        """
        for event in reversed(self.history):
            if event.event in _BEGINS_A_LIFE:
                return False
            ends = event.event in _ENDS_A_LEASE or (event.event == REPLACED and not holders)
            if ends and event.owner is not None and (not holders or event.owner in holders):
                return True
        return False

    def names_holder(self, holder: str) -> bool:
        """Return whether this very lease has ended, in whatever way; no other lease ever has its name."""
        return any(event.owner == holder for event in self.history)


def tells_of_an_end(data: bytes) -> bool:
    """Return whether a ref's file may tell that it was done or buried before: one that was put only does not."""
    return b'"requeued"' in data or b'"rewound"' in data


_decode_bookkeeping = msgspec.json.Decoder(Bookkeeping).decode


_NONE = msgspec.Raw(b"{}")


class _Object(msgspec.Struct):
    """Hold what of a JSON object matters here; the other values are skipped unread, as a ref's class skips them.

    A value may be one that nothing here could read: 1e400, an integer of thousands of digits, bytes that are no UTF-8.
    """

    sample_id: Any = None
    bookkeeping: msgspec.Raw = msgspec.field(name=RESERVED, default=_NONE)


_decode_object = msgspec.json.Decoder(_Object).decode


class Codec(Generic[R]):
    """Turn refs of one dataclass into bytes and back.

    Raises:
        InvalidArgumentError: ref_type is no dataclass with a sample_id, or has a field that JSON cannot carry.
    """

    def __init__(self, ref_type: type[R]) -> None:
        if not (isinstance(ref_type, type) and dataclasses.is_dataclass(ref_type)):
            raise InvalidArgumentError("ref_type", "a dataclass, the class itself", ref_type)
        fields = {f.name for f in dataclasses.fields(ref_type)}
        if "sample_id" not in fields or RESERVED in fields:
            raise InvalidArgumentError(
                "ref_type", f"a class with a field sample_id and none named {RESERVED}", ref_type
            )
        self.ref_type: type[R] = ref_type
        try:
            self._decode_strictly = msgspec.json.Decoder(ref_type).decode
            self._are_equal = equality_of(ref_type) if eq_tells_all(ref_type, set()) else None
        except (TypeError, NameError) as error:
            raise InvalidArgumentError("ref_type", "fields that JSON can carry", ref_type, f": {error}") from None

    def _decode(self, data: bytes) -> R:
        """Decode a ref; where it does not fit, once more without minding what the class's Literals list."""
        try:
            return self._decode_strictly(data)
        except msgspec.ValidationError:
            relaxed = self._relaxed
            if relaxed is None:
                raise
            return cast(R, relaxed(data))

    @cached_property
    def _relaxed(self) -> Callable[[bytes], Any] | None:
        with suppress(Exception):  # of a class that lets nobody derive from it: it is held to its words
            return relaxed_decoder(self.ref_type)
        return None

    def encode_all(self, refs: Iterable[R], *, at_most: float = inf) -> list[tuple[str, bytes]]:
        """Return the stem and the bytes of every ref.

        Raises:
            InvalidRefError: one of them cannot be put; it says which.
        """
        encoded: list[tuple[str, bytes]] = []
        for ref in refs:
            sample_id: Any = getattr(ref, "sample_id", None)
            try:
                data = self.encode(ref)
                if len(data) > at_most:
                    problem = f"{len(data)} bytes encoded, at most {at_most}: keep data in the feature store"
                    raise InvalidRefError("<root>", problem)
                encoded.append((names.stem_of(sample_id), data))
            except InvalidRefError as error:
                error.locate(len(encoded), sample_id)
                raise
        return encoded

    def encode(self, ref: R) -> bytes:
        """Return the bytes of a ref; decoding them gives an equal one.

        Raises:
            TensorInRefError: there is a tensor in it.
            InvalidRefError: it is of another type, or holds a value that JSON would change.
        """
        try:
            data: bytes = _encode(ref)
            if self._are_equal is not None and self._are_equal(self._decode_strictly(data), ref):
                return data + b"\n"
        except Exception:  # also of the class's own; what it was is found out with its place
            pass
        try:
            return self._encode_exactly(ref)
        except RecursionError:
            raise InvalidRefError("<root>", "nested too deeply, or in a circle: JSON cannot carry it") from None

    def _encode_exactly(self, ref: R) -> bytes:
        """Find out what the plain round trip changed: refuse it, or carry tuples by naming their paths."""
        if type(ref) is not self.ref_type:
            raise InvalidRefError(
                "<root>",
                f"expected {full_name(self.ref_type)}, found {full_name(type(ref))}: "
                "open the queue with ref_type= set to the class that you put",
            )
        assert_no_tensors(ref)
        try:
            data = _encode(ref)
        except (TypeError, ValueError) as error:
            where = first_unencodable(ref, "<root>")
            raise InvalidRefError(where, f"JSON cannot carry this: {error}") from None
        try:
            back = self._decode(data)
        except RecursionError:
            raise
        except Exception as error:
            raise InvalidRefError("<root>", f"does not fit {self.ref_type.__name__}: {words_of(error)}") from None
        tuples: list[list[str | int]] = []
        try:
            compare(ref, back, [], tuples)
        except ChangedError as error:
            raise InvalidRefError(format_path(ref, error.path), error.problem) from None
        if not tuples:
            return data + b"\n"
        return data[:-1] + _TUPLES + _encode(tuples) + b"}}\n"

    def decode(self, data: bytes) -> R:
        """Return the ref in a file's bytes.

        Raises:
            CorruptRefError: there is none, not even after setting aside torn bookkeeping.
            UnreadableRefError: there is one, which this class does not take.
        """
        try:
            if _KEY not in data:
                return self._decode(data)
            return self._decode_whole(data)
        except MemoryError:
            raise  # it says nothing about the ref
        except Exception as error:  # of whatever class, from the class's own __post_init__
            first = error
        for body in _possible_bodies(data):
            with suppress(Exception):
                return self._decode_whole(body)
        sample_id = _id_in(data)
        if sample_id is None:
            raise CorruptRefError(words_of(first)) from None
        raise UnreadableRefError(sample_id, full_name(self.ref_type), words_of(first)) from first

    def _decode_whole(self, data: bytes) -> R:
        ref = self._decode(data)
        if _KEY in data:
            restore_tuples(ref, split(data)[1].tuples)
        return ref


def tidy(text: object) -> str:
    """Cut somebody's words to what JSON can carry, and to `_WORDS_LIMIT` characters."""
    return str(text).encode("utf-8", "backslashreplace").decode()[:_WORDS_LIMIT]


def split(data: bytes) -> tuple[int, Bookkeeping]:
    """Return where a file's bookkeeping begins or would begin (at a closing brace), and what it says.

    Raises:
        CorruptRefError: the bytes hold no JSON object.
    """
    mark = data.rfind(_TUPLES)
    if mark >= 0:
        return _split_after_tuples(data, mark + len(_TUPLES))
    mark = data.rfind(_MARK)
    if mark >= 0 and _object(data[:mark] + b"}"):
        return mark, _bookkeeping(data[mark + len(_MARK) :].rstrip()[:-1])
    for body in chain((data.rstrip(_BLANKS),), _possible_bodies(data)):
        found = _object(body)
        if found:
            return len(body) - 1, _bookkeeping(found.bookkeeping)
    raise CorruptRefError("no JSON object with fields")


def _split_after_tuples(data: bytes, start: int) -> tuple[int, Bookkeeping]:
    line_end = data.find(b"\n", start)
    line = data[start:] if line_end < 0 else data[start:line_end]
    paths = line.removesuffix(b"}}")
    try:
        tuples = msgspec.json.decode(paths, type=list[list[str | int]])
    except UNDECODABLE:
        return start - len(_TUPLES), Bookkeeping()
    rest = data[start + len(paths) :]
    found = _bookkeeping(b"{" + rest[2:].rstrip()[:-1]) if rest.startswith(b"\n,") else Bookkeeping()
    found.tuples = tuples
    return start + len(paths), found


def _bookkeeping(data: bytes | msgspec.Raw) -> Bookkeeping:
    """Decode bookkeeping; what is torn, or not ours, counts as none."""
    try:
        return _decode_bookkeeping(data)
    except UNDECODABLE:
        return Bookkeeping()


def _possible_bodies(data: bytes) -> Iterator[bytes]:
    """Yield what the ref may be in a file whose bookkeeping is torn: up to a line feed, with its braces or without.

    Where the line feed itself was not written, the old closing brace still stands before the new rest.
    """
    data = data.rstrip(b"\0")
    ends = [data.rfind(_MARK), data.rfind(b"\n", 0, len(data.rstrip(b"\n"))), data.rfind(b"\n")]
    ends.append(data.rfind(b"," + _KEY + b":"))
    if _TUPLES in data:
        start = data.rfind(_TUPLES) + len(_TUPLES)
        ends = [data.find(b"\n", start), data.find(b"}", start), *ends]
    cut = [data[:end] for end in dict.fromkeys(ends) if end > 0]
    yield from (body + braces for body in cut for braces in (b"}", b"}}", b""))


def bookkeeping_tail(bookkeeping: Bookkeeping) -> bytes:
    """Return what the file must hold from the offset on that `split` returns."""
    if not bookkeeping.tuples:
        return _MARK + _encode(bookkeeping) + b"}\n"
    rest = _encode(msgspec.structs.replace(bookkeeping, tuples=[]))
    return b"}}\n" if rest == b"{}" else b"\n," + rest[1:] + b"}\n"


def whole_id(data: bytes) -> str | None:
    """Return the id of the ref in a file; None where it has none that is usable, or its bookkeeping does not decode."""
    try:
        sample_id = _id_with_bookkeeping(data)
        names.stem_of(sample_id)
    except (*UNDECODABLE, InvalidRefError):
        return None
    return cast(str, sample_id)


def is_whole(data: bytes, sample_id: str) -> bool:
    """Return whether `whole_id` of a file is this usable id, at less cost."""
    try:
        return bool(_id_with_bookkeeping(data) == sample_id)
    except UNDECODABLE:
        return False


def _id_with_bookkeeping(data: bytes) -> Any:
    """Return the id in a JSON object whose bookkeeping decodes."""
    found = _decode_object(data)
    if found.bookkeeping is not _NONE:
        _decode_bookkeeping(found.bookkeeping)
    return found.sample_id


def wrap_raw(data: bytes, bookkeeping: Bookkeeping) -> bytes:
    """Make a dead letter of bytes that are no JSON object: valid JSON with the bytes inside as text."""
    bookkeeping.raw = data.decode("utf-8", "backslashreplace")
    return _encode({RESERVED: bookkeeping}) + b"\n"


def _object(data: bytes) -> _Object | None:
    """Return what a JSON object with fields holds; None where the bytes hold something else."""
    try:
        found = _decode_object(data)
    except UNDECODABLE:
        return None
    if found.sample_id is None and data.rstrip(_BLANKS)[:-1].rstrip(_BLANKS).endswith(b"{"):
        return None
    return found


def _id_in(data: bytes) -> str | None:
    """Return the id of the ref in a file, whatever its class; None where it has none that is usable."""
    for body in chain((data,), _possible_bodies(data)):
        found = _object(body)
        if found is not None:
            with suppress(InvalidRefError):
                names.stem_of(found.sample_id)
                return str(found.sample_id)
            return None
    return None


def words_of(error: Exception) -> str:
    """Return what an error says; the name of its class too, where that is not the decoder's."""
    return str(error) if isinstance(error, UNDECODABLE) else f"{type(error).__name__}: {error}"
