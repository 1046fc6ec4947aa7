"""Agreement between data-parallel ranks that every one of them has its share of a window, or that none gets one.

    stream/rank@<session>.<rank>.<world>@<window>.<ready|starved>.json
    stream/verdict@<session>@<window>.<go|end>.json

Each rank renames its one file from state to state. Rank 0 alone decides, and its verdict is final: go when all
are ready, end when all have spoken and some are starved.
"""

from __future__ import annotations

from typing import Literal

from fsqueue import names
from fsqueue.fileops import Directory
from fsqueue.handle import Handle

Post = Literal["ready", "starved"]
Verdict = Literal["go", "end"]


class Rendezvous:
    """One rank's part in the agreement.

    Attributes:
        window: the window that is being agreed on, from 0.
    """

    def __init__(self, handle: Handle, directory: Directory, rank: int, world: int, session: str) -> None:
        self._handle = handle
        self._directory = directory
        self._rank = rank
        self._world = world
        self._session = names.owner_name(session or "default").replace(".", "%2e")
        self._file: str | None = None
        self._verdict_file: str | None = None
        self.window = 0
        self._forget_earlier_run()

    def _forget_earlier_run(self) -> None:
        mine = [f"rank@{self._session}.{self._rank}.{self._world}@"]
        if self._rank == 0:
            mine.append(f"verdict@{self._session}@")
        for name in self._directory.listing():
            if name.startswith(tuple(mine)):
                self._handle.ops.remove(self._directory.fd, name)

    def post(self, post: Post) -> None:
        """Say how this rank stands in the current window; saying it again costs nothing."""
        name = f"rank@{self._session}.{self._rank}.{self._world}@{self.window}.{post}{names.SUFFIX}"
        if name != self._file:
            self._replace(self._file, name)
            self._file = name

    def verdict(self) -> Verdict | None:
        """The verdict on the current window, made here where this is rank 0; None while there is none."""
        listing = self._directory.listing()
        for verdict in ("go", "end"):
            if self._verdict_name(verdict) in listing:
                return verdict
        if self._rank != 0:
            return None
        posts = self._posts(listing)
        if len(posts) < self._world:
            return None
        decided: Verdict = "go" if all(post == "ready" for post in posts.values()) else "end"
        self._replace(self._verdict_file, self._verdict_name(decided))
        self._verdict_file = self._verdict_name(decided)
        return decided

    def next_window(self) -> None:
        self.window += 1

    def describe(self) -> str:
        """Which ranks have spoken, for error messages."""
        posts = self._posts(self._directory.listing())
        silent = [str(rank) for rank in range(self._world) if rank not in posts]
        said = ", ".join(f"rank {rank} {post}" for rank, post in sorted(posts.items()))
        waiting_for = f", silent: {' '.join(silent)}" if silent else ""
        return f"window {self.window}: {said or 'no rank has spoken'}{waiting_for}"

    def _posts(self, listing: list[str]) -> dict[int, str]:
        """Rank to post, of those that have spoken on the current window."""
        found = {}
        for rank in range(self._world):
            prefix = f"rank@{self._session}.{rank}.{self._world}@{self.window}."
            for name in listing:
                if name.startswith(prefix):
                    found[rank] = name[len(prefix) : -len(names.SUFFIX)]
        return found

    def _verdict_name(self, verdict: str) -> str:
        return f"verdict@{self._session}@{self.window}.{verdict}{names.SUFFIX}"

    def _replace(self, old: str | None, new: str) -> None:
        if old is None or not self._handle.moves.move(self._directory, old, self._directory, new):
            self._handle.moves.write(b"{}\n", self._directory, new)
