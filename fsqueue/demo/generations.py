"""Let the trainers' ranks and the supervisor agree on a generation, by files alone.

The supervisor counts generations up in DIR/rendezvous/generation, each time before it starts a dead rank again.
Every rank announces itself for the current generation and waits for all the others; only then do they connect
(group.py). A rank whose peer dies sees its collective fail, leaves, and waits for the next generation; what it has
trained and leased stays with it.

    wait_for_peers -> connect -> collectives -> leave                      the normal end
    wait_for_peers -> connect -> collectives -> PeerLostError -> leave     and wait_for_peers again
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from fsqueue.demo.demo_dir import DemoDirectory, Parent, publish

_NEW_GENERATION_TIMEOUT_S = 60.0
_POLL_S = 0.02


class FinishedError(Exception):
    """The training has finished; there is no group to join any more."""


class Generations:
    """The files through which ranks and supervisor agree on a generation."""

    def __init__(self, demo: DemoDirectory) -> None:
        self._demo = demo

    def generation(self) -> int:
        """Return the current generation; 0 before the first."""
        try:
            return int(Path(self._at("generation")).read_bytes())
        except FileNotFoundError:
            return 0

    def advance(self) -> None:
        """Begin the next generation. The supervisor alone does this."""
        publish(self._at("generation"), str(self.generation() + 1).encode())

    def store(self, generation: int) -> str:
        """Return the path of the file by which torch connects the ranks of a generation."""
        return self._at(f"{generation}.store")

    def wait_for_peers(self, rank: int, world_size: int, after: int, parent: Parent) -> int:
        """Wait for a generation later than `after` in which all ranks are here; returns it.

        Raises:
            FinishedError: the training is complete.
            SystemExit: no later generation begins; the supervisor will start this rank again.
        """
        announced = after
        deadline = time.monotonic() + _NEW_GENERATION_TIMEOUT_S
        while True:
            if self.finished():
                raise FinishedError
            generation = self.generation()
            if generation > announced:
                publish(self._at(f"{generation}.rank-{rank}"), str(os.getpid()).encode())
                announced = generation
            ranks = (self._at(f"{announced}.rank-{rank}") for rank in range(world_size))
            if announced > after and all(map(os.path.exists, ranks)):
                return announced
            if announced == after and time.monotonic() > deadline:
                raise SystemExit(f"no generation after {after} began within {_NEW_GENERATION_TIMEOUT_S:.0f} s")
            parent.sleep(_POLL_S)

    def finish(self) -> None:
        """Say that the training is complete and its last checkpoint written. Rank 0 alone does this."""
        publish(self._at("finished"), b"")

    def finished(self) -> bool:
        return os.path.exists(self._at("finished"))

    def _at(self, name: str) -> str:
        return self._demo.at("rendezvous", name)
