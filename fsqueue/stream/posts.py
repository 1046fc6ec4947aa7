"""Name the files by which the ranks of a group agree on a window, and say what is in them.

    stream/rank@<session>.<rank>.<world>.<owner>@<window>.<ready|starved>.json    a *post*: how a rank stands
    stream/verdict@<session>.<leader>@<window>.<go|end>.json                      what rank 0 has decided

Each handle has names of its own. So one that was replaced, and does not know it yet, writes over nothing that its
successor says, and no rename carries another one's words on to the next window.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

from fsqueue.format import names

Standing = Literal["ready", "starved"]
Verdict = Literal["go", "end"]


class Post(msgspec.Struct, frozen=True):
    """Hold what a rank says.

    Attributes:
        owner: who says it: the handle's owner, with a number behind a ``+`` from its second view on.
        leader: the owner of the rank 0 whom it is meant for.
        refs: how many refs it wants in a window; 0: it does not say.
    """

    owner: str
    leader: str
    refs: int = 0


class Decision(msgspec.Struct, frozen=True):
    """Hold whom a verdict binds: the owners in the posts that it rests on, by rank."""

    owners: list[str]


class PostName(NamedTuple):
    rank: int
    owner: str
    window: int
    standing: str


class VerdictName(NamedTuple):
    leader: str
    window: int
    verdict: Verdict


class Grammar:
    """Make and read these names, for one group of ranks."""

    def __init__(self, session: str, world: int) -> None:
        self._session = names.owner_name(session or "default").replace(".", "%2e")
        self._world = world

    def post(self, said: PostName) -> str:
        head = f"rank@{self._session}.{said.rank}.{self._world}.{said.owner}"
        return f"{head}@{said.window}.{said.standing}{names.SUFFIX}"

    def verdict(self, said: VerdictName) -> str:
        return f"verdict@{self._session}.{said.leader}@{said.window}.{said.verdict}{names.SUFFIX}"

    def longest_name(self, owner: str) -> str:
        """Return a name as long as any that this handle gives."""
        return self.post(PostName(self._world, owner, 10**9, "starved"))

    def is_of_rank(self, name: str, rank: int) -> bool:
        """Tell whether a post is this rank's, of whatever handle, also where it bears no owner, as posts once did."""
        head = f"rank@{self._session}.{rank}.{self._world}"
        return name.startswith((f"{head}.", f"{head}@"))

    def is_verdict(self, name: str) -> bool:
        return name.startswith((f"verdict@{self._session}.", f"verdict@{self._session}@"))

    def posts(self, listing: list[str]) -> list[PostName]:
        """Return the posts in a listing of stream/."""
        head, found = f"rank@{self._session}.", []
        for name in listing:
            if name.startswith(head) and (parts := _parts(name, head)):
                rank, _, rest = parts[0].partition(".")
                world, _, owner = rest.partition(".")
                if rank.isdigit() and world == str(self._world) and owner:
                    found.append(PostName(int(rank), owner, *parts[1:]))
        return found

    def verdicts(self, listing: list[str]) -> list[VerdictName]:
        """Return the verdicts in a listing of stream/."""
        head = f"verdict@{self._session}."
        parsed = [_parts(name, head) for name in listing if name.startswith(head)]
        return [VerdictName(*parts) for parts in parsed if parts]  # type: ignore[arg-type]


def _parts(name: str, head: str) -> tuple[str, int, str] | None:
    """Return what comes behind a head, up to the @, and the window and the word behind that."""
    who, _, said = name[len(head) :].removesuffix(names.SUFFIX).partition("@")
    window, _, word = said.partition(".")
    return (who, int(window), word) if window.isdigit() and name.endswith(names.SUFFIX) else None
