"""Take a place in a stream: a namesake that is gone makes room, one that lives keeps its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fsqueue.engine.handle import Handle
from fsqueue.errors import QueueConfigError
from fsqueue.stream.members import Member, Record, Role, without_leaving

_LOOK_S = 1.0


class Places:
    """Find the files of members whose places a new one takes.

    Args:
        files: reads each member of the stream with its file.
        doubted_s: returns for how many seconds more a member's silence proves nothing.
        left_behind: tells of a member whether this handle has left it behind, where joining was cut short.
        raise_if_told: ends the wait where this process was told to stop.
    """

    def __init__(
        self,
        handle: Handle,
        files: Callable[[], list[tuple[str, Member]]],
        doubted_s: Callable[[Member], float],
        left_behind: Callable[[Member], bool],
        raise_if_told: Callable[[], None] = lambda: None,
    ) -> None:
        self._handle = handle
        self._files = files
        self._doubted_s = doubted_s
        self._left_behind = left_behind
        self._raise_if_told = raise_if_told

    def taken_by(self, role: Role, record: Record, group: frozenset[str]) -> list[tuple[str, Member]]:
        """Return those who make room for a new member, with their files, once they all have.

        They are its namesakes, and where it is a rank, members of an earlier group of this session that are no ranks
        of the new one. An open one makes room where its process is proven to be gone: by its host, or by a launcher
        that has started this process in its place. Else it has to fall silent, which this waits for.

        Args:
            group: the names of all ranks.

        Raises:
            QueueConfigError: a member that would have to make room lives.
        """
        seen: dict[str, float] = {}
        while True:
            found = list(self._in_the_way(role, record, group))
            staying = [(file, member) for file, member in without_leaving(found) if not self._has_gone(member, record)]
            if not staying:
                return found
            for file, member in staying:
                alive = member.record.process.liveness() == "alive"
                if alive or seen.setdefault(file, member.beat_at) != member.beat_at:
                    raise QueueConfigError(self._handle.layout.path, self._refusal(member, record))
            self._handle.ops.sleep(min(_LOOK_S, *(self._left_s(member) for _, member in staying)))
            self._raise_if_told()

    def _in_the_way(self, role: Role, record: Record, group: frozenset[str]) -> Iterator[tuple[str, Member]]:
        for file, member in self._files():
            other = member.record
            of_earlier_group = record.group is not None and other.group == record.group and other.name not in group
            if member.role == role and (member.may_be_called(record.name) or of_earlier_group):
                yield file, member

    def _has_gone(self, member: Member, record: Record) -> bool:
        if member.state != "open" or member.record.process.liveness() == "dead" or self._left_behind(member):
            return True
        if record.launch.succeeds(member.record.launch):
            return True
        return member.standing == "silent" and not self._doubted_s(member)

    def _left_s(self, member: Member) -> float:
        """Return for how long at least this member cannot be known to be gone, seconds."""
        return max(0.01, member.silence_s - member.age_s, self._doubted_s(member))

    def _refusal(self, member: Member, record: Record) -> str:
        advice = "give this one another name, or end that one"
        if not member.may_be_called(record.name):
            advice = f"it is of an earlier group of session {record.group!r}: end it, or take another session"
        return f"has a {member.describe()}: {advice}"
