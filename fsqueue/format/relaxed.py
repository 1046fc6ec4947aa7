"""Decode refs with values outside a `Literal` of their class: pure functions, no I/O.

Dataclasses do not check their annotations, so controllers put such values, and their refs have to come back. What
kind of value it is still counts: text where the `Literal` lists text. A class is decoded as a subclass whose `Literal`
annotations are widened to their values' types, and what was decoded is then made an instance of the class itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec


def relaxed_decoder(ref_type: type[Any]) -> Callable[[bytes], Any] | None:
    """Return what decodes bytes into refs of a class whatever its Literals list; None where it has none."""
    widened: dict[type[Any], type[Any]] = {}
    wide = _widen(ref_type, widened)
    if wide is ref_type:
        return None
    decode = msgspec.json.Decoder(wide).decode
    own = {wide: narrow for narrow, wide in widened.items() if wide is not narrow}

    def decode_as_own(data: bytes) -> Any:
        ref = decode(data)
        _narrow(ref, own)
        return ref

    return decode_as_own


def _widen(hint: Any, widened: dict[type[Any], type[Any]]) -> Any:
    """Return a type without Literals; the same object where it has none.

    Args:
        widened: what became of each dataclass.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return Union[tuple(type(value) for value in args)]  # noqa: UP007  # the operator takes no tuple
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _widen_class(hint, widened)
    if origin is Annotated:
        inner = _widen(args[0], widened)
        return hint if inner is args[0] else Annotated[(inner, *args[1:])]
    parts = tuple(_widen(arg, widened) if arg is not Ellipsis else arg for arg in args)
    if all(part is arg for part, arg in zip(parts, args, strict=True)):
        return hint
    if origin in (Union, UnionType):
        return Union[parts]  # noqa: UP007
    indexable: Any = origin
    return indexable[parts] if isinstance(origin, type) else hint


def _widen_class(narrow: type[Any], widened: dict[type[Any], type[Any]]) -> type[Any]:
    if narrow not in widened:
        # One that holds itself has to be known before its fields are looked at.
        wide = type(narrow.__name__, (narrow,), {"__slots__": (), "__module__": narrow.__module__})
        widened[narrow] = wide
        hints = get_type_hints(narrow, include_extras=True)
        wide.__annotations__ = {name: _widen(hint, widened) for name, hint in hints.items()}
        if all(wide.__annotations__[name] is hint for name, hint in hints.items()):
            widened[narrow] = narrow
    return widened[narrow]


def _narrow(value: Any, own: dict[type[Any], type[Any]]) -> None:
    """Make every record in a value an instance of the class that its own was widened from."""
    if type(value) in own:
        object.__setattr__(value, "__class__", own[type(value)])
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _narrow(getattr(value, field.name), own)
    elif isinstance(value, dict):
        for part in value.values():
            _narrow(part, own)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            _narrow(part, own)
