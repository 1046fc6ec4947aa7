"""Check a queue against its format, and mend what is damaged.

violations.py   what can be wrong, and what is done about each
looks.py        a look at one directory entry
sound.py        a shorter one, for those with which nothing is wrong
examine.py      a look over all of them, and a second one before anything is claimed
duplicates.py   refs that are live twice
mend.py         the remedies
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing

from fsqueue.disk.directory import Directory
from fsqueue.disk.fileops import FileOps, callers, current, explained
from fsqueue.engine.layout import DIRECTORIES, open_layout
from fsqueue.engine.progress import Progress, unheard
from fsqueue.errors import QueueIOError
from fsqueue.operate.check.examine import examine
from fsqueue.operate.check.mend import Mended, mend_all
from fsqueue.operate.check.violations import Violation, violation

__all__ = ["Mended", "Violation", "check_queue", "repair"]

_PASSES = 4


def check_queue(
    path: str | os.PathLike[str], *, notes: bool = False, progress: Progress | None = None
) -> list[Violation]:
    """Return what is wrong with a queue: nothing when it is clean.

    A state that a running queue passes through, or that a kill at any instant leaves, is no damage. Takes no lock
    and writes nothing; only the order file is touched, to read the filesystem's clock, where members of a stream may
    have fallen silent. Costs an open, a stat, a read and a close of every file, and more for those with a problem.

    Args:
        notes: include what costs nothing, such as leftovers of killed processes and a damaged order hint.
        progress: told how many of the queue's files were looked at.

    Raises:
        NotAQueueError: there is no queue at this path, or its fsqueue.json is damaged.
        UnsupportedFormatError: it has another format.
        QueueIOError: this user cannot read it.
    """
    path, ops = os.path.normpath(os.path.expanduser(path)), current()
    try:
        layout = open_layout(ops, path)
    except QueueIOError as error:
        missing = _missing_directories(ops, path) if error.errno == errno.ENOENT else []
        if not missing:
            raise
        return missing
    with explained("checking", path), closing(layout):
        return [found for found in examine(layout, callers(progress) or unheard) if notes or found.severity == "damage"]


def repair(
    path: str | os.PathLike[str],
    *,
    each: Callable[[Mended], None] | None = None,
    progress: Progress | None = None,
) -> list[Mended]:
    """Mend what `check_queue` finds, notes included, and what comes to light by that; report on each.

    No ref is lost by it. Safe on a running queue: refs are moved as its handles move them, one rename each. What one
    remedy uncovers is mended too: a file that a packing had in hand is looked into once it is a done file again.

    Args:
        each: told of each violation at once.
        progress: told how many of the queue's files were looked at, then how many of the violations, and so on.

    Raises:
        QueueIOError: the filesystem refused; what was mended before that stays mended.
    """
    path, ops = os.path.normpath(os.path.expanduser(path)), current()
    each, progress = callers(each), callers(progress)
    mended: list[Mended] = []
    left_alone: set[tuple[str, str]] = set()
    for _ in range(_PASSES):
        seen = check_queue(path, notes=True, progress=progress)
        found = [wrong for wrong in seen if (wrong.path, wrong.kind) not in left_alone]
        if not any(wrong.mendable for wrong in found):
            break
        creating = found[0].kind == "missing-directory"
        tried = _create(ops, found) if creating else mend_all(path, found, each, progress or unheard)
        if creating and each is not None:
            for created in tried:
                each(created)
        left_alone |= {(one.violation.path, one.violation.kind) for one in tried if not one.done}
        mended += tried
    return mended


def _create(ops: FileOps, missing: list[Violation]) -> list[Mended]:
    for each in missing:
        with explained("creating", each.path):
            ops.mkdir(each.path, 0o777)
    return [Mended(each, True, "created") for each in missing]


def _missing_directories(ops: FileOps, path: str) -> list[Violation]:
    """Name the queue's directories that are not there; nothing else can be checked before they are."""
    with closing(Directory(ops, path)) as root:
        missing = sorted(set(DIRECTORIES) - set(root.listing()))
    return [violation("missing-directory", os.path.join(path, name), "missing") for name in missing]
