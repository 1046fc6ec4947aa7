"""Describe a class of refs, and tell whether another class fits what was put as it: pure functions, no I/O.

A description is flat. A field of a record inside a field is named by its path, and ``*`` stands for the items of a
list or the values of an object::

    {"name":"fsqueue.records.SampleRef","fields":[{"name":"sample_id","type":"str","json":["string"],"required":true},
    ...{"name":"feature_specs.*.dtype","type":"str","json":["string"],"required":true}...]}
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Any, Literal, cast

import msgspec

from fsqueue.format.roundtrip import full_name

Use = Literal["put", "get"]

_LABELS = {
    ("string",): "Str Bytes ByteArray MemoryView DateTime Date Time UUID",
    ("number", "string"): "TimeDelta Decimal",
    ("number",): "Int Float",
    ("array",): "List Set FrozenSet VarTuple Tuple NamedTuple",
    ("object",): "Dict TypedDict Dataclass Struct",
    ("boolean",): "Bool",
    ("null",): "None",
}
_KINDS = {label: list(kinds) for kinds, labels in _LABELS.items() for label in labels.split()}
_KIND_OF_VALUE = {bool: "boolean", int: "number", float: "number", str: "string", type(None): "null"}
_RECORDS = ("Dataclass", "Struct", "TypedDict")


class Field(msgspec.Struct, frozen=True):
    """Describe one field.

    Attributes:
        name: its path from the ref.
        type: its annotation, for people.
        json: the kinds of JSON value that it takes; "any" where that cannot be told.
        required: there is no default.
    """

    name: str
    type: str
    json: list[str]
    required: bool


class RefType(msgspec.Struct, frozen=True):
    """Describe a class; its name is for people, its fields decide."""

    name: str
    fields: list[Field]


def describe(ref_type: type[Any]) -> RefType:
    """Return the description of a class that a `Codec` takes."""
    return _describe(cast(Hashable, ref_type))


@lru_cache(maxsize=16)
def _describe(ref_type: Any) -> RefType:
    from msgspec import inspect  # takes as long as the rest of msgspec; a handle that only looks needs none of it

    return RefType(full_name(ref_type), list(_record(inspect.type_info(ref_type), "", (ref_type,))))


def misfit(stored: RefType, given: RefType, use: Use) -> str | None:
    """Return why a class does not fit a queue's, to put refs or to get them; None where it may fit.

    To get refs, the class may require no field that the queue's lacks; to put them, it may lack none that the
    queue's requires. A field of both takes a kind of value in common. Fields with defaults may come and go.
    """
    asks, has = (given, stored) if use == "get" else (stored, given)
    known, records = {field.name: field for field in has.fields}, _parents(has)
    for field in asks.fields:
        found = known.get(field.name)
        if found is None:
            if field.required and field.name.rpartition(".")[0] in records:
                return f"{asks.name} requires the field {field.name}: {field.type}, which {has.name} does not have"
        elif not _meet(found.json, field.json):
            return f"the field {field.name} is {found.type} in {has.name}, and {field.type} in {asks.name}"
    return None


def _meet(one: list[str], other: list[str]) -> bool:
    if "any" in one or "any" in other:
        return True
    values = [{kind for kind in kinds if kind != "null"} for kinds in (one, other)]
    return not values[0].isdisjoint(values[1]) if all(values) else not set(one).isdisjoint(other)


def _parents(described: RefType) -> set[str]:
    """Return the paths of records whose fields are known; the ref's own is empty."""
    paths = (field.name.rpartition(".") for field in described.fields)
    return {parent for parent, _, last in paths if last != "*" and not last.isdigit()}


def _record(info: Any, prefix: str, within: tuple[object, ...]) -> Iterator[Field]:
    for field in info.fields:
        yield from _field(prefix + field.encode_name, field.type, field.required, within)


def _field(name: str, info: Any, required: bool, within: tuple[object, ...]) -> Iterator[Field]:
    choices = _choices(info)
    kinds = sorted({kind for choice in choices for kind in _kinds(choice)})
    yield Field(name, _text(info), kinds, required)
    for choice in choices:
        if _label(choice) in _RECORDS:
            if choice.cls not in within:
                yield from _record(choice, f"{name}.", (*within, choice.cls))
        elif _label(choice) == "Tuple":
            for index, item in enumerate(choice.item_types):
                yield from _field(f"{name}.{index}", item, False, within)
        elif (item := _item(choice)) is not None:
            yield from _field(f"{name}.*", item, False, within)


def _choices(info: Any) -> list[Any]:
    """Return the alternatives of a union, or the type alone, without what annotations add."""
    if _label(info) == "Metadata":
        return _choices(info.type)
    return [one for part in info.types for one in _choices(part)] if _label(info) == "Union" else [info]


def _label(info: Any) -> str:
    return type(info).__name__.removesuffix("Type")


def _item(info: Any) -> Any:
    return getattr(info, "value_type", None) if _label(info) == "Dict" else getattr(info, "item_type", None)


def _kinds(info: Any) -> list[str]:
    label = _label(info)
    if label == "Literal":
        return [_KIND_OF_VALUE.get(type(value), "any") for value in info.values]
    if label == "Enum":
        return [_KIND_OF_VALUE.get(type(member.value), "any") for member in info.cls]
    return _KINDS.get(label, ["any"])


def _text(info: Any) -> str:
    """Write a type much as its annotation does."""
    label = _label(info)
    if label in ("Union", "Metadata"):
        return " | ".join(_text(choice) for choice in _choices(info))
    if label == "Literal":
        return f"Literal[{', '.join(map(repr, info.values))}]"
    if label == "Tuple":
        return f"tuple[{', '.join(map(_text, info.item_types))}]"
    if label == "VarTuple":
        return f"tuple[{_text(info.item_type)}, ...]"
    if label == "Dict":
        return f"dict[{_text(info.key_type)}, {_text(info.value_type)}]"
    if hasattr(info, "item_type"):
        return f"{label.lower()}[{_text(info.item_type)}]"
    if hasattr(info, "cls"):
        return str(info.cls.__name__)
    return label if label in ("None", "Any") else label.lower()
