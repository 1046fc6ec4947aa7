"""Refs to bytes and back, and bookkeeping that may be cut short at any byte."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fsqueue
from fsqueue import CorruptRefError, InvalidRefError, UnreadableRefError
from fsqueue.format.codec import HISTORY_LIMIT, Bookkeeping, Codec, Event, bookkeeping_tail, split, wrap_raw
from fsqueue.format.untyped import sight
from tests.support.foreign_records import Incomparable, Loose, SampleRef, foreign_ref
from tests.support.implementations import make_ref

codec = Codec(fsqueue.SampleRef)
loose = Codec(Loose)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers
values = st.recursive(
    scalars | texts,
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(texts, inner, max_size=4)
    ),
    max_leaves=12,
)
maybe = st.none() | texts
events = st.builds(Event, st.sampled_from(["failed", "expired"]), st.floats(0, 2e9), maybe, maybe)
bookkeepings = st.builds(Bookkeeping, st.integers(0, 99), maybe, st.lists(events, max_size=3))


def same(one: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down: 1, 1.0 and True are three things."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def annotated(data: bytes, bookkeeping: Bookkeeping) -> bytes:
    """A file after its bookkeeping was written, keeping what it says of tuples."""
    offset, found = split(data)
    bookkeeping.tuples = found.tuples
    return data[:offset] + bookkeeping_tail(bookkeeping)


@given(values)
def test_what_is_accepted_comes_back_the_same(value: Any) -> None:
    """Any nesting of JSON's values and tuples comes back equal and of the same types."""
    assert same(loose.decode(loose.encode(Loose("s", value))).value, value)


@given(values, bookkeepings)
def test_bookkeeping_leaves_the_ref_as_it_is(value: Any, bookkeeping: Bookkeeping) -> None:
    """A file with history decodes to the same ref, and its history reads back."""
    data = annotated(loose.encode(Loose("s", value)), bookkeeping)
    assert same(loose.decode(data).value, value)
    assert split(data)[1] == bookkeeping


@given(values)
def test_a_file_is_one_json_object_with_the_ref_s_fields(value: Any) -> None:
    """Other programs read a file as JSON with the ref's own fields at the top level."""
    data = loose.encode(Loose("s", value))
    assert data.endswith(b"\n")
    found = json.loads(data)
    assert found["sample_id"] == "s"
    assert set(found) - {"_fsqueue"} == {"sample_id", "value"}


def test_plain_refs_carry_no_bookkeeping() -> None:
    """The reserved key is absent until something happened to the ref."""
    assert b"_fsqueue" not in codec.encode(make_ref("s", metadata={"x": [1]}))


@given(values, bookkeepings, bookkeepings, st.data())
def test_a_torn_update_costs_history_at_most(
    value: Any, old: Bookkeeping, new: Bookkeeping, data: st.DataObject
) -> None:
    """Bookkeeping is written in place and then truncated: a file cut short at any point of it still decodes.

    What a power cut leaves beyond the file's former end may also be NUL bytes.
    """
    plain = loose.encode(Loose("s", {"value": [value]}))
    if split(plain)[1].tuples:
        return
    before = data.draw(st.sampled_from([plain, annotated(plain, old)]))
    offset = split(before)[0]
    tail = bookkeeping_tail(new)
    cut = data.draw(st.integers(0, len(tail)))
    in_place = before[:offset] + tail[:cut] + before[offset + cut :]
    written = before[:offset] + tail + before[offset + len(tail) :]
    for torn in (in_place, in_place.ljust(offset + len(tail), b"\0"), written):
        assert loose.decode(torn) == Loose("s", {"value": [value]})
        again = annotated(torn, Bookkeeping(attempts=5))
        assert loose.decode(again) == Loose("s", {"value": [value]})
        assert split(again)[1].attempts == 5


@given(bookkeepings, st.data())
def test_tuples_survive_a_torn_update(old: Bookkeeping, data: st.DataObject) -> None:
    """The ref's own fields are no history: its tuples are still tuples after an update that was cut short."""
    plain = loose.encode(Loose("s", {"pair": (1, 2)}))
    before = annotated(plain, old)
    offset, found = split(before)
    tail = bookkeeping_tail(Bookkeeping(attempts=9, tuples=found.tuples))
    cut = data.draw(st.integers(0, len(tail)))
    assert loose.decode(before[:offset] + tail[:cut] + before[offset + cut :]).value == {"pair": (1, 2)}


def test_other_programs_may_reformat_a_file() -> None:
    """A file that was written anew by another JSON program decodes to the same ref, tuples and history included."""
    data = annotated(loose.encode(Loose("s", {"pair": (1, 2)})), Bookkeeping(attempts=3))
    for reformatted in (json.dumps(json.loads(data), indent=2), json.dumps(json.loads(data), sort_keys=True)):
        assert split(reformatted.encode())[1].attempts == 3
        assert loose.decode(reformatted.encode()).value == {"pair": (1, 2)}


def test_unknown_keys_are_ignored_and_missing_ones_take_defaults() -> None:
    """A file that another version or a person wrote decodes with the class's defaults."""
    assert Codec(SampleRef).decode(b'{"sample_id":"s","features":{},"later":1}') == SampleRef("s", {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"{",
        b"}",
        b"null",
        b"[]",
        b"[1]\n",
        b'"s"',
        b"{}",
        b'{"sample_id":7}',
        b'{"sample_id":"s"',
        b"\x00" * 64,
        b"\xff\xfe{}",
        b"[" * 100_000,
        b'{"sample_id":"s","value":' + b"[" * 100_000,
        b'{"value":1}\n,"_fsqueue":{}}\n',
    ],
    ids=range(16),
)
def test_what_is_no_ref_is_a_clear_error(data: bytes) -> None:
    """Bytes that hold no ref raise CorruptRefError, whatever they are."""
    with pytest.raises(CorruptRefError):
        loose.decode(data)


@given(st.binary(max_size=60))
def test_arbitrary_bytes_never_crash(data: bytes) -> None:
    """decode and split of any bytes give a result or a CorruptRefError."""
    for read in (loose.decode, split):
        with contextlib.suppress(CorruptRefError):
            read(data)


@given(st.binary(max_size=60))
def test_a_dead_letter_of_anything_is_json(data: bytes) -> None:
    """Bytes that are no JSON are wrapped as text, with the reason, into a file that is."""
    found = json.loads(wrap_raw(data, Bookkeeping(reason="torn")))
    assert found["_fsqueue"]["reason"] == "torn"
    assert isinstance(found["_fsqueue"]["raw"], str)


def test_history_keeps_the_latest() -> None:
    """History is bounded: the oldest events go first."""
    bookkeeping = Bookkeeping()
    for number in range(HISTORY_LIMIT + 5):
        bookkeeping.add(Event("failed", float(number)))
    assert [event.at for event in bookkeeping.history] == [float(n) for n in range(5, HISTORY_LIMIT + 5)]
    assert Bookkeeping().history == []


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 2**70, 10**400], ids=["2**64", "-2**63-1", "2**70", "10**400"])
def test_big_integers_come_back_or_are_refused(value: int) -> None:
    """An integer beyond 64 bits comes back as the same integer, or put names its path."""
    try:
        data = loose.encode(Loose("s", {"big": value}))
    except InvalidRefError as error:
        assert error.where == "<root>.value['big']"
    else:
        assert same(loose.decode(data).value, {"big": value})


def test_a_cycle_is_refused() -> None:
    """A value that holds itself is refused with a clear error."""
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    with pytest.raises(InvalidRefError):
        loose.encode(Loose("s", cycle))


def test_deep_nesting_comes_back_or_is_refused() -> None:
    """Nesting that is too deep to encode, decode or walk is refused with a clear error."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidRefError):
        loose.encode(Loose("s", deep))


@pytest.mark.parametrize(
    ("ref", "where"),
    [
        (make_ref("s", num_tokens="many"), "num_tokens"),
        (make_ref("s", feature_keys={"a": 1}), "feature_keys"),
        (make_ref("s", feature_keys={1: "a"}), "feature_keys"),
        (make_ref("s", strategy=None), "strategy"),
    ],
    ids=["str-for-int", "int-for-str", "int-key", "none-for-str"],
)
def test_values_that_do_not_fit_their_annotation_are_refused(ref: Any, where: str) -> None:
    """A value that could not be decoded again is refused at put, not found corrupt at get; the field is named."""
    with pytest.raises(InvalidRefError, match=where):
        codec.encode(ref)


def test_a_class_without_equality_is_checked_all_the_same() -> None:
    """eq=False: what JSON would change is still noticed, tuples are still carried."""
    checked = Codec(Incomparable)
    with pytest.raises(InvalidRefError):
        checked.encode(Incomparable("s", float("nan")))
    assert checked.decode(checked.encode(Incomparable("s", (1, [2])))).value == (1, [2])


@dataclass(frozen=True)
class Blind:
    """Leaves a field out of its comparison."""

    sample_id: str
    value: Any = field(default=None, compare=False)


def test_a_field_left_out_of_equality_is_checked_all_the_same() -> None:
    """compare=False hides a field from ==, not from the check."""
    checked = Codec(Blind)
    with pytest.raises(InvalidRefError):
        checked.encode(Blind("s", {"x": {1, 2}}))
    assert checked.decode(checked.encode(Blind("s", (1,)))).value == (1,)


def test_foreign_records_round_trip() -> None:
    """Postponed annotations, nested records, tuples and Literal are resolved in the class's own module."""
    foreign = Codec(SampleRef)
    ref = foreign_ref("s", anything=(1, {"k": (2,)}), note="n")
    assert foreign.decode(foreign.encode(ref)) == ref


@dataclass(frozen=True)
class Changeable:
    """Refuses what it took before."""

    sample_id: str
    span: Any = ()

    def __post_init__(self) -> None:
        if not isinstance(self.span, tuple):
            raise KeyError("span")


def test_what_its_own_class_would_not_take_back_is_refused() -> None:
    """An exception of whatever class, raised when the ref is read back, is an InvalidRefError of put."""
    with pytest.raises(InvalidRefError, match="does not fit Changeable: KeyError: 'span'"):
        Codec(Changeable).encode(Changeable("s", (1, 2)))


@pytest.mark.parametrize("tail", [b"}", b'}\n,"_fsqueue":{"attempts":1}}', b'}\n,"_fsqueue":{"att'], ids=range(3))
def test_a_ref_that_the_class_refuses_is_told_from_no_ref(tail: bytes) -> None:
    """It names the ref and the class, and what was said."""
    with pytest.raises(UnreadableRefError, match=r"'s' cannot be read as a .*Changeable: ") as caught:
        Codec(Changeable).decode(b'{"sample_id":"s","span":[1]' + tail.replace(b"}\n", b"\n"))
    assert caught.value.sample_id == "s"
    assert tail.endswith(b"att") or caught.value.reason == "KeyError: 'span'"


@dataclass(frozen=True)
class Greedy:
    """Finds no memory."""

    sample_id: str

    def __post_init__(self) -> None:
        raise MemoryError


def test_no_memory_says_nothing_about_a_ref() -> None:
    """A MemoryError while decoding is raised as it is."""
    with pytest.raises(MemoryError):
        Codec(Greedy).decode(b'{"sample_id":"s"}')


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_untyped_reading_sets_torn_bookkeeping_aside_where_there_are_tuples(cut: int) -> None:
    """What check and show see of a ref with tuples does not hang on its history."""
    data = annotated(loose.encode(Loose("s", {"pair": (1, 2)})), Bookkeeping(attempts=3))
    seen = sight(data[: len(data) - cut])
    assert seen.fields == {"sample_id": "s", "value": {"pair": [1, 2]}}
    assert seen.problem is None


@dataclass(frozen=True)
class NoId:
    """Lacks the key."""

    name: str


@dataclass(frozen=True)
class TakesReserved:
    """Has a field of the reserved name."""

    sample_id: str
    _fsqueue: int = 0


@dataclass(frozen=True)
class Unresolvable:
    """Has an annotation that leads nowhere."""

    sample_id: str
    value: NoSuchType  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("ref_type", [NoId, TakesReserved, Unresolvable, dict, "SampleRef", make_ref("s")])
def test_what_is_no_ref_type(ref_type: Any) -> None:
    """A class that cannot be queued is refused when the queue is opened."""
    with pytest.raises(TypeError):
        Codec(ref_type)


@dataclass(frozen=True, slots=True)
class Branch:
    """Holds its like, and words of several kinds, in every way an annotation can have them."""

    sample_id: str
    word: Annotated[Literal["a", 1, None], "a word"] = "a"
    branches: list[Branch] = field(default_factory=list)
    words: tuple[Literal["a"], ...] = ()
    named: dict[str, Literal["a"] | None] = field(default_factory=dict)


def test_values_outside_a_literal_come_back() -> None:
    """At any depth, in instances of the class itself; tuples stay tuples."""
    given: Any = Branch
    tree = given("s", "b", [given("t", 7, [], ("x", "y")), given("u", None, [], (), {"k": "z"})])
    found = Codec(Branch).decode(Codec(Branch).encode(tree))
    assert found == tree
    assert {type(found), *map(type, found.branches)} == {Branch}


@pytest.mark.parametrize(("word", "where"), [(1.5, "word"), ((1,), "word")])
def test_a_value_of_a_kind_that_a_literal_does_not_list_is_refused(word: Any, where: str) -> None:
    """It is a misfit as for any other annotation."""
    with pytest.raises(InvalidRefError, match=rf"does not fit Branch: .*\$\.{where}"):
        Codec(Branch).encode(Branch("s", word))


@dataclass(frozen=True, slots=True)
class Slotted:
    """Keeps its fields in slots."""

    sample_id: str
    value: Any


@dataclass(frozen=True)
class PartlySlotted(Slotted):
    """Keeps those of its base in slots, and its own in a ``__dict__``."""

    more: Any = None


@pytest.mark.parametrize("ref_type", [Loose, Slotted, PartlySlotted])
def test_what_json_would_change_is_noticed_wherever_a_class_keeps_it(ref_type: Any) -> None:
    """A tuple comes back as one, and a value that cannot is refused."""
    again = Codec(ref_type)
    found = again.decode(again.encode(ref_type("s", (1, 2))))
    assert found == ref_type("s", (1, 2))
    with pytest.raises(InvalidRefError, match="object keys are strings"):
        again.encode(ref_type("s", {1: 2}))
