"""Sees what happens at the server of a run, whatever its clients believe."""

from __future__ import annotations

from fsqueue.format import names
from history.recording import Log
from simulation.script import QUEUE
from simulation.server import Inode
from simulation.world import World

LIVE = ("pending", "leased")


class Observer:
    """Sees every rename at the server: which refs settle, and whether an id ever has two live files."""

    def __init__(self, world: World, log: Log) -> None:
        self._world = world
        self._log = log
        self._folders: dict[Inode, str] = {}
        self.twice: list[str] = []
        world.server.renamed = self._renamed
        world.server.removed = self._removed

    def _renamed(self, inode: Inode, source: Inode, name: str, target: Inode, new_name: str) -> None:
        self._learn_folders()
        folder = self._folders.get(target)
        if folder in ("done", "failed") and source is not target:
            parsed = names.parse_done(new_name) if folder == "done" else (names.parse_ref(new_name),)
            if parsed and parsed[0]:
                self._log.saw("arrived", folder, [parsed[0]])
        elif folder in LIVE and (stem := stem_in(folder, new_name)) is not None:
            if self._folders.get(source) in ("done", "failed"):
                self._log.saw("requeue", "server", [stem])
            # What is fetched from done/ is looked at after it was fetched, and goes back where its id is live.
            fetched = folder == "leased" and self._folders.get(source) in ("done", "failed")
            if not fetched and len(live := self.live(stem)) > 1:
                self.twice.append(f"{stem} at {self._world.now:.3f}: {' and '.join(live)}")

    def _removed(self, directory: Inode, name: str) -> None:
        """Where done files are not kept, an acknowledged ref is removed."""
        self._learn_folders()
        folder = self._folders.get(directory, "")
        if folder in LIVE and (stem := stem_in(folder, name)) is not None:
            self._log.saw("arrived", folder, [stem])

    def _learn_folders(self) -> None:
        queue = self._world.server.walk(QUEUE)
        if len(self._folders) < 6 and queue is not None and queue.entries:
            self._folders = {inode: name for name, inode in queue.entries.items() if inode.entries is not None}

    def entries(self, folder: str) -> dict[str, Inode]:
        directory = self._world.server.walk(f"{QUEUE}/{folder}")
        return {} if directory is None or directory.entries is None else directory.entries

    def live(self, stem: str) -> list[str]:
        """The names that an id has in pending/ and leased/."""
        return [f"{folder}/{name}" for folder in LIVE for name in self.entries(folder) if stem_in(folder, name) == stem]

    def file_of(self, sample_id: str, owner: str) -> int:
        """Which copy of a ref an owner leases; any live one, where it does not really lease it."""
        stem = names.stem_of(sample_id)
        leases = ((names.parse_leased(name), inode) for name, inode in self.entries("leased").items())
        mine = next((inode for lease, inode in leases if lease and (lease.stem, lease.owner) == (stem, owner)), None)
        if mine is None:
            for folder in LIVE:
                for name, inode in self.entries(folder).items():
                    if stem_in(folder, name) == sample_id:
                        return inode.number
        return mine.number if mine is not None else 0


def stem_in(folder: str, name: str) -> str | None:
    if folder == "leased":
        parsed = names.parse_leased(name)
        return parsed[0] if parsed else None
    return names.parse_ref(name)
