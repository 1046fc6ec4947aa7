"""What can be wrong with a queue, and what is done about each: the vocabulary of `fsqueue check`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["damage", "note"]
BY_HAND = "none"


@dataclass(frozen=True)
class Violation:
    """One thing in a queue that is not as it should be.

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
        return not self.remedy.startswith(BY_HAND)


REMEDIES = {
    "missing-directory": "create it",
    "other-filesystem": "none: move it onto the queue's filesystem",
    "not-a-file": "none: remove it by hand",
    "unreadable": "none: give this user read and write permission",
    "undecodable": "move it to failed/ with its bytes inside",
    "no-id": "move it to failed/ with the reason inside",
    "misnamed": "rename it; where that id is live already, drop it if it is the same ref, else move it to failed/",
    "unowned": "move it to pending/; where its id is live already, drop it if it is the same ref, else to failed/",
    "torn": "drop the torn end: the ref before it is whole",
    "torn-lease": "none: whoever takes the lease back writes a new one",
    "duplicate": "drop it if it is the same ref, else move it to failed/",
    "twin": "give it a file of its own; where the same ref is live under another name, drop it",
    "two-leases": "none: each lease ends by itself, or by `fsqueue release --owner`",
    "future": "stamp it with the present time",
    "segment": "move the damaged bytes to failed/, and keep the whole lines in a new segment",
    "packing": "complete it or undo it: its refs are done all the same",
    "order": "rebuild it from what it names and a listing",
    "leftover": "remove it",
    "owner-gone": "remove it",
    "owner-unreadable": "remove it: leases then expire by their own stamps",
    "no-record": "none: its leases expire by the lease timeout, or end now by `fsqueue release --owner`",
    "member-unreadable": "remove it, unless it beats: a member that is started again joins anew",
    "member-silent": "none: start it again under the same name, or remove its file to go on without it",
    "quantum-unreadable": "remove it: the consumers publish it anew",
    "foreign": "none: it is left alone",
    "linked": "none: history written under one of its names shows under the others",
    "not-writable": "none: this user can look, but neither put nor get",
}
_NOTES = "order packing torn-lease leftover owner-gone owner-unreadable no-record foreign linked not-writable"
NOTES = frozenset(_NOTES.split()) | {"member-silent", "quantum-unreadable"}
