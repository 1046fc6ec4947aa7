"""Look at a file of stream/ for what is wrong with it, by itself and beside the others."""

from __future__ import annotations

import os
import re
import stat as stat_module
from collections.abc import Iterator

import msgspec

from fsqueue.disk.directory import Directory
from fsqueue.disk.publish import read_replaced
from fsqueue.engine.clock import FilesystemClock
from fsqueue.engine.layout import ORDER, Layout, read_json
from fsqueue.errors import CorruptRefError
from fsqueue.format.codec import UNDECODABLE
from fsqueue.format.untyped import type_name
from fsqueue.operate.check.violations import Problem
from fsqueue.stream.members import Member, parse_member, read_members
from fsqueue.stream.policy import POLICY, StreamPolicy
from fsqueue.stream.stream import QUANTUM, read_quantum

_is_agreement = re.compile(
    r"(?:rank@[^@]+\.\d+\.\d+(?:\.[^@]+)?@\d+\.(?:ready|starved)|verdict@[^@]+@\d+\.(?:go|end))\.json\Z"
).match


class _Signed(msgspec.Struct):
    """Name the owner of a post, or those whom a verdict binds."""

    owner: str = ""
    owners: list[str] = []


class StreamLooks:
    """Look at the files of an open queue's stream/.

    Args:
        leftover_s: seconds after which posts and verdicts are leftovers, where none of their ranks is there.
    """

    def __init__(self, layout: Layout, directory: Directory, leftover_s: float) -> None:
        self._ops = layout.ops
        self._layout = layout
        self._directory = directory
        self._leftover_s = leftover_s
        self._began_at: float | None = None  # the filesystem's time when the monotonic clock was 0
        self._now = 0.0
        self._members: dict[str, Member] = {}

    def refresh(self) -> None:
        """Read all members anew: what is wrong with a file may depend on the others."""
        listing = self._directory.listing()
        self._now = self._time([name for name in listing if _may_be_silent(name)])
        found = read_members(self._ops, self._directory, listing, self._now)
        self._members = {name: member for name, member in found if not member.unreadable}

    def _time(self, silent: list[str]) -> float:
        """Return the time by the clock that stamped these files; asked for once, with a touch of the order file.

        Where it cannot be touched, their newest stamp counts as now: whoever was outlived is silent.
        """
        if not silent:
            return 0.0
        if self._began_at is None:
            now = self._ask()
            if now is None:
                now = max(self._ops.fresh_mtime(self._directory.fd, name) or 0.0 for name in silent)
            self._began_at = now - self._ops.monotonic()
        return self._began_at + self._ops.monotonic()

    def _ask(self) -> float | None:
        root = self._layout.root
        try:
            FilesystemClock(self._ops, root).stamp(root, ORDER)
            return self._ops.fresh_mtime(root.fd, ORDER)
        except OSError:
            return None

    def problems(self, name: str, status: os.stat_result) -> Iterator[Problem]:
        """Yield what is wrong with a file."""
        if not stat_module.S_ISREG(status.st_mode):
            yield "foreign", f"a {type_name(status)}"
        elif name == POLICY:
            if read_json(self._directory, POLICY, StreamPolicy) is None:
                yield "policy-unreadable", "says nothing of who is missed: the defaults hold"
        elif name == QUANTUM:
            if read_quantum(self._directory) is None:
                yield "quantum-unreadable", "says nothing of what the consumers take"
        elif parse_member(name):
            yield from self._member(name)
        elif not _is_agreement(name):
            yield "foreign", "no file of the stream's"
        elif self._now - status.st_mtime > self._leftover_s and not self._is_of_somebody(name):
            yield "leftover", "ranks that are gone have agreed on it"

    def _member(self, name: str) -> Iterator[Problem]:
        found = self._members.get(name)
        if found is None:
            yield "member-unreadable", "holds no record of a member: the others take it for one at work"
            return
        if self._replaced(found):
            yield "leftover", f"{found.record.name!r} has failed, or was started again"
        elif found.standing == "silent":
            yield "member-silent", f"{found.describe()} gives no sign of life: the others {_what_follows(found)}"

    def _replaced(self, member: Member) -> bool:
        """Tell whether this member died while it failed, or its successor while it took this one's place."""
        for other in self._members.values():
            if (other.role, other.record.name) != (member.role, member.record.name):
                continue
            one, two = member.record.process, other.record.process
            left = member.state == "open" and other.state in ("failed", "withdrawn")
            if two.started_at > one.started_at or (one == two and left):
                return True
        return False

    def _is_of_somebody(self, name: str) -> bool:
        """Tell whether a member that has not left wrote it, or is bound by it."""
        try:
            signed = msgspec.json.decode(read_replaced(self._directory, name), type=_Signed)
        except (FileNotFoundError, CorruptRefError, *UNDECODABLE):
            return False
        there = {member.record.process.owner for member in self._members.values() if member.state == "open"}
        return not there.isdisjoint(voice.partition("+")[0] for voice in (signed.owner, *signed.owners))


def _what_follows(silent: Member) -> str:
    return "stop" if silent.record.required else f"wait for it, for {silent.policy.await_s:.0f} s at most"


def _may_be_silent(name: str) -> bool:
    member = parse_member(name)
    return member[1] == "open" if member else _is_agreement(name) is not None
