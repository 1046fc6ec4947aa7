"""Cut what a rewind brings back into parts, in the order in which it comes again.

Of a part, a rewind keeps a kilobyte or so a ref; of the other refs, which may be millions, a hundred bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from fsqueue.engine.layout import Layout
from fsqueue.engine.packing.pack import packed_lines
from fsqueue.format import names, packed

PART_REFS = 50_000
_STEP_BYTES = 8
_LAST_STEP = (1 << 64) - 1


class Part(NamedTuple):
    """Say which refs to look at.

    Attributes:
        stems: theirs; None: all.
        clean: revisions whose segments hold none of them.
    """

    stems: Collection[str] | None = None
    clean: Collection[str] = ()

    def has(self, stem: str) -> bool:
        return self.stems is None or stem in self.stems


ALL = Part()


class Parts:
    """Yield parts with all refs acked after a step, those with the earliest last step first; once.

    All lives of a ref are in one part. What is acked, or moved, meanwhile may be in none.

    Attributes:
        refs: how many there are; None where they are not more than one part holds.
    """

    def __init__(self, layout: Layout, after_step: int) -> None:
        self._after_step = after_step
        self._least: dict[str, int] = {}  # by revision, the least step after that one in its segment
        self._found: list[bytes] = []
        self.refs: int | None = None
        if _has_more_than(layout, PART_REFS):
            self._list(layout)
            self.refs = len(self._found)

    def __iter__(self) -> Iterator[Part]:
        if self.refs is None:
            yield ALL
        while self._found:
            entries = self._found[-PART_REFS:]
            del self._found[-PART_REFS:]
            last = int.from_bytes(entries[0][:_STEP_BYTES], "big")
            stems = {entry[_STEP_BYTES:].decode() for entry in entries}
            yield Part(stems, {revision for revision, least in self._least.items() if least > last})

    def _list(self, layout: Layout) -> None:
        """List each ref with the step of its last life, the earliest last."""
        layout.done.any_name(self._add_name)
        for segment, data in packed_lines(layout):
            self._least[segment.revision] = _LAST_STEP + 1
            for line in packed.whole_lines(data)[0]:
                if self._add(line.stem, line.step):
                    self._least[segment.revision] = min(self._least[segment.revision], line.step or 0)
        found = self._found
        found.sort()
        count = 0
        for entry, following in zip(found, [*found[1:], b""], strict=True):
            if not following.startswith(entry[:-_STEP_BYTES]):
                found[count] = entry[-_STEP_BYTES:] + entry[: -_STEP_BYTES - 1]
                count += 1
        del found[count:]
        found.sort(reverse=True)

    def _add_name(self, name: str) -> bool:
        """Look at a name in done/, and go on to the next."""
        aside = packed.parse_aside(name)
        parsed = names.parse_done(aside.ref_name if aside else name)
        if parsed:
            self._add(*parsed)
        return False

    def _add(self, stem: str, step: int | None) -> bool:
        if step is None or step <= self._after_step:
            return False
        self._found.append(b"%s\0%s" % (stem.encode(), min(step, _LAST_STEP).to_bytes(_STEP_BYTES, "big")))
        return True


def _has_more_than(layout: Layout, refs: int) -> bool:
    """Return whether more refs than this are done, by the names in done/ alone."""
    count = 0

    def is_enough(name: str) -> bool:
        nonlocal count
        count += packed.refs_in([name])
        return count > refs

    return layout.done.any_name(is_enough)
