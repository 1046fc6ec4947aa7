"""Two nodes with the simulated filesystem mounted, for tests of single calls."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from simulation.cache import Cache
from simulation.node import Process
from simulation.rules import Rules
from simulation.world import Machine, World

FLAGS = os.O_RDWR | os.O_CREAT
FOLDER = os.O_RDONLY | os.O_DIRECTORY


class Mount:
    """One node's process, with the two directories open."""

    def __init__(self, world: World, skew_s: float, seed: int) -> None:
        rng = random.Random(seed)
        self.world = world
        self.cache = Cache(world.server, world.rules, lambda: world.now, rng)
        self.process = Process(world, self.cache, rng)
        self.ops: Any = Machine(world, self.process, "node", skew_s, [], rng).ops
        self.pending = self.ops.open("/pending", FOLDER)
        self.leased = self.ops.open("/leased", FOLDER)

    def write(self, name: str, data: bytes = b"text") -> None:
        fd = self.ops.open(name, FLAGS, dir_fd=self.pending)
        self.ops.write(fd, data)
        self.ops.close(fd)

    def claim(self, name: str) -> None:
        self.ops.rename(name, name, src_dir_fd=self.pending, dst_dir_fd=self.leased)

    def give_back(self, name: str) -> None:
        self.ops.rename(name, name, src_dir_fd=self.leased, dst_dir_fd=self.pending)

    def rename(self, name: str, new_name: str) -> None:
        """Within /pending."""
        self.ops.rename(name, new_name, src_dir_fd=self.pending, dst_dir_fd=self.pending)

    def remove(self, name: str) -> None:
        self.ops.unlink(name, dir_fd=self.pending)

    def reopen(self) -> None:
        """Open both directories."""
        for path in ("/pending", "/leased"):
            self.ops.close(self.ops.open(path, FOLDER))

    def stamp(self, name: str) -> None:
        self.ops.utime(name, dir_fd=self.pending)

    def link(self, name: str) -> None:
        self.ops.link(name, "linked", src_dir_fd=self.pending, dst_dir_fd=self.leased)

    def sees(self, name: str) -> bool:
        found: bool = self.ops.access(name, os.F_OK, dir_fd=self.pending)
        return found

    def mtime(self, name: str) -> float:
        found: float = self.ops.stat(name, dir_fd=self.pending).st_mtime
        return found

    def opened(self, name: str, flags: int = os.O_RDWR) -> int:
        fd: int = self.ops.open(name, flags, dir_fd=self.pending)
        return fd

    def read(self, name: str) -> bytes:
        fd = self.ops.open(name, os.O_RDONLY, dir_fd=self.pending)
        data: bytes = self.ops.read(fd, 100)
        self.ops.close(fd)
        return data


def mounts(seed: int = 1, **rules: Any) -> tuple[Mount, Mount]:
    """A and B on a server with /pending and /leased; every remembered name is believed."""
    world = World(Rules(**{"latency_s": 0.0001, **rules}))
    for name in ("pending", "leased"):
        world.server.mkdir(world.server.root, name)
    return Mount(world, 120.0, seed), Mount(world, -46.0, seed)


@contextmanager
def refused(code: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno == code
