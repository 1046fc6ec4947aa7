"""The lines of the order: what they name, and the marks that tell which of them are a partition's."""

from __future__ import annotations

import pytest

from fsqueue import dp_partition
from fsqueue.format.lines import (
    dead_bytes_in,
    filled,
    find_line,
    finder,
    has_marks,
    lines_of,
    stem_in,
    stems_in,
    without_dead,
    written_in,
)
from fsqueue.format.names import stem_of

IDS = [*(f"s{number}" for number in range(300)), "a b", "ü/1", "x" * 400, ".hidden"]
COUNTS = [1, 2, 3, 5, 8, 12, 15, 48, 64, 63, 55, 96, 1024, 4096, 3465]


def picked(index: int, count: int, lines: bytes) -> list[str]:
    find = finder(index, count)
    assert find is not None
    return [lines[lines.rfind(b"\n", 0, m.start()) + 1 : m.start()].decode() for m in find(lines)]


@pytest.mark.parametrize("count", COUNTS)
def test_a_mark_tells_the_partition(count: int) -> None:
    """A partition's pattern finds its ids, those that only their files tell, and no others."""
    lines = filled(lines_of(map(stem_of, IDS)))
    assert has_marks(lines)
    for index in {0, 1 % count, count // 2, count - 1}:
        mine = [i for i in IDS if "~" in stem_of(i) or dp_partition(i, count) == index]
        assert picked(index, count, lines) == [stem_of(i) for i in mine]


@pytest.mark.parametrize("count", [13, 17, 26, 100_003])
def test_other_numbers_of_partitions_have_no_pattern(count: int) -> None:
    assert finder(0, count) is None


def test_no_stems_are_no_lines() -> None:
    assert lines_of([]).strip() == b"" and lines_of(["a"]) == b"\na ....\n"


def test_a_mark_is_filled_in_once_and_in_its_place() -> None:
    """Lines keep their length, so that nobody's offsets move; dead, foreign and unmarked ones stay as they are."""
    lines = lines_of(["a", "b"]) + b"#c ....\nplain\nno stem ....\n"
    marked = filled(lines)
    assert len(marked) == len(lines) and filled(marked) == marked != lines
    assert marked.endswith(b"#c ....\nplain\nno stem ....\n") and not has_marks(marked)


def test_lines_name_stems_with_and_without_marks() -> None:
    lines = b"\n" + b"a ....\nb Xy3k\nplain\n#dead ....\ntorn ..\nx y ....\n\ncr ....\r\n"
    assert list(stems_in(lines)) == ["a", "b", "plain"]
    assert written_in(lines) == ["a", "b", "plain"]
    assert stem_in("") is None and stem_in(" ....") is None and stem_in("é ....") is None


@pytest.mark.parametrize("lines", [b"", b"a\n", b"#a\nb\n#c\n#d\n\ne\n", b"#a\n", b"\n#a", b"a\n#"])
def test_dead_lines_are_left_out(lines: bytes) -> None:
    assert list(stems_in(without_dead(lines))) == list(stems_in(lines))
    assert b"\n#" not in without_dead(lines).rpartition(b"\n")[0] or lines.endswith(b"#")


def found_in(text: str) -> list[str]:
    """List what one search after the other finds, each from where the last one ended."""
    found, at = [], 0
    while (line := find_line(text, at)) is not None:
        found.append(line[1])
        at = line.end()
    return found


@pytest.mark.parametrize(
    ("text", "stems"),
    [
        ("\na\n\nb\n", ["a", "b"]),
        ("a\n#b\nc", ["a", "c"]),
        ("a b\ne ....\n.c\nd\re\n\ufffd\nf\0\n\ng%2f~1\n", ["e", "g%2f~1"]),
        ("\n\n#a\n", []),
        ("", []),
    ],
)
def test_what_may_be_a_stem_is_found_line_by_line(text: str, stems: list[str]) -> None:
    """Blank, dead and foreign lines are passed over; the last line needs no line feed."""
    assert found_in(text) == stems


def test_dead_bytes_are_those_of_whole_lines() -> None:
    """Lines that were handed out count with their line feeds, others not at all."""
    assert dead_bytes_in("\n#abc\nd#\n\n#e\nf\n") == 5 + 3
