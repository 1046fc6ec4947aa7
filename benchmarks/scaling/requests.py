"""What a file operation costs a Linux NFS 4.2 client in requests to the server, and what these wait for there.

The prices are those of `slow.layer`, which were counted on a real client, without what its caches answer: so a first
use costs as much as here, and later ones no more. What modifies waits for a commit: renames across directories for one
another, on all of the server's filesystem; creations and removals of names for the others in their directory.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_NAMES_A_READDIR = 1_000
RENAMES = "renames"


@dataclass(frozen=True)
class Price:
    """What one operation costs.

    Attributes:
        reads, modifies: requests of each kind.
        place: what its modification holds alone: a directory, or all renames; empty: nothing.
    """

    reads: int = 0
    modifies: int = 0
    place: str = ""


@dataclass(frozen=True)
class Speed:
    """How long the server takes over a request of each kind, seconds."""

    read_s: float
    modify_s: float

    def of(self, price: Price) -> float:
        return price.reads * self.read_s + price.modifies * self.modify_s


class Requests:
    """The requests of one client, by what it has open.

    Args:
        place_of: returns the name of the directory that a descriptor is open on.

    Attributes:
        operations: file operations so far, by their names.
        reads, modifies: requests so far.
        alone: modifications so far, by what they hold alone.
    """

    def __init__(self, place_of: Callable[[int], str]) -> None:
        self.operations: Counter[str] = Counter()
        self.reads = self.modifies = 0
        self.alone: Counter[str] = Counter()
        self._place_of = place_of
        self._opened: dict[int, str] = {}  # "folder", "read" or "written"

    def note(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> Price:
        """Count an operation; return its price."""
        self.operations[name] += 1
        price = self._price(name, args, kwargs, result)
        self.reads += price.reads
        self.modifies += price.modifies
        if price.place:
            self.alone[price.place] += price.modifies
        return price

    def _price(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> Price:
        if name == "open":
            return self._open(args, kwargs, result)
        if name == "close":
            kind = self._opened.pop(args[0], "read")
            return {"folder": Price(), "read": Price(reads=1)}.get(kind, Price(reads=1, modifies=1))
        if name in ("write", "fsync"):
            return Price()  # the close sends it
        if name in ("pwrite", "ftruncate", "utime"):
            return Price(modifies=1)
        if name == "rename":
            source, target = self._place_of(kwargs["src_dir_fd"]), self._place_of(kwargs["dst_dir_fd"])
            return Price(modifies=1, place=RENAMES if source != target else source)
        if name in ("unlink", "link", "mkdir"):
            fd = kwargs.get("dir_fd", kwargs.get("dst_dir_fd"))
            return Price(modifies=1, place=self._place_of(fd) if fd is not None else "")
        if name in ("listdir", "scan_until"):
            return Price(reads=1 + len(result) // _NAMES_A_READDIR if isinstance(result, list) else 1)
        return Price() if name == "fstat" else Price(reads=1)

    def _open(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: object) -> Price:
        flags, fd = args[1], kwargs.get("dir_fd")
        if not isinstance(result, int):
            return Price(reads=1)
        folder, writes = bool(flags & os.O_DIRECTORY), bool(flags & os.O_CREAT and flags & os.O_TRUNC)
        self._opened[result] = "folder" if folder else "written" if writes else "read"
        if writes and fd is not None:
            return Price(modifies=1, place=self._place_of(fd))
        return Price(reads=1)
