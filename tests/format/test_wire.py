"""Refs of classes that JSON cannot carry, put and got by way of wire records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from fsqueue import (
    FileSampleRefQueue,
    InvalidArgumentError,
    InvalidRefError,
    MemorySampleRefQueue,
    RefTypeError,
    UnreadableRefWarning,
)
from tests.support import Child, assert_clean, content


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Foreign:
    """Holds what JSON has no word for."""

    sample_id: str
    colour: Colour
    names: Any = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class Wire:
    sample_id: str
    colour: str
    names: dict[str, str]


class ByName:
    """Names enums, and opens proxies."""

    wire_type = Wire

    def to_wire(self, ref: Foreign) -> Wire:
        return Wire(ref.sample_id, ref.colour.name, dict(ref.names))

    def from_wire(self, wire: Wire) -> Foreign:
        return Foreign(wire.sample_id, Colour[wire.colour], MappingProxyType(wire.names))


class Forgetful(ByName):
    def from_wire(self, wire: Wire) -> Foreign:
        return Foreign(wire.sample_id, Colour[wire.colour])


class Renaming(ByName):
    def to_wire(self, ref: Foreign) -> Wire:
        return Wire("other", ref.colour.name, dict(ref.names))


class Colourless(ByName):
    """Has unlearned a colour."""

    def from_wire(self, wire: Wire) -> Foreign:
        if wire.colour == "BLUE":
            raise KeyError(wire.colour)
        return super().from_wire(wire)


RED = Foreign("red", Colour.RED, MappingProxyType({"a": "b"}))
BLUE = Foreign("blue", Colour.BLUE)


def lease(pipe: Connection, path: Path) -> None:
    with FileSampleRefQueue(path, codec=ByName(), durable=False) as queue:
        refs = queue.get(9)
        pipe.send([(ref.sample_id, ref.colour, dict(ref.names)) for ref in refs])
        queue.fail(refs[:1], "again", retryable=True)
        queue.ack(refs[1:])


def test_refs_cross_processes_as_wire_records(tmp_path: Path) -> None:
    """Another process has equal ones; the files hold the records, and the queue knows their class."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path, codec=ByName(), durable=False) as queue:
        queue.put([RED, BLUE])
        assert content(path / "pending" / "red.json") == {"sample_id": "red", "colour": "RED", "names": {"a": "b"}}
        assert content(path / "type.json")["name"].endswith("Wire")
        with Child(lease, path) as child:
            assert child.receive() == [("red", Colour.RED, {"a": "b"}), ("blue", Colour.BLUE, {})]
            assert child.join() == 0
        assert queue.get(9) == [RED]
        assert queue.ack([RED]) == []
        with FileSampleRefQueue[Any](path, durable=False) as other:
            queue.put([BLUE])
            with pytest.raises(RefTypeError):
                other.get(1)
    assert_clean(path)


@pytest.mark.parametrize("make", [MemorySampleRefQueue, lambda **given: FileSampleRefQueue("q", **given)])
@pytest.mark.parametrize(
    ("codec", "ref", "problem"),
    [
        (Forgetful, RED, r"<root>: would come back from its wire record as Foreign\(.*mappingproxy\(\{\}\)\)"),
        (Renaming, RED, r"<root>\.sample_id: has to be the same in its wire record"),
        (Colourless, BLUE, r"Colourless\.from_wire does not take it: KeyError: 'BLUE'"),
        (ByName, Wire("w", "RED", {}), r"ByName\.to_wire does not take it: AttributeError"),
        (ByName, Foreign("odd", Colour.RED, {"a": 1}), r"Expected `str`, got `int` - at `\$\.names"),
    ],
)
def test_what_would_not_come_back_equal_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Any],
    codec: Callable[[], Any],
    ref: Any,
    problem: str,
) -> None:
    """At put, and of the whole batch nothing is put."""
    monkeypatch.chdir(tmp_path)
    queue = make(codec=codec())
    with pytest.raises(InvalidRefError, match=problem):
        queue.put([Foreign("good", Colour.RED), ref])
    assert queue.depth() == 0
    queue.close()


def test_what_cannot_be_turned_back_counts_an_attempt(tmp_path: Path) -> None:
    """As with a class that refuses it: in the end it is a dead letter, and other readers may have it before."""
    with FileSampleRefQueue(tmp_path, codec=ByName(), durable=False) as queue:
        queue.put([BLUE, RED])
        with FileSampleRefQueue(tmp_path, codec=Colourless(), max_attempts=1, durable=False) as other:
            with pytest.warns(UnreadableRefWarning, match=r"'blue' cannot be read as a .*Colourless: KeyError: 'BLUE'"):
                assert other.get(2) == [RED]
            assert other.ack([RED]) == []
        assert queue.counts() == (0, 0, 1, 1)


def test_what_is_no_codec_is_refused(tmp_path: Path) -> None:
    """Nor is its class, instead of an object."""
    for wrong in (Foreign("s", Colour.RED), ByName):
        with pytest.raises(InvalidArgumentError, match="an object with wire_type, to_wire and from_wire"):
            FileSampleRefQueue(tmp_path, codec=wrong)  # type: ignore[arg-type]
