"""File names: the grammar, both ways."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsqueue import InvalidRefError
from fsqueue.format import names

OWNER = "node12.4711.9f3a01"
NAME_MAX_BYTES = 255

sample_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)


@given(sample_ids)
def test_a_stem_is_a_safe_file_name(sample_id: str) -> None:
    """A stem is at most 160 ASCII bytes of the grammar, never hidden, and never leads out of its directory."""
    stem = names.stem_of(sample_id)
    assert re.fullmatch(r"[A-Za-z0-9_%-][A-Za-z0-9._%~-]*", stem)
    assert len(stem) <= names.STEM_LIMIT
    assert names.is_stem(stem)


@given(sample_ids)
def test_a_stem_tells_its_id_unless_it_was_cut(sample_id: str) -> None:
    """id_of is the inverse of stem_of, and says so where it cannot be."""
    stem = names.stem_of(sample_id)
    assert names.id_of(stem) == (None if "~" in stem else sample_id)


@given(sample_ids, sample_ids)
def test_different_ids_have_different_stems(one: str, other: str) -> None:
    """Two ids share a stem only when they are the same."""
    assert (names.stem_of(one) == names.stem_of(other)) == (one == other)


@pytest.mark.parametrize(
    ("sample_id", "stem"),
    [
        ("s17", "s17"),
        ("A-b_c.9", "A-b_c.9"),
        (".hidden", "%2ehidden"),
        ("..", "%2e."),
        ("a/b", "a%2fb"),
        ("100%", "100%25"),
        ("a@b", "a%40b"),
        ("a~b", "a%7eb"),
        ("ü", "%c3%bc"),
        ("x.json", "x.json"),
    ],
)
def test_how_ids_are_encoded(sample_id: str, stem: str) -> None:
    """Percent-encoding, lower case, outside of letters, digits, dot, underscore and hyphen; a leading dot too."""
    assert names.stem_of(sample_id) == stem


def test_long_ids_are_cut_at_the_limit() -> None:
    """160 bytes are kept whole; one more, and 120 bytes, a tilde and 32 hex digits of the SHA-256 remain."""
    assert names.stem_of("x" * 160) == "x" * 160
    stem = names.stem_of("x" * 161)
    assert re.fullmatch(r"x{120}~[0-9a-f]{32}", stem)
    assert names.id_of(stem) is None


def test_ids_that_differ_after_the_cut_stay_apart() -> None:
    """Long ids with a common beginning have different stems, also where the cut splits an escape."""
    prefix = "x" * 119 + "ü"
    stems = {names.stem_of(prefix + "y" * 50 + str(number)) for number in range(100)}
    assert len(stems) == 100
    assert all(names.is_stem(stem) for stem in stems)


def test_the_longest_names_fit_a_directory_entry() -> None:
    """The longest id and owner with the longest pid make a name of at most 255 bytes."""
    owner = names.owner_name("n" * names.OWNER_NAME_LIMIT) + f".{2**22}.ffffff"
    assert names.is_owner(owner)
    stem = names.stem_of("ü" * 1000)
    for claim in ("fffffffft", "gffffffff"):
        assert names.parse_leased(names.leased_file(stem, owner, claim)) == names.Lease(stem, owner, claim)
        assert len(names.leased_file("x" * names.STEM_LIMIT, owner, claim)) <= NAME_MAX_BYTES
    assert len(names.done_file("x" * 160, 2**63)) <= NAME_MAX_BYTES


@pytest.mark.parametrize("sample_id", ["", None, 7, b"x", ["s"], "\ud800"])
def test_what_is_no_id(sample_id: object) -> None:
    """An id that is empty, no string, or no valid Unicode raises an error that names the field."""
    with pytest.raises(InvalidRefError) as caught:
        names.stem_of(sample_id)  # type: ignore[arg-type]
    assert caught.value.where == "<root>.sample_id"


@given(sample_ids)
def test_names_parse_back(sample_id: str) -> None:
    """The parse functions take apart what the file functions build."""
    stem = names.stem_of(sample_id)
    assert names.parse_ref(names.ref_file(stem)) == stem
    for claim in ("", "1f", "1ft", "g0123abcd"):
        lease = names.Lease(stem, OWNER, claim)
        assert names.parse_leased(names.leased_file(stem, OWNER, claim)) == lease and lease.file.startswith(stem)
    assert names.parse_done(names.done_file(stem, None)) == (stem, None)
    assert names.parse_done(names.done_file(stem, 123)) == (stem, 123)


@given(st.text(max_size=80))
def test_owners_parse_back(host: str) -> None:
    """Any host or user name makes an owner that can be parsed out of a leased name."""
    try:
        name = names.owner_name(host)
    except UnicodeEncodeError:
        return
    if not 0 < len(name) <= names.OWNER_NAME_LIMIT:
        return
    owner = f"{name}.4711.9f3a01"
    assert names.parse_owner(f"{owner}.json") == owner
    assert names.parse_leased(names.leased_file("s", owner)) == names.Lease("s", owner)
    assert names.pid_of(owner) == 4711


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".json",
        ".s.json",
        ".nfs000000000001",
        "s",
        "s.txt",
        "s.json~",
        "s.json.swp",
        "#s.json#",
        "s .json",
        "s\n.json",
        "s.json\n",
        "a/b.json",
        "ü.json",
        "s%2F.json",
        "s%zz.json",
        "s%2.json",
        "s~short.json",
        f"s@{OWNER}@{OWNER}.json",
    ],
)
def test_foreign_names_are_left_alone(name: str) -> None:
    """Hidden files, editors' backups, and everything else outside the grammar parse to None in every directory."""
    assert names.parse_ref(name) is None
    assert names.parse_leased(name) is None
    assert names.parse_done(name) is None
    assert names.parse_owner(name) is None


@pytest.mark.parametrize(
    "name",
    ["s.json", "s@.json", "@node.1.abcdef.json", "s@node.json", "s@node.1.ABCDEF.json", "s@node.x.abcdef.json"],
)
def test_leased_names_need_an_owner(name: str) -> None:
    """In leased/ a name without a well-formed owner is foreign."""
    assert names.parse_leased(name) is None


@pytest.mark.parametrize("name", ["s@x.json", "s@-1.json", "s@1.5.json", "s@.json", "s@²3.json", "s@1@2.json"])
def test_done_names_need_a_decimal_step(name: str) -> None:
    """In done/ what follows the @ is a decimal step."""
    assert names.parse_done(name) is None


def test_over_long_stems_are_foreign_everywhere() -> None:
    """A stem beyond the limit is foreign in leased/ and done/ too, as it would be in pending/ once it came back."""
    stem = "x" * (names.STEM_LIMIT + 1)
    assert names.parse_ref(f"{stem}.json") is None
    assert names.parse_leased(f"{stem}@{OWNER}.json") is None
    assert names.parse_done(f"{stem}.json") is None


@pytest.mark.parametrize(
    "odd", ["", ".json", ".x.json", "x", "x@1.json", "x@y.json", "%2f.json", "x~.json", "ü.json", "é"]
)
def test_names_are_counted_together_as_they_parse_one_by_one(odd: str) -> None:
    listing = (
        [f"s{number}.json" for number in range(600)] + [odd] + [f"t{number}@{number}.json" for number in range(600)]
    )
    assert names.count_refs(listing, names.parse_ref) == sum(map(bool, map(names.parse_ref, listing)))
    assert names.count_done(listing) == sum(map(bool, map(names.parse_done, listing)))
    assert names.count_refs([], names.parse_ref) == 0


def test_a_stem_that_is_no_text_tells_no_id() -> None:
    """Escapes that are no UTF-8 come from no id."""
    assert names.id_of("%ff") is None
