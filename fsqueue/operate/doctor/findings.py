"""Hold what was found out about a mount, and the settings that suit it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fsqueue.disk.mounts import Mount
from fsqueue.operate.doctor.costs import Cost
from fsqueue.operate.doctor.notes import Note
from fsqueue.operate.doctor.probes import ClockFindings, GranularityFindings, NameFindings, RenameFindings
from fsqueue.operate.doctor.races import LockFindings, RaceFindings

Lock = Literal["flock", "lease", "none"]


@dataclass(frozen=True)
class Advice:
    """Hold arguments for `FileSampleRefQueue` on this mount.

    Attributes:
        lease_timeout_s: the smallest that is sensible; work between get and ack takes longer, or keeps a heartbeat.
        remarks: the reasons, and what else to know.
    """

    lease_timeout_s: float
    heartbeat_s: float
    poll_interval_s: float
    lock: Lock
    durable: bool
    remarks: tuple[str, ...]


@dataclass
class Diagnosis:
    """Hold what was found out about one directory's mount; a probe that failed leaves None.

    Attributes:
        kind: the filesystem's type, as the list of filesystems calls it.
        problems: why a queue's promises cannot be kept here; empty where they can.
    """

    directory: str
    mount: Mount | None
    kind: str | None = None
    mount_notes: list[Note] = field(default_factory=list)
    rename_race: RaceFindings | None = None
    lock: LockFindings | None = None
    create_race: RaceFindings | None = None
    rename_times: RenameFindings | None = None
    hard_links: bool | None = None
    exclusive_create: bool | None = None
    clock: ClockFindings | None = None
    granularity: GranularityFindings | None = None
    names: NameFindings | None = None
    costs: dict[str, Cost] = field(default_factory=dict)
    advice: Advice | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def examined(self) -> bool:
        """Tell whether anything was tried: not where the kind of filesystem says enough."""
        return self.advice is not None

    @property
    def fit(self) -> bool:
        return not self.problems

    @property
    def remote(self) -> bool:
        return self.mount is not None and self.mount.is_remote

    def as_json(self) -> dict[str, Any]:
        """Return plain values under stable keys; a probe that failed is null."""
        result = {"fit": self.fit, "problems": self.problems, **asdict(self)}
        result["mount_notes"] = [note._asdict() for note in self.mount_notes]
        if self.mount is not None:
            result["mount"]["remote"] = self.remote
        for key, verdict in (("rename_race", "decided"), ("create_race", "decided"), ("lock", "excludes")):
            findings = getattr(self, key)
            if findings is not None:
                result[key][verdict] = getattr(findings, verdict)
        return result
