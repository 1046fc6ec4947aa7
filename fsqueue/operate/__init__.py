"""Look at a queue, move its refs, mend it: what people do, for scripts and notebooks as for the `fsqueue` command.

    from fsqueue import operate

    print(operate.status("/shared/queue").counts)
    operate.requeue_failed("/shared/queue", reason="*timed out*")

Each function takes the queue's path, opens it, and closes it again; none creates a queue. Those that look take no lock
and write nothing, but on some shared mounts touch order.lock, to read the time. Those that move refs are safe while the
queue is in use, and to kill: what was not done is done by the next call. They return what they did; where they work
long they take ``progress``, which is called with how much is done, and of how much. With ``dry_run=True`` they change
nothing, and return what they would do.

look:   status, counts, iterate, entries, peek, dead_letters
move:   requeue, requeue_failed, release, discard
hold:   pause, resume
tidy:   purge, pack
"""

from __future__ import annotations

from fsqueue.engine.packing.pack import Packed
from fsqueue.engine.pausing import Paused
from fsqueue.engine.progress import Progress
from fsqueue.operate.discarding import discard
from fsqueue.operate.operator import Outcome, Purged, pack, purge, release
from fsqueue.operate.pausing import pause, resume
from fsqueue.operate.requeue import requeue, requeue_failed
from fsqueue.operate.show import Detail, Entry, Predicate, dead_letters, entries, iterate, peek
from fsqueue.operate.status import OwnerStatus, Status, counts, status
from fsqueue.operate.stream_status import MemberStatus, QuantumStatus, StreamStatus

__all__ = [
    "Detail",
    "Entry",
    "MemberStatus",
    "Outcome",
    "OwnerStatus",
    "Packed",
    "Paused",
    "Predicate",
    "Progress",
    "Purged",
    "QuantumStatus",
    "Status",
    "StreamStatus",
    "counts",
    "dead_letters",
    "discard",
    "entries",
    "iterate",
    "pack",
    "pause",
    "peek",
    "purge",
    "release",
    "requeue",
    "requeue_failed",
    "resume",
    "status",
]
