"""The round trips that a real NFS mount makes, by the kernel's own count of them in /proc/self/mountstats.

The counters are the mount's: nothing else may use it meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter

from fsqueue.disk.fileops import FileOps
from fsqueue.disk.mounts import mount_of

_SETTLING_S = 0.03  # a freed lock state and a returned delegation are sent after the call has returned
_NAMES = {"OPEN": "OPEN+", "OPEN_NOATTR": "OPEN"}  # the client asks for no attributes of what it need not create


class CountedMount:
    """One client's mount, as it is.

    Attributes:
        ops: the table of file operations to open handles with.
    """

    def __init__(self, path: str) -> None:
        mount = mount_of(path)
        if mount is None or not mount.type.startswith("nfs"):
            raise ValueError(f"{path} is on {mount.type if mount else 'an unknown filesystem'}, expected nfs or nfs4")
        self.ops = FileOps()
        self._point = mount.point
        self.reset()

    def reset(self) -> None:
        """Begin to count."""
        time.sleep(_SETTLING_S)
        self._before = self._now()

    @property
    def trips(self) -> Counter[str]:
        """Round trips made since then, by procedure; an OPEN+ may create."""
        time.sleep(_SETTLING_S)
        return self._now() - self._before

    def _now(self) -> Counter[str]:
        counts, here = Counter[str](), False
        with open("/proc/self/mountstats", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                if line.startswith("device "):
                    here = f" mounted on {self._point} with fstype nfs" in line
                elif here and line.startswith("\t"):
                    name, _, values = line.strip().partition(": ")
                    first = values.split(" ", 1)[0]
                    if name.replace("_", "").isupper() and first.isdigit():
                        counts[_NAMES.get(name, name)] += int(first)
        return counts
