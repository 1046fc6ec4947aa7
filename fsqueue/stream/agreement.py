"""Let data-parallel ranks agree that every one of them has its share of a window, or that none gets one.

    stream/rank@<session>.<rank>.<world>@<window>.<ready|starved>.json    {"owner": its own, "leader": rank 0's owner,
                                                                           "refs": how many it wants}
    stream/verdict@<session>@<window>.<go|end>.json                       {"owners": [rank 0's, rank 1's, ...]}

Each rank renames its one file, its *post*, from state to state. Rank 0 leads: it alone decides, and its verdict is
final: go when all are ready, end when all have spoken and some are starved. What an earlier run of the same session
left behind is never mistaken for this run's: a post counts for the leader that it names, a verdict for the owners
that it names, and an owner's name is never used twice.

A rank that was started again beside the others goes on where they are: it learns the window from rank 0's post and
verdict, or, where it is rank 0, from the posts that the others address to it. Rank 0 leaves verdicts of its predecessor
where they are, for the ranks that have not read them; the next verdict takes them away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import msgspec

from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import read_json
from fsqueue.errors import QueueConfigError
from fsqueue.format import names
from fsqueue.stream.stream import Stream

T = TypeVar("T")
Standing = Literal["ready", "starved"]
Verdict = Literal["go", "end"]


class _Post(msgspec.Struct, frozen=True):
    owner: str
    leader: str
    refs: int = 0  # 0: it does not say


class _Decision(msgspec.Struct, frozen=True):
    owners: list[str]


class Rendezvous:
    """Take one rank's part in the agreement.

    Args:
        members: the name under which each rank is a consumer of the stream, by rank.

    Attributes:
        window: the window that is being agreed on, from 0.
    """

    def __init__(self, handle: Handle, stream: Stream, rank: int, members: Sequence[str], session: str) -> None:
        self._handle = handle
        self._stream = stream
        self._rank = rank
        self._members = members
        self._session = names.owner_name(session or "default").replace(".", "%2e")
        self._leader: str | None = handle.owner if rank == 0 else None
        self._shown: dict[str, tuple[str, bytes]] = {}
        self._has_agreed = False
        self.window = 0
        self._forget_earlier_run()

    def _forget_earlier_run(self) -> None:
        for name in self._stream.directory.listing():
            if name.startswith(self._post_prefix(self._rank)):
                self._handle.ops.remove(self._stream.directory.fd, name)

    def owners(self) -> frozenset[str]:
        """Return the owners under which the ranks lease."""
        found = self._stream.open_owners("consumer")
        return frozenset(found[name] for name in self._members if name in found)

    def look_for_leader(self) -> None:
        """Learn who rank 0 is; it may have been started after this rank, or again."""
        if self._rank != 0:
            self._leader = self._stream.open_owners("consumer").get(self._members[0])

    def post(self, standing: Standing, refs: int = 0) -> None:
        """Say how this rank stands in the current window, and how many refs it wants; saying it again costs nothing."""
        if self._leader is None:
            self.look_for_leader()
        if not self._has_agreed:
            self._catch_up(self._stream.directory.listing())
        if self._leader is not None:
            content = msgspec.json.encode(_Post(self._handle.owner, self._leader, refs))
            self._show("post", f"{self._post_prefix(self._rank)}{self.window}.{standing}{names.SUFFIX}", content)

    def verdict(self) -> Verdict | None:
        """Return the verdict on the current window, which rank 0 makes here; None while there is none."""
        listing = self._stream.directory.listing()
        self._stream.greet(listing)
        for verdict in ("go", "end"):
            name = self._verdict_file(self.window, verdict)
            if name in listing and self._is_for_me(name):
                return verdict
        return self._decide(listing) if self._rank == 0 else None

    def _is_for_me(self, name: str) -> bool:
        said = self._read(name, _Decision)
        return said is not None and said.owners[self._rank : self._rank + 1] == [self._handle.owner]

    def _decide(self, listing: list[str]) -> Verdict | None:
        if not self._has_agreed:
            self._catch_up(listing)
        posts = self._posts(listing)
        if len(posts) < len(self._members):
            return None
        files = [f"{self._post_prefix(rank)}{self.window}.{posts[rank]}{names.SUFFIX}" for rank in posts]
        said = [post for file in files if (post := self._read(file, _Post)) and post.leader == self._handle.owner]
        if len(said) < len(self._members):
            return None
        self._require_one_size(said)
        owners = [post.owner for post in said]
        decided: Verdict = "go" if set(posts.values()) == {"ready"} else "end"
        content = msgspec.json.encode(_Decision(owners))
        decision = self._verdict_file(self.window, decided)
        self._show("verdict", decision, content)
        if not self._has_agreed:
            self._remove_verdicts_but(decision, listing)
        return decided

    def _require_one_size(self, said: list[_Post]) -> None:
        sizes = {rank: post.refs for rank, post in enumerate(said) if post.refs}
        if len(set(sizes.values())) > 1:
            wanted = ", ".join(f"rank {rank} {refs}" for rank, refs in sizes.items())
            raise QueueConfigError(
                self._handle.layout.path,
                f"has ranks that want different numbers of refs a window ({wanted}): give all of them the same batch= "
                "and window=",
            )

    def _remove_verdicts_but(self, decision: str, listing: list[str]) -> None:
        for name in listing:
            if name.startswith(self._verdict_prefix()) and name != decision:
                self._handle.ops.remove(self._stream.directory.fd, name)

    def next_window(self) -> None:
        self.window += 1
        self._has_agreed = True

    def _catch_up(self, listing: list[str]) -> None:
        """Go on at the window that the other ranks have come to, where they were there before this one.

        RACE: rank 0 may be ahead because of what this rank has said, and the verdict has not been read yet. That one
        was written before rank 0 went on, so it is looked for by its name, which a listing may miss.
        """
        ahead = self._post_prefix(0) if self._rank else f"rank@{self._session}."
        for name in listing:
            window = _window_of(name)
            if window is None or window < self.window:
                continue
            if name.startswith(self._verdict_prefix()) and self._rank:
                said = self._read(name, _Decision)
                if said is not None and said.owners[:1] == [self._leader] and not self._is_for_me(name):
                    self.window = window + 1
            elif name.startswith(ahead) and not name.startswith(self._post_prefix(self._rank)):
                post = self._read(name, _Post)
                if post is not None and post.leader == self._leader and not self._was_decided():
                    self.window = window

    def _was_decided(self) -> bool:
        """Tell whether there is a verdict on the current window that binds this rank."""
        return any(self._is_for_me(self._verdict_file(self.window, verdict)) for verdict in ("go", "end"))

    def _verdict_file(self, window: int, verdict: str) -> str:
        return f"{self._verdict_prefix()}{window}.{verdict}{names.SUFFIX}"

    def _read(self, name: str, kind: type[T]) -> T | None:
        return read_json(self._stream.directory, name, kind)

    def describe(self) -> str:
        """Say which ranks have spoken, for error messages."""
        posts = self._posts(self._stream.directory.listing())
        silent = [str(rank) for rank in range(len(self._members)) if rank not in posts]
        said = ", ".join(f"rank {rank} {post}" for rank, post in sorted(posts.items()))
        waiting_for = f", silent: {' '.join(silent)}" if silent else ""
        return f"window {self.window}: {said or 'no rank has spoken'}{waiting_for}"

    def _posts(self, listing: list[str]) -> dict[int, str]:
        """Map those ranks that have spoken on the current window, in their order, to how they stand."""
        found = {}
        for rank in range(len(self._members)):
            prefix = f"{self._post_prefix(rank)}{self.window}."
            for name in listing:
                if name.startswith(prefix):
                    found[rank] = name[len(prefix) : -len(names.SUFFIX)]
        return found

    def _post_prefix(self, rank: int) -> str:
        return f"rank@{self._session}.{rank}.{len(self._members)}@"

    def _verdict_prefix(self) -> str:
        return f"verdict@{self._session}@"

    def _show(self, kind: str, name: str, content: bytes) -> None:
        """Let this rank's one file of a kind say something else: a rename where only its name changes."""
        shown, directory = self._shown.get(kind), self._stream.directory
        if shown == (name, content):
            return
        same = shown is not None and shown[1] == content
        if not (same and shown and self._handle.moves.move(directory, shown[0], directory, name)):
            self._handle.moves.write(content + b"\n", directory, name, vital=True)
            if shown is not None and shown[0] != name:
                self._handle.ops.remove(directory.fd, shown[0])
        self._shown[kind] = (name, content)


def _window_of(name: str) -> int | None:
    """Return the window that a post or a verdict is about; None for other names."""
    text = name.rpartition("@")[2].partition(".")[0]
    return int(text) if text.isdigit() else None
