"""Lines of the order that were read together."""

from __future__ import annotations

import pytest

from fsqueue.engine.order_lines import dead_bytes, find_line


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
        ("a b\n.c\nd\re\n\ufffd\nf\0\n\ng%2f~1\n", ["g%2f~1"]),
        ("\n\n#a\n", []),
        ("", []),
    ],
)
def test_what_may_be_a_stem_is_found_line_by_line(text: str, stems: list[str]) -> None:
    """Blank, dead and foreign lines are passed over; the last line needs no line feed."""
    assert found_in(text) == stems


def test_dead_bytes_are_those_of_whole_lines() -> None:
    """Lines that were handed out count with their line feeds, others not at all."""
    assert dead_bytes("\n#abc\nd#\n\n#e\nf\n") == 5 + 3
