"""Remember who takes part in a stream, so that whoever waits on a shared mount asks its server little.

A listing shows who came, left or failed. While it shows nothing new, a member's file is looked at only once its last
known beat is so old that it would have fallen silent: a stat, which may be remembered, tells that it has beaten since.
Whatever seems to be wrong is read anew before anybody acts on it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from fsqueue.disk.directory import Directory
from fsqueue.engine.handle import Handle
from fsqueue.stream.members import Member, parse_member
from fsqueue.stream.policy import StreamPolicy, read_policy

Files = list[tuple[str, Member]]

_READ_ANEW_S = 300.0
_POLICY_S = 30.0


class Roster:
    """Hold what one handle has read of the members, and until when that may be believed.

    Args:
        read: reads each member that a listing names, with its file.
    """

    def __init__(self, handle: Handle, directory: Directory, read: Callable[[list[str]], Files]) -> None:
        self._handle = handle
        self._directory = directory
        self._read = read
        self._files: Files = []
        self._policy, self._policy_until = StreamPolicy(), -inf
        self._believed_until = -inf
        self._ahead_s = 0.0  # the filesystem's clock, of the monotonic one

    def look(self, listing: list[str]) -> Files:
        """Return the members that a listing names, with their files; of who is at work the last beat may be older."""
        now = self._handle.ops.monotonic()
        if now < self._believed_until and self._is_as_it_was(listing):
            files = [self._as_of(now, file, member) for file, member in self._files]
            if not any(member.is_missing for _, member in files):
                self._files = files
                return files
        return self._read_anew(listing)

    def _is_as_it_was(self, listing: list[str]) -> bool:
        if {name for name in listing if parse_member(name)} != {file for file, _ in self._files}:
            return False
        now = self._handle.ops.monotonic()
        if now < self._policy_until:
            return True
        self._policy_until = now + _POLICY_S
        return read_policy(self._directory) == self._policy

    def _as_of(self, now: float, file: str, member: Member) -> tuple[str, Member]:
        aged = member._replace(age_s=now + self._ahead_s - member.beat_at)
        if aged.standing == "silent":
            status = self._handle.ops.status(self._directory.fd, file)
            beat_at = max(member.beat_at, status.st_mtime if status else 0.0)
            aged = aged._replace(beat_at=beat_at, age_s=now + self._ahead_s - beat_at)
        return file, aged

    def _read_anew(self, listing: list[str]) -> Files:
        self._files = files = self._read(listing)
        now, known = self._handle.ops.monotonic(), self._handle.layout.remote and not self._handle.clock.injected
        if not known or not files or any(member.unreadable for _, member in files):
            self._believed_until = -inf
            return files
        last = files[0][1]
        self._policy, self._policy_until = last.policy, now + _POLICY_S
        self._ahead_s = last.beat_at + last.age_s - now
        self._believed_until = now + min(_READ_ANEW_S, last.policy.await_s / 2)
        return files
