"""Every filesystem that can be tried, by its name; the first is what the speed of the others is compared with."""

from __future__ import annotations

from mounting import layers, local, objects, servers
from mounting.tools import Kind

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*local.KINDS, *layers.KINDS, *servers.KINDS, *objects.KINDS)}
FIRST = KINDS["ext4"]
