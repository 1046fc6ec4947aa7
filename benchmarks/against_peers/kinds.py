"""All peers, by the names that `peers.py --only` takes."""

from __future__ import annotations

from against_peers.base import PeerSubject
from against_peers.files import Dirq, HueyFiles, KombuFiles, TaskQueue
from against_peers.sqlite import DiskcacheDeque, LiteQueue, PersistQueue

PEERS: dict[str, type[PeerSubject]] = {
    "task-queue": TaskQueue,
    "dirq": Dirq,
    "huey": HueyFiles,
    "kombu": KombuFiles,
    "persist-queue": PersistQueue,
    "litequeue": LiteQueue,
    "diskcache": DiskcacheDeque,
}
