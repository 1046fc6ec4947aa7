"""The kinds of filesystem that a simulated mount can be, each made of single lies, and mounts that mix them freely.

Each is what was seen of a real one with two mounts of one store (benchmarks/README.md has the table); what varies
from mount to mount of the same kind is drawn by a plan.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from simulation.rules import LIES, UNSURVIVED, Rules

_NFS = Rules(lies=("no-op-renames", "read-delegations"))
_REPLACED = ("missing-while-replaced",)
_FUSE: dict[str, Any] = {"misses_s": 0.0, "attributes_s": 1.0}

KINDS = {
    rules.mount: rules
    for rules in (
        _NFS,
        Rules("gluster", "fuse.glusterfs", names_s=1.2, loser="EBADF", **_FUSE, lies=(
            "no-op-renames", "opening-asks-nothing", "old-under-lock", "close-says-stale", "stamps-keep-names",
            *_REPLACED,
        )),
        Rules("cifs", "cifs", names_s=1.2, listings_s=8.0, **_FUSE, lies=(
            "no-op-renames", "opening-asks-nothing", "old-under-lock", "rename-keeps-ctime", "locks-get-lost",
            "listings-keep-names",
        )),
        Rules("cephfuse", "fuse.ceph-fuse", names_s=0.0, **_FUSE, lies=("equal-size-stays-old",)),
        Rules("juicefs", "fuse.juicefs", names_s=1.0, creation="ENOENT", **_FUSE, lies=(
            "opening-asks-nothing", "old-under-lock", *_REPLACED,
        )),
        Rules("seaweedfs", "fuse.seaweedfs", lock="local", names_s=1.0, loser="EIO", creation="ENOENT", **_FUSE, lies=(
            "opening-asks-nothing", "old-under-lock", "two-creators", "rename-keeps-ctime", *_REPLACED,
        )),
        Rules(
            "sshfs", "fuse.sshfs", lock="local", names_s=21.0, listings_s=20.0, grain_s=1.0, loser="EPERM",
            creation="ENOENT", **_FUSE, lies=(
                "opening-asks-nothing", "old-under-lock", "rename-keeps-ctime", "opened-listings-are-old",
            ),
        ),
        Rules("moosefs", "fuse.mfs", names_s=0.02, grain_s=1.0, creation="EEXIST", **_FUSE, lies=(
            "opening-asks-nothing",
        )),
        Rules("mergerfs", "fuse.mergerfs", lock="local", names_s=1.0, loser="EXDEV", **_FUSE, lies=(
            "opening-asks-nothing", "old-under-lock",
        )),
        Rules("gocryptfs", "fuse.gocryptfs", lock="local", names_s=0.03, creation="EEXIST", **_FUSE, lies=(
            "opening-asks-nothing", "old-under-lock", "two-writers-tear",
        )),
        Rules("encfs", "fuse.encfs", lock="local", names_s=1.0, creation="EEXIST", **_FUSE, lies=(
            "opening-asks-nothing", "old-under-lock", "rename-cuts-mtime",
        )),
        Rules("bindfs", "fuse.bindfs", lock="local", names_s=1.0, **_FUSE, lies=(
            "opening-asks-nothing", "old-under-lock",
        )),
    )
}  # fmt: skip
"""By name."""

MIXED = "mix"
_KEPT_ALIVE_S = {"gluster": 25.0, "cifs": 30.0}  # where something else looks at the names again and again
_UNHEARD_OF = "fuse.unheard-of"
_OF_NFS_ALONE = ("read-delegations",)
_LOSERS = ("ENOENT", "EIO", "EXDEV", "EPERM", "ESTALE", "EBADF")


def draw(seed: int, drawn: Rules, mount: str | None, unsurvived: bool) -> Rules:
    """The mount of a seed: half of them are NFS; the others are any other kind, or a free mix that nobody has heard of.

    Args:
        drawn: what a plan has drawn for an NFS; also what varies between mounts of other kinds.
        mount: the kind, where it is asked for.
        unsurvived: with the lies that the queue does not survive.
    """
    rng = random.Random(f"{seed}/mount")
    others = sorted(KINDS.keys() - {"nfs"})
    chosen = rng.choice((*["nfs"] * 5, *[rng.choice(others)] * 3, *[MIXED] * 2))
    mount = mount or chosen
    rules = _mixed(rng, drawn) if mount == MIXED else _of_kind(KINDS[mount], rng, drawn)
    return rules if unsurvived else survived(rules)


def survived(rules: Rules) -> Rules:
    """The same mount without what the queue does not survive."""
    honest: dict[str, Any] = {name: getattr(Rules, name) for name in ("loser", "creation") if name in UNSURVIVED}
    return replace(rules, lies=tuple(lie for lie in rules.lies if lie not in UNSURVIVED), **honest)


def _of_kind(kind: Rules, rng: random.Random, drawn: Rules) -> Rules:
    if kind.mount == "nfs":
        return replace(drawn, lies=tuple(lie for lie in kind.lies if rng.random() < 0.7))
    names_s = rng.choice((kind.names_s, _KEPT_ALIVE_S.get(kind.mount, kind.names_s)))
    return replace(
        kind,
        latency_s=drawn.latency_s,
        believed=drawn.believed,
        retransmits=drawn.retransmits,
        repeats=drawn.repeats,
        names_s=names_s,
    )


def _mixed(rng: random.Random, drawn: Rules) -> Rules:
    lies = tuple(lie for lie in LIES if rng.random() < 0.3 and lie not in _OF_NFS_ALONE)
    # A miss was seen to be remembered for long only where opening the directory ends it.
    longest_miss_s = 1.0 if "opening-asks-nothing" in lies else 28.0
    return replace(
        drawn,
        mount=MIXED,
        type=_UNHEARD_OF,
        names_s=rng.choice((0.0, 0.03, 1.0, 1.0, 8.0, 30.0)),
        misses_s=rng.choice((0.0, 0.0, 1.0, longest_miss_s)),
        attributes_s=rng.choice((1.0, 1.0, 60.0)),
        listings_s=rng.choice((0.0, 0.0, 0.0, 8.0)),
        grain_s=rng.choice((Rules.grain_s, Rules.grain_s, 1.0)),
        loser=rng.choice(_LOSERS),
        creation=rng.choice(("", "", "EEXIST", "ENOENT")),
        lies=lies,
    )
