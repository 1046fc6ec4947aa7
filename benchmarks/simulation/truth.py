"""What really happened in a run of a stream, whatever its members believe of each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

from fsqueue.stream.members import Member
from fsqueue.stream.membership import Membership
from simulation.observer import LIVE, Observer, stem_in
from simulation.stream_plan import SILENCE_S
from simulation.world import World

_MARGIN_S = 1.0
_LEAVING_S = 60.0


class Truth:
    """Notes what members do, and whether what they conclude from each other's files is so.

    Attributes:
        put: the ids whose put has begun.
        acking: the ids whose ack has begun.
        trained: id to those who trained it, and were told that their lease was good.
        closed: the producers that had put all that they have.
        at_work: the members that have joined and not begun to leave, with their owners.
        ended: those that are started no more.
        gone: the members that do not come back, with when they ended.
        is_over: the run is, whoever still waits.
        moved_at: when anything was done, or befell anybody, for the last time.
    """

    def __init__(self, world: World, observer: Observer) -> None:
        self.problems: list[str] = []
        self.put: set[str] = set()
        self.acking: set[str] = set()
        self.trained: dict[str, list[str]] = defaultdict(list)
        self.closed: set[str] = set()
        self.at_work: dict[str, str] = {}
        self.ended: set[str] = set()
        self.gone: dict[str, float] = {}
        self.successions = self.withdrawals = self.refusals = 0
        self.moved_at = world.now
        self.is_over = False
        self._world = world
        self._observer = observer
        self._beats: dict[str, list[float]] = defaultdict(list)
        self._seen: dict[str, list[float]] = defaultdict(list)  # when each was there, in order
        self._leaving: set[str] = set()

    def moved(self) -> None:
        self.moved_at = self._world.now

    def beaten(self, beat: Callable[[], None], ago_s: float) -> None:
        """Note the beat of a member, as of when it was begun; beats of leases say nothing of it."""
        member = getattr(beat, "__self__", None)
        if isinstance(member, Membership):
            self._beats[member._record.process.owner].append(self._world.now - ago_s)
            if member._record.process.owner not in self._leaving:
                self._seen[member.name].append(self._world.now - ago_s)

    def leaves(self, name: str) -> None:
        """Note that one begins to withdraw; its later beats do not say that it is at work."""
        self._leaving.add(self.at_work.pop(name, ""))

    def joined(self, member: Membership, since: float) -> None:
        """Note that one has joined, which it began at that time."""
        self._beats[member._record.process.owner].append(since)
        self.at_work[member.name] = member._record.process.owner
        self._seen[member.name].append(since)
        self.moved()

    def has_trained(self, sample_id: str, who: str) -> None:
        """Two who may each take a sample's gradient for theirs: it is in the final state twice."""
        self.trained[sample_id].append(who)
        if len(self.trained[sample_id]) > 1:
            self.problems.append(f"trained twice: {sample_id} by {' and '.join(self.trained[sample_id])}")

    def judge_standings(self, seen: list[Member], since: float) -> None:
        """None is silent who beat within the silence, at each moment from when another began to look."""
        for member in seen:
            silent_s = self._longest_silence_s(member.record.process.owner, since)
            if member.standing == "silent" and silent_s < member.silence_s - _MARGIN_S:
                self.problems.append(f"called silent: {member.describe()}, silent for {silent_s:.1f} s at most")

    def _beats_at_work(self, name: str) -> bool:
        owner = self.at_work.get(name)
        return owner is not None and self._longest_silence_s(owner, self._world.now) < SILENCE_S - _MARGIN_S

    def _longest_silence_s(self, owner: str, since: float) -> float:
        """How long after a beat any moment was, from then to now; one that died, or hung, as it joined had none."""
        beats = self._beats[owner]
        last = max((at for at in beats if at <= since), default=float("-inf"))
        later = [at for at in beats if at > since]
        return max(after - before for before, after in zip([last, *later], [*later, self._world.now], strict=True))

    def judge_error(self, error: Exception, said_of: str, await_s: float) -> None:
        """Only one that is gone for good may end others, or one that was really away for as long as they wait.

        It may be back by the time that whoever raised has left: leaving may hang, too.
        """
        name = said_of.split("'")[1]
        seen = [*sorted(self._seen[name]), self._world.now]
        gaps = (after - before for before, after in pairwise(seen) if after > self._world.now - _LEAVING_S)
        away_s = max(gaps, default=self._world.now)
        if name not in self.gone and away_s < await_s - _MARGIN_S:
            self.problems.append(f"called missing: {error}")

    def judge_end(self, producers: list[str], quorum: int) -> None:
        """The stream is over: all have closed that have to, and nothing can be delivered any more."""
        open_yet = sorted(set(producers) - self.closed)
        if quorum and len(self.closed) >= quorum:
            open_yet = [name for name in open_yet if self._beats_at_work(name)]
        if open_yet:
            self.problems.append(f"ended early: {', '.join(open_yet)} had not closed")
        live = [
            f"{folder}/{name}" for folder in LIVE for name in self._observer.entries(folder) if stem_in(folder, name)
        ]
        if live:
            self.problems.append(f"ended early: there were {', '.join(live)}")
