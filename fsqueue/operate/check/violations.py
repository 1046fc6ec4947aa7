"""Name the kinds of violation, and what is done about each: the vocabulary of `fsqueue check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["damage", "note"]
Problem = tuple[str, str]
"""A kind of violation, and what is wrong in words."""


@dataclass(frozen=True)
class Violation:
    """Name one thing in a queue that is not as it should be.

    Attributes:
        remedy: what `repair` does about it; "none: ..." where it leaves that to a person or to time.
        kind: a stable word for the problem, for programs.
        severity: "damage", or "note" for what any crash may leave and nothing depends on.
    """

    path: str
    problem: str
    remedy: str
    kind: str
    severity: Severity

    @property
    def mendable(self) -> bool:
        return self.kind in _MENDED


def violation(kind: str, path: str, problem: str, severity: Severity | None = None) -> Violation:
    """Return a violation with its kind's remedy and, unless another is given, its kind's severity."""
    remedy = _MENDED[kind] if kind in _MENDED else f"none: {_LEFT_ALONE[kind]}"
    return Violation(path, problem, remedy, kind, severity or ("note" if kind in _NOTES else "damage"))


_MENDED = {
    "missing-directory": "create it",
    "undecodable": "move it to failed/ with its bytes inside",
    "no-id": "move it to failed/ with the reason inside",
    "misnamed": "rename it; where that id is live already, drop it if it is the same ref, else move it to failed/",
    "unowned": "move it to pending/; where its id is live already, drop it if it is the same ref, else to failed/",
    "torn": "drop the torn end: the ref before it is whole",
    "duplicate": "drop it if it is the same ref, else move it to failed/",
    "twin": "give it a file of its own; where the same ref is live under another name, drop it",
    "future": "stamp it with the present time",
    "segment": "move the damaged bytes to failed/, and keep the whole lines in a new segment",
    "packing": "complete it or undo it: its refs are done all the same",
    "order": "rebuild it from what it names and a listing",
    "leftover": "remove it",
    "owner-gone": "remove it",
    "owner-unreadable": "remove it: leases then expire by their own stamps",
    "member-unreadable": "remove it, unless it beats: a member that is started again joins anew",
    "quantum-unreadable": "remove it: the consumers publish it anew",
}
_LEFT_ALONE = {
    "other-filesystem": "move it onto the queue's filesystem",
    "not-a-file": "remove it by hand",
    "unreadable": "give this user read and write permission",
    "unread": "look what the disk or the server says; consumers try it again, and move it to failed/ at last",
    "dead-unread": "requeue it once it can be read, or remove it by hand",
    "torn-lease": "whoever takes the lease back writes a new one",
    "two-leases": "each lease ends by itself, or by `fsqueue release --owner`",
    "no-record": "its leases expire by the lease timeout, or end now by `fsqueue release --owner`",
    "member-silent": "start it again under the same name, or remove its file to go on without it",
    "type-unreadable": "write it as FORMAT.md shows, or stop the handles and remove it: the next put writes it anew",
    "foreign": "it is left alone",
    "linked": "history written under one of its names shows under the others",
    "not-writable": "this user can look, but neither put nor get",
}
_NOTES = {
    "order", "packing", "torn-lease", "leftover", "owner-gone", "owner-unreadable", "no-record", "foreign", "linked",
    "not-writable", "member-silent", "quantum-unreadable", "dead-unread",
}  # fmt: skip
