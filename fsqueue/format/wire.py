"""Carry refs of classes that JSON cannot carry as they are, as wire records: pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from fsqueue.errors import InvalidArgumentError, InvalidRefError, UnreadableRefError
from fsqueue.format.codec import Codec, words_of
from fsqueue.format.roundtrip import full_name

R = TypeVar("R")
W = TypeVar("W")


class RefCodec(Protocol[R, W]):
    """Turn refs of a foreign class into wire records and back.

    Attributes:
        wire_type: the records' class, one that `FileSampleRefQueue` would take as ref_type.
    """

    wire_type: type[W]

    def to_wire(self, ref: R) -> W:
        """Return a record that says all that the ref says, under the same sample_id."""

    def from_wire(self, wire: W) -> R:
        """Return a ref that is equal to the one that the record was made of."""


class WireCodec(Codec[R]):
    """Encode the wire records of refs; each is turned back and compared before it is put.

    Attributes:
        ref_type: the wire records' class, which the queue knows.
    """

    def __init__(self, given: RefCodec[R, Any]) -> None:
        if isinstance(given, type) or not all(hasattr(given, name) for name in ("wire_type", "to_wire", "from_wire")):
            raise InvalidArgumentError("codec", "an object with wire_type, to_wire and from_wire", given)
        super().__init__(given.wire_type)
        self._given = given

    def encode(self, ref: R) -> bytes:
        wire = self._turned("to_wire", self._given.to_wire, ref)
        if getattr(wire, "sample_id", None) != getattr(ref, "sample_id", None):
            raise InvalidRefError("<root>.sample_id", "has to be the same in its wire record")
        data = super().encode(wire)
        back = self._turned("from_wire", self._given.from_wire, super().decode(data))
        if type(back) is not type(ref) or back != ref:
            raise InvalidRefError("<root>", f"would come back from its wire record as {back!r}")
        return data

    def _turned(self, call: str, turn: Callable[[Any], Any], value: Any) -> Any:
        try:
            return turn(value)
        except MemoryError:
            raise  # it says nothing about the ref
        except Exception as error:  # of whatever class
            problem = f"{full_name(type(self._given))}.{call} does not take it: {words_of(error)}"
            raise InvalidRefError("<root>", problem) from error

    def decode(self, data: bytes) -> R:
        wire: Any = super().decode(data)
        try:
            return self._given.from_wire(wire)
        except MemoryError:
            raise
        except Exception as error:
            raise UnreadableRefError(wire.sample_id, full_name(type(self._given)), words_of(error)) from error


def codec_of(ref_type: type[R], given: RefCodec[R, Any] | None) -> Codec[R]:
    """Return what encodes refs of a class as they are, or by way of wire records where a `RefCodec` is given."""
    return Codec(ref_type) if given is None else WireCodec(given)
