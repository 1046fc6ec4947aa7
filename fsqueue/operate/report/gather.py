"""Look at every file of a queue, and keep of each ref the few numbers that a report needs."""

from __future__ import annotations

import errno
from array import array
from collections import Counter

from fsqueue.engine.layout import STATES, Layout
from fsqueue.engine.listing import File, directory_of, files_in, packed_in
from fsqueue.engine.progress import Progress
from fsqueue.errors import CorruptRefError
from fsqueue.format import names
from fsqueue.format.codec import RESERVED, Bookkeeping
from fsqueue.format.untyped import sight
from fsqueue.operate.reasons import kind_of_reason
from fsqueue.operate.report.told import DeadReason, Steps, Timeline
from fsqueue.operate.status import elapsed_s

_KEY = f'"{RESERVED}"'.encode()
_ENDS = frozenset(("failed", "expired", "released", "replaced"))
_EXAMPLES = 3


class Gathered:
    """Add up what the files say.

    Attributes:
        ages: by state, seconds.
        events: how often each kind is in a history.
    """

    def __init__(self, now: float) -> None:
        self._now = now
        self._done_at = array("d")
        self._dead_at = array("d")
        self._ended_at = array("d")
        self._steps: Counter[int | None] = Counter()
        self._dead: dict[str, DeadReason] = {}
        self.ages = {"pending": array("d"), "leased": array("d"), "done": array("d")}
        self.events: Counter[str] = Counter()
        self.retried = 0
        self.unread = 0

    def add(self, layout: Layout, file: File) -> None:
        """Look at one ref; one that has moved on since is left out."""
        if file.line is not None:
            self._add_done(file, file.line.mtime_ns / 1e9, None)
            self._add_history(file, file.line.data, file.line.mtime_ns / 1e9)
            return
        status = layout.ops.status(directory_of(layout, file.state).fd, file.name)
        if status is None:
            return
        if file.state == "done":
            self._add_done(file, status.st_mtime, status.st_ctime)
        elif file.state in self.ages and file.place.due is None:
            self.ages[file.state].append(elapsed_s(self._now, status.st_mtime))
        try:
            data = layout.ops.read_file(directory_of(layout, file.state).fd, file.name)
        except FileNotFoundError:
            return
        except CorruptRefError:
            self.unread += 1
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.unread += 1
            return
        self._add_history(file, data, status.st_mtime)

    def _add_done(self, file: File, stamped_at: float, changed_at: float | None) -> None:
        self._done_at.append(stamped_at)
        self._steps[file.place.step] += 1
        if changed_at is not None:  # the rename by which it was acknowledged, unless somebody changed the file since
            self.ages["done"].append(elapsed_s(changed_at, stamped_at))

    def _add_history(self, file: File, data: bytes, stamped_at: float) -> None:
        bookkeeping = sight(data).bookkeeping if _KEY in data else Bookkeeping()
        history = bookkeeping.history
        self.events.update(event.event for event in history)
        is_dead = file.state == "failed"
        last = history.pop() if is_dead and history else None  # it is counted as what made the ref a dead letter
        self._ended_at.extend(event.at for event in history if event.event in _ENDS)
        if is_dead:
            self._add_dead(file, bookkeeping.reason, last.at if last else stamped_at)
        elif history:
            self.retried += 1

    def _add_dead(self, file: File, reason: str | None, at: float) -> None:
        self._dead_at.append(at)
        kind, sample_id = kind_of_reason(reason or ""), names.id_of(file.place.stem) or file.place.stem
        known = self._dead.get(kind)
        if known is None:
            self._dead[kind] = DeadReason(kind, 1, at, at, [sample_id])
            return
        if len(known.examples) < _EXAMPLES:
            known.examples.append(sample_id)
        first_at, last_at = min(known.first_at, at), max(known.last_at, at)
        self._dead[kind] = DeadReason(kind, known.count + 1, first_at, last_at, known.examples)

    def timeline(self) -> Timeline | None:
        return Timeline.of(self._done_at, self._dead_at, self._ended_at)

    def steps(self) -> Steps | None:
        named = [step for step in self._steps if step is not None]
        if not named:
            return None
        without = self._steps[None]
        return Steps(min(named), max(named), len(named), self._steps.total() - without, without)

    def dead(self) -> list[DeadReason]:
        return sorted(self._dead.values(), key=lambda each: (-each.count, each.reason))


def gather(layout: Layout, now: float, total: int, progress: Progress) -> Gathered:
    """Look at everything.

    Args:
        total: about how many refs there are.
    """
    found, seen = Gathered(now), 0
    for state in STATES:
        for file in files_in(layout, state):
            found.add(layout, file)
            seen += 1
            progress(seen, max(total, seen))
    for file in packed_in(layout):
        found.add(layout, file)
        seen += 1
        progress(seen, max(total, seen))
    return found
