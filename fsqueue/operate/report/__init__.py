"""Tell how a run went, from what its queue's files say: their times, their names and their histories.

A queue keeps no log. A done file says when its ref was leased or renewed last, and at which step it was acknowledged; a
file that has history says what went wrong before. So what was purged, or not kept, is in no report.
"""

from __future__ import annotations

import os

from fsqueue.disk.fileops import callers
from fsqueue.engine.listing import reading
from fsqueue.engine.progress import Progress, unheard
from fsqueue.operate.report.gather import Gathered, gather
from fsqueue.operate.report.told import AGES, DeadReason, Report, Spread, Steps, Timeline
from fsqueue.operate.status import status

__all__ = ["AGES", "DeadReason", "Report", "Spread", "Steps", "Timeline", "report"]


def report(path: str | os.PathLike[str], progress: Progress = unheard) -> Report:
    """Look at a queue and at every ref in it; takes no lock and writes nothing.

    Costs a stat and a read of every file, and a read of every segment; memory for a few numbers a ref.

    Args:
        progress: told how many refs were looked at.

    Raises:
        NotAQueueError: there is no queue at this path.
        QueueIOError: this user cannot read it.
    """
    seen = status(path)
    with reading(path) as layout:
        found: Gathered = gather(layout, seen.at, sum(seen.counts), callers(progress))
        return Report(
            status=seen,
            created_at=layout.settings.created_at,
            timeline=found.timeline(),
            ages={what: spread for what, ages in found.ages.items() if (spread := Spread.of(ages)) is not None},
            steps=found.steps(),
            events=dict(sorted(found.events.items())),
            retried=found.retried,
            dead=found.dead(),
            unread=found.unread,
        )
