"""Choose settings that suit a mount, with the reasons in plain words: pure functions of what was found."""

from __future__ import annotations

from fsqueue.disk.filesystems import UNKNOWN
from fsqueue.engine.handle import default_poll_interval_s
from fsqueue.operate.doctor.findings import Advice, Diagnosis, Lock
from fsqueue.operate.doctor.notes import NFS_TYPES, attribute_cache_s, lock_is_node_local
from fsqueue.operate.doctor.probes import NAME_BYTES_NEEDED

BEATS_PER_LEASE = 4
_LOCAL_FLOOR_S = 2.0
_REMOTE_FLOOR_S = 90.0
_OPERATIONS_PER_LEASE = 1000
_TICKS_PER_LEASE = 4
_POLL_FLOOR_S = 0.05
_POLL_CEILING_S = 1.0
_POLL_SHARE = 20
_SKEW_WORTH_SAYING_S = 1.0
_ROUND = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 90, 120, 180, 300, 600, 900, 1800, 3600)


def advise(found: Diagnosis) -> Advice:
    """Return the advice for one diagnosis."""
    remarks: list[str] = []
    lease_timeout_s = _lease_timeout_s(found, remarks)
    lock = _lock(found, remarks)
    durable = found.mount is None or found.mount.filesystem.durable
    if not durable:
        remarks.append("durable=False: this filesystem is held in memory, so fsync buys nothing")
    _remark_on_clock(found, remarks)
    _remark_on_names(found, remarks)
    if found.remote:
        remarks.append(f"this was one mount: `fsqueue doctor {found.directory} --peer 'ssh NODE'` tries two nodes")
    return Advice(
        lease_timeout_s, lease_timeout_s / BEATS_PER_LEASE, _poll_interval_s(found), lock, durable, tuple(remarks)
    )


def rounded_up(seconds: float) -> float:
    """Return the next duration that a person would choose."""
    return float(next((step for step in _ROUND if step >= seconds), seconds))


def _lease_timeout_s(found: Diagnosis, remarks: list[str]) -> float:
    slowest_s = max((cost.p99_us for cost in found.costs.values()), default=0.0) / 1e6
    tick_s = (found.granularity.file_s if found.granularity else None) or 0.0
    cache_s = attribute_cache_s(found.mount) if found.mount else 0.0
    floors = {
        "a server that restarts makes its clients hang for a minute or more": _REMOTE_FLOOR_S * found.remote,
        f"attributes may be {cache_s:g} s old, and two such times are the least": 2 * cache_s,
        f"a thousand of the slowest operations take {_OPERATIONS_PER_LEASE * slowest_s:.1f} s": (
            _OPERATIONS_PER_LEASE * slowest_s
        ),
        f"timestamps move in steps of {tick_s:g} s": _TICKS_PER_LEASE * tick_s,
        "shorter ones expire whenever a process is held up": _LOCAL_FLOOR_S,
    }
    reason = max(floors, key=floors.__getitem__)
    chosen = rounded_up(floors[reason])
    remarks.append(f"lease_timeout_s of {chosen:g} or more: {reason}; work that takes longer needs a heartbeat")
    return chosen


def _poll_interval_s(found: Diagnosis) -> float:
    """Return an interval that spends at most a twentieth of the time on looking; on a shared mount the default."""
    look_us = sum(found.costs[name].median_us for name in ("stat", "lock_unlock") if name in found.costs)
    wanted_s = min(rounded_up(max(_POLL_FLOOR_S, _POLL_SHARE * look_us / 1e6)), _POLL_CEILING_S)
    if not found.remote:
        return wanted_s
    return max(wanted_s, default_poll_interval_s(found.mount.filesystem if found.mount else UNKNOWN))


def _lock(found: Diagnosis, remarks: list[str]) -> Lock:
    if found.lock is not None and found.lock.excludes and found.lock.freshens:
        return _lock_that_excludes_here(found, remarks)
    fallback = _without_flock(found)
    if found.lock is None or not found.lock.supported:
        error = found.lock.error if found.lock is not None else "no answer"
        remarks.append(f"lock={fallback!r}: flock is not to be had here ({error})")
    else:
        remarks.append(f"lock={fallback!r}: flock is granted here and does not exclude, so it would order nothing")
    return fallback


def _lock_that_excludes_here(found: Diagnosis, remarks: list[str]) -> Lock:
    assert found.lock is not None
    if found.lock.waits == 0:
        remarks.append("the processes never met at the lock, so little is proved about it: try again")
    if found.mount is None or not found.remote or not lock_is_node_local(found.mount):
        return "flock"
    other: Lock = "lease" if _without_flock(found) == "lease" else "flock"
    instead = "use lock='lease', or " if other == "lease" else ""
    remarks.append(
        "flock excludes here and, as mounted, not between nodes or mounts: for one of them keep lock='flock'; for "
        f"several mount it otherwise, or {instead}accept a weaker order"
    )
    return other


def _without_flock(found: Diagnosis) -> Lock:
    creates_once = found.mount is None or found.mount.filesystem.creates_once is not False
    return "lease" if found.exclusive_create and creates_once else "none"


def _remark_on_clock(found: Diagnosis, remarks: list[str]) -> None:
    clock = found.clock
    if clock is None:
        return
    if abs(clock.skew_s) > _SKEW_WORTH_SAYING_S + clock.uncertainty_s:
        remarks.append(
            f"the filesystem's clock is {clock.skew_s:+.1f} s from this host's: leases are safe, since only "
            "the filesystem's counts; ages that other programs compute are off"
        )
    if clock.went_backwards:
        remarks.append(f"{clock.went_backwards} of {clock.reads} touches went back in time: leases may end early")
    if found.mount is not None and found.mount.type in NFS_TYPES and clock.stamped_by == "this_host":
        remarks.append("files seem to be stamped by this host, which no NFS server does: look at its clock")


def _remark_on_names(found: Diagnosis, remarks: list[str]) -> None:
    names = found.names
    if names is None:
        return
    if names.case_insensitive:
        remarks.append("sample ids that differ only in case are one file here: do not use such ids")
    if names.longest_bytes < NAME_BYTES_NEEDED:
        remarks.append(
            f"names end at {names.longest_bytes} bytes, a queue may need {NAME_BYTES_NEEDED}: "
            "keep sample ids and owner names short"
        )
