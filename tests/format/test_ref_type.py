"""Descriptions of classes: what one class may put into, or get out of, a queue of another."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from enum import Enum
from typing import Annotated, Any, Literal

import msgspec
import pytest

import fsqueue
from fsqueue.format.ref_type import RefType, Use, describe, misfit
from tests.support import foreign_records


@dataclass(frozen=True)
class Spec:
    """Lies inside a ref."""

    name: str
    dtype: str = "float32"


@dataclass(frozen=True)
class StricterSpec:
    """Has one required field more."""

    name: str
    layout: str
    dtype: str = "float32"


class Colour(Enum):
    """Is told by its values."""

    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Chain:
    """Holds itself."""

    sample_id: str
    next: Chain | None = None


@dataclass(frozen=True)
class Old:
    """Is what the queue holds."""

    sample_id: str
    uri: str
    specs: dict[str, Spec] = field(default_factory=dict)
    count: int = 0
    colour: Colour = Colour.RED
    anything: Any = None
    span: tuple[int, str] = (0, "")


def like(*changes: tuple[str, Any] | tuple[str, Any, Any], without: tuple[str, ...] = ()) -> type[Any]:
    """Return a class like Old, but for some fields."""
    changed = {name: rest for name, *rest in changes}
    fields: list[Any] = []
    for name, hint, *default in (
        ("sample_id", str),
        ("uri", str),
        ("specs", dict[str, Spec], field(default_factory=dict)),
        ("count", int, 0),
        ("colour", Colour, Colour.RED),
        ("anything", Any, None),
        ("span", tuple[int, str], (0, "")),
    ):
        if name not in without:
            fields.append((name, *changed.pop(name, [hint, *default])))
    fields += [(name, *rest) for name, rest in changed.items()]
    return make_dataclass("New", sorted(fields, key=len), frozen=True)


BOTH: tuple[Use, ...] = ("put", "get")


@pytest.mark.parametrize("use", BOTH)
@pytest.mark.parametrize(
    "other",
    [
        like(),
        like(("note", str | None, None)),
        like(without=("count",)),
        like(("count", float, 0.0)),
        like(("count", int | None, None)),
        like(("colour", Literal["red"], "red")),
        like(("uri", Annotated[str, msgspec.Meta(min_length=1)])),
        like(("anything", dict[str, int], field(default_factory=dict))),
        like(("specs", dict[str, Any], field(default_factory=dict))),
    ],
    ids=["same", "one more", "one fewer", "wider", "or None", "narrower", "annotated", "of Any", "to Any"],
)
def test_fields_with_defaults_may_come_and_go(other: type[Any], use: Use) -> None:
    """Releases of one class whose new fields have defaults put and get side by side, also where a type is widened."""
    assert misfit(describe(Old), describe(other), use) is None


@pytest.mark.parametrize(
    ("other", "use", "words"),
    [
        (like(("weight_version", int)), "get", "New requires the field weight_version: int"),
        (like(without=("uri",)), "put", "Old requires the field uri: str"),
        (like(("count", str, "")), "get", "the field count is int in .*Old, and str in .*New"),
        (like(("count", str, "")), "put", "the field count is str in .*New, and int in .*Old"),
        (like(("uri", list[str])), "get", "the field uri is str"),
        (like(("specs", dict[str, StricterSpec], field(default_factory=dict))), "get", r"field specs\.\*\.layout: str"),
        (like(("colour", Literal[1, 2], 1)), "get", "the field colour is Colour"),
        (like(("span", tuple[int, int], (0, 0))), "get", r"the field span\.1 is str"),
        (like(("count", str | None, None)), "put", r"str \| None"),
        (fsqueue.SampleRef, "get", "SampleRef requires the field run_id: str"),
        (fsqueue.SampleRef, "put", "Old requires the field uri: str"),
    ],
)
def test_what_cannot_fit_is_named(other: type[Any], use: Use, words: str) -> None:
    """A required field that the others lack, or a kind of value that they cannot take, at any depth."""
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(misfit(describe(Old), describe(other), use))


def test_a_producer_may_put_more_than_readers_ask_for() -> None:
    """Readers skip what they do not know, so a producer's further required field does not hurt them."""
    assert misfit(describe(Old), describe(like(("weight_version", int))), "put") is None
    assert misfit(describe(Old), describe(like(without=("uri",))), "get") is None


@pytest.mark.parametrize("ref_type", [fsqueue.SampleRef, foreign_records.SampleRef, foreign_records.Loose, Chain, Old])
def test_a_description_reads_back(ref_type: type[Any]) -> None:
    """A class fits itself, by way of JSON; one that holds itself ends."""
    found = msgspec.json.decode(msgspec.json.encode(describe(ref_type)), type=RefType)
    assert found == describe(ref_type)
    assert [misfit(found, describe(ref_type), use) for use in BOTH] == [None, None]
