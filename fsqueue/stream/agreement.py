"""Let data-parallel ranks agree that every one of them has its share of a window, or that none gets one.

Each rank renames its one file, its *post*, from window to window (posts.py names the files). Rank 0 leads: it alone
decides, and its verdict is final: go when all are ready, end when all have spoken and some are starved. What an earlier
run of the same session left behind is never mistaken for this run's: a post counts for the leader that it names, where
its owner is a member that has not left, and a verdict binds the owners that it names.

A rank that was started again beside the others, whether or not its predecessor still runs, goes on where they are:

- A rank goes on at rank 0's window, which rank 0's post shows, once nothing binds it at its own. A verdict that binds
  another process in its place is over for it, too: after a go it goes on at the next window, after an end it ends.
- Rank 0 goes on at the furthest window from which another rank speaks to it: that one was led there by the rank 0
  before.

So the windows of those who are members never stay apart, whoever else still writes. Rank 0 leaves verdicts of its
predecessor where they are, for the ranks that have not read them; the next verdict takes them away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import msgspec

from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import read_json
from fsqueue.errors import QueueConfigError
from fsqueue.stream.members import Member, open_file
from fsqueue.stream.posts import Decision, Grammar, Post, PostName, Standing, Verdict, VerdictName
from fsqueue.stream.stream import Stream

T = TypeVar("T")

_SURELY_S = 1.0
_VERDICTS: tuple[Verdict, ...] = ("go", "end")


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
        self._grammar = Grammar(session, len(members))
        self._me = stream.new_voice()
        self._leader: str | None = handle.owner if rank == 0 else None
        self._shown: dict[str, tuple[str, bytes]] = {}
        self._spoke_at = -1  # the last window for which this rank has posted
        self._decided: VerdictName | None = None
        self._decision = b""
        self._has_cleared = False
        self._overtaken: tuple[int, float] | None = None
        self.window = 0
        self._forget_earlier_run()
        self.look_for_leader()

    def _forget_earlier_run(self) -> None:
        for name in self._stream.directory.listing():
            if self._grammar.is_of_rank(name, self._rank):
                self._handle.ops.remove(self._stream.directory.fd, name)

    def owners(self) -> frozenset[str]:
        """Return the owners under which the ranks lease."""
        return frozenset(self._stream.open_owners("consumer", self._members))

    def look_for_leader(self, found: list[Member] | None = None) -> None:
        """Learn who rank 0 is, among these members where they were read; it may have been started after this, or again.

        RACE: while a successor takes rank 0's place, both are there: so who it is changes once only one is. Where none
        is, it remains the one that was, whose last verdict may not have been read yet.
        """
        if self._rank != 0:
            self._leader = self._stream.owner_in_place("consumer", self._members[0], self._leader, found)

    def post(self, standing: Standing, refs: int = 0) -> None:
        """Say how this rank stands in the current window, and how many refs it wants; saying it again costs nothing."""
        if self._leader is None:
            self.look_for_leader()
        if self._spoke_at < 0:
            listing = self._stream.directory.listing()
            if self._rank == 0:
                self._catch_up(listing)
            else:
                self._follow(listing)
        if self._leader is not None:
            content = msgspec.json.encode(Post(self._me, self._leader, refs))
            said = PostName(self._rank, self._handle.owner, self.window, standing)
            self._show("post", self._grammar.post(said), content)
            self._spoke_at = self.window

    def verdict(self) -> Verdict | None:
        """Return the verdict on the current window, which rank 0 makes here; None while there is none.

        The current window may be a later one afterwards.
        """
        listing = self._stream.directory.listing()
        self._stream.greet(listing)
        return self._decide(listing) if self._rank == 0 else self._follow(listing)

    def _decide(self, listing: list[str]) -> Verdict | None:
        if self._decided is None or self._decided.window != self.window:
            self._catch_up(listing)
            posts = self._said(listing)
            if len(posts) < len(self._members):
                return None
            self._require_one_size([post for _, post in posts])
            go = all(name.standing == "ready" for name, _ in posts)
            self._decided = VerdictName(self._handle.owner, self.window, "go" if go else "end")
            self._decision = msgspec.json.encode(Decision([post.owner for _, post in posts]))
        decided = self._grammar.verdict(self._decided)
        self._show("verdict", decided, self._decision)
        if not self._has_cleared:
            self._remove_verdicts_but(decided, listing)
            self._has_cleared = True
        return self._decided.verdict

    def _said(self, listing: list[str]) -> list[tuple[PostName, Post]]:
        """Return what the ranks say to this one, rank 0, on the current window, one post a rank, in their order."""
        there = [name for name in self._of_members(listing) if name.window == self.window]
        if len({name.rank for name in there}) < len(self._members):
            return []
        return [said for _, said in sorted({said[0].rank: said for said in self._to_me(there)}.items())]

    def _to_me(self, found: list[PostName]) -> list[tuple[PostName, Post]]:
        read = [(name, self._read(self._grammar.post(name), Post)) for name in found]
        return [(name, post) for name, post in read if post is not None and post.leader == self._handle.owner]

    def _of_members(self, listing: list[str]) -> list[PostName]:
        """Return the posts of those in a listing who are members that have not left, by the same listing."""
        there = set(listing)
        return [
            name
            for name in self._grammar.posts(listing)
            if name.rank < len(self._members)
            and (name.owner == self._handle.owner or self._open_file(name.rank, name.owner) in there)
        ]

    def _open_file(self, rank: int, owner: str) -> str:
        return open_file("consumer", self._members[rank], owner)

    def _require_one_size(self, said: list[Post]) -> None:
        sizes = {rank: post.refs for rank, post in enumerate(said) if post.refs}
        if len(set(sizes.values())) > 1:
            wanted = ", ".join(f"rank {rank} {refs}" for rank, refs in sizes.items())
            raise QueueConfigError(
                self._handle.layout.path,
                f"has ranks that want different numbers of refs a window ({wanted}): give all of them the same batch= "
                "and window=",
            )

    def _remove_verdicts_but(self, decided: str, listing: list[str]) -> None:
        """Remove those of others, and of an earlier view of this handle."""
        for name in listing:
            if self._grammar.is_verdict(name) and name != decided:
                self._handle.ops.remove(self._stream.directory.fd, name)

    def next_window(self) -> None:
        self.window += 1

    def _catch_up(self, listing: list[str]) -> None:
        """Go on at the furthest window from which another rank speaks to this one, rank 0.

        RACE: not at one on which an earlier view of this handle has decided, and which that rank is about to leave.
        """
        mine = {name.window for name in self._grammar.verdicts(listing) if name.leader == self._handle.owner}
        ahead = [it for it in self._of_members(listing) if it.window > self.window and it.window not in mine]
        self.window = max((name.window for name, _ in self._to_me(ahead)), default=self.window)

    def _follow(self, listing: list[str]) -> Verdict | None:
        """Return the verdict that binds this rank; where another process is bound in its place, go on behind it."""
        lead = self._lead(listing)
        is_behind = lead is not None and lead.window > self.window
        passed: Verdict | None = None
        for said in self._verdicts_here(listing, lead if is_behind else None):
            owners = self._owners(said)
            if owners[self._rank :][:1] == [self._me]:
                if said.verdict == "go" or self._is_still_led_by(said.leader):
                    return said.verdict
            elif owners and lead is not None and self._is_of(lead, said, owners[0]):
                passed = said.verdict
        if passed == "go":
            self.window += 1
        elif passed is None and is_behind and lead is not None and self._is_surely_overtaken():
            self.window = lead.window
        return passed if passed == "end" else None

    def _lead(self, listing: list[str]) -> PostName | None:
        """Return where rank 0 stands; None while it has not spoken."""
        found = [name for name in self._grammar.posts(listing) if (name.rank, name.owner) == (0, self._leader)]
        return max(found, key=lambda name: name.window, default=None)

    def _verdicts_here(self, listing: list[str], lead: PostName | None) -> list[VerdictName]:
        """Return the verdicts on the current window, with those that the leader may have made, go first.

        RACE: one that rank 0 has made before it went on is there, also where the listing has missed it.
        """
        here = {name for name in self._grammar.verdicts(listing) if name.window == self.window}
        if lead is not None:
            here |= {VerdictName(lead.owner, self.window, verdict) for verdict in _VERDICTS}
        return sorted(here, key=lambda name: (name.verdict != "go", name.leader))

    def _owners(self, name: VerdictName) -> list[str]:
        said = self._read(self._grammar.verdict(name), Decision)
        return said.owners if said is not None else []

    def _is_still_led_by(self, leader: str) -> bool:
        """Tell whether this rank has no other leader than that one, by a look of its own.

        RACE: one that was stopped, and is rank 0 no longer, may say end when it wakes, and its successor has work.
        """
        self.look_for_leader()
        return self._leader == leader

    def _is_of(self, lead: PostName, said: VerdictName, voice: str) -> bool:
        """Tell whether the leader has made this verdict in the view that it has now."""
        if said.leader != lead.owner or lead.window < self.window:
            return False
        post = self._read(self._grammar.post(lead), Post)
        return post is not None and post.owner == voice

    def _is_surely_overtaken(self) -> bool:
        """Tell whether rank 0 has gone on without this rank; it shows itself further on, and no verdict does here.

        RACE: a verdict that binds this rank may be there, and this listing have missed it, or this client remember
        that there is none. It was written before rank 0 went on: so it is there for whoever looks a second later.
        """
        if self._spoke_at < self.window:
            return True
        now = self._handle.ops.monotonic()
        if self._overtaken is None or self._overtaken[0] != self.window:
            self._overtaken = self.window, now
        if now - self._overtaken[1] < _SURELY_S:
            return False
        self._stream.directory.refresh()
        found = self._verdicts_here(self._stream.directory.listing(), None)
        return not any(self._owners(name)[self._rank :][:1] == [self._me] for name in found if name.verdict == "go")

    def _read(self, name: str, kind: type[T]) -> T | None:
        return read_json(self._stream.directory, name, kind)

    def describe(self) -> str:
        """Say which ranks have spoken, for error messages."""
        listing = self._stream.directory.listing()
        posts = {name.rank: name.standing for name in self._of_members(listing) if name.window == self.window}
        silent = [str(rank) for rank in range(len(self._members)) if rank not in posts]
        said = ", ".join(f"rank {rank} {post}" for rank, post in sorted(posts.items()))
        waiting_for = f", silent: {' '.join(silent)}" if silent else ""
        return f"window {self.window}: {said or 'no rank has spoken'}{waiting_for}"

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
