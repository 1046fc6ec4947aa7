"""Data-parallel ranks in processes of their own, driven batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import Child


class Group:
    """Ranks that run ``target(pipe, path, rank, world, *args)``: each tells what it has, and goes on when told to."""

    def __init__(self, target: Callable[..., None], path: Path, world: int, *args: Any) -> None:
        self.target, self.path, self.world, self.args = target, path, world, args
        self.ranks = [self.start(rank) for rank in range(world)]

    def start(self, rank: int) -> Child:
        return Child(self.target, self.path, rank, self.world, *self.args).__enter__()

    def batches(self) -> list[Any]:
        """What each rank says next; then they may go on."""
        said = [child.receive() for child in self.ranks]
        for child, word in zip(self.ranks, said, strict=True):
            if word != "ended":
                child.send("go on")
        return said

    def kill(self, rank: int) -> None:
        self.ranks[rank].kill()

    def restart(self, rank: int) -> None:
        self.ranks[rank] = self.start(rank)

    def end(self) -> None:
        for child in self.ranks:
            child.__exit__(None, None, None)
