"""The names in done/, sorted into what is in force."""

from __future__ import annotations

from fsqueue.format.packed import read_names, segment_file


def test_a_segment_that_a_listing_shows_twice_counts_once() -> None:
    """A directory that changes while it is read may show a name twice; else the segment is merged with itself."""
    segment = segment_file("00000000000a", 3)
    for shown in ([segment, segment], [segment, "x.json", segment, "x.json"]):
        done = read_names(shown)
        assert [found.name for found in done.segments] == [segment]
        assert done.count == 3 + ("x.json" in shown)
