"""How this filesystem lies: the parameters of one simulated mount.

Where a rule comes from is said where it is applied, in the words of nfs-facts.md: what a real NFS mount did. What
was not measured there, but is possible by the manuals or was measured elsewhere, is switched on by name.
"""

from __future__ import annotations

from dataclasses import dataclass

NAMES_BOUND_S = 30.0
MISSES_BOUND_S = 28.0
ATTRIBUTES_BOUND_S = 60.0
DEAD_NODE_LOCK_S = 90.0

UNMEASURED = {
    "files-stay": "opening a directory ends what is remembered of missing names only, not of files",
    "failure-teaches-nothing": "a name that a rename has found missing is still remembered as there",
    "same-file": "renaming between names that are remembered as one file does nothing and succeeds (rename(2))",
    "unlink-retransmitted": "an unlink that was done says ENOENT",
    "listing-misses": "a listing misses an entry that was there all the time, when the directory changes",
}
"""What the simulation can do beyond what was measured."""


@dataclass(frozen=True)
class Rules:
    """One mount.

    Attributes:
        lock: whether flock "excludes", is "local" to a node, or is "absent" and always says yes.
        believed: the share of looks at a cached name that do not ask the server, 0 to 1.
        retransmits: the share of renames, links and mkdirs that are done and report failure.
        stale_handles: the share of opens and listings that report ESTALE and do nothing.
        repeats: the share of listings that repeat an entry, when the directory changes meanwhile.
        latency_s: how long a request takes, in the middle.
        unmeasured: which of `UNMEASURED` happen too.
    """

    lock: str = "excludes"
    believed: float = 1.0
    retransmits: float = 0.0
    stale_handles: float = 0.0
    repeats: float = 0.0
    latency_s: float = 0.002
    unmeasured: tuple[str, ...] = ()
