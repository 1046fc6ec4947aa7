"""Copies of packed refs that go on to pending/ at once, by one rename each."""

from __future__ import annotations

from collections.abc import Callable

from fsqueue.engine.handle import Handle
from fsqueue.engine.packing.revision import Revision, recover, restamp
from fsqueue.engine.put import Putter
from fsqueue.format.packed import Done, Line


class Copies:
    """Know the copies of packed refs that this process makes and moves on itself.

    They hold from the beginning what they will hold in pending/, and keep the name and the stamp of their making until
    then: so a ref costs one file and one rename, as a put does.

    CRASH: each is done, under the name that its revision gave it, and whoever recovers gives it its own. Its history
    tells of a move that was not made, and its stamp is that of the copy.

    Args:
        content: returns what the copy of a line is to hold.

    Attributes:
        stamps: by file, the stamp that the ref had, in ns.
        used: whether there were any.
    """

    def __init__(self, handle: Handle, content: Callable[[Line], bytes]) -> None:
        self._handle = handle
        self._content = content
        self.stamps: dict[str, int] = {}
        self.used = False

    def live(self, lines: list[Line]) -> set[str]:
        """Return the stems of those that are pending or leased."""
        return Putter(self._handle).known([line.stem for line in lines])

    def make(self, revision: Revision, lines: list[Line]) -> None:
        """Copy lines out of a segment, the earliest first; a later life of the same name replaces an earlier one."""
        latest: dict[str, Line] = {}
        for line in lines:
            file = revision.copy_of(line)
            if self.stamps.get(file, line.mtime_ns) <= line.mtime_ns:
                self.stamps[file] = line.mtime_ns
                latest[file] = line
        self.used = True
        content = self._content
        revision.copy((file, content(line)) for file, line in latest.items())

    def let_go_of_hidden(self, done: Done) -> bool:
        """Let go of copies that hide, or are hidden by, another life of the ref under the same name.

        Whoever recovers then goes by their stamps. Returns False where there are none.
        """
        mine = [aside for aside in done.asides if aside.name in self.stamps]
        pairs = ((aside.name, done.files.get(aside.ref_name, aside.name)) for aside in mine)
        let_go = {file for pair in pairs if pair[0] != pair[1] for file in pair if file in self.stamps}
        self._let_go(let_go)
        return bool(let_go)

    def end(self) -> None:
        """Give those that were not moved on their stamps and their names, and remove the segments that they left."""
        self._let_go(set(self.stamps))
        recover(self._handle, alone=True)

    def _let_go(self, files: set[str]) -> None:
        for file in sorted(files):
            stamp_ns = self.stamps.pop(file)
            try:
                restamp(self._handle, file, stamp_ns)
            except OSError as error:  # RACE: another process that recovers has given it its name
                if not self._handle.moves.is_gone(self._handle.layout.done, file, error):
                    raise
