"""All peers, by the names that `peers.py --only` takes."""

from __future__ import annotations

from peer_base import PeerSubject
from peer_files import Dirq, HueyFiles, KombuFiles, TaskQueue
from peer_sqlite import DiskcacheDeque, LiteQueue, PersistQueue

PEERS: dict[str, type[PeerSubject]] = {
    "task-queue": TaskQueue,
    "dirq": Dirq,
    "huey": HueyFiles,
    "kombu": KombuFiles,
    "persist-queue": PersistQueue,
    "litequeue": LiteQueue,
    "diskcache": DiskcacheDeque,
}
