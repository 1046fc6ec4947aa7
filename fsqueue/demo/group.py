"""The trainers' process group of one generation: gloo, through a file store in the shared directory.

When a rank dies, the collectives of the others fail. They leave, and meet again in the next generation
(agreement.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fsqueue.demo.generations import Generations

_CONNECT_TIMEOUT_S = 60.0
_COLLECTIVE_TIMEOUT_S = 300.0


class PeerLostError(RuntimeError):
    """A rank of this generation is gone."""


@dataclass(frozen=True)
class Group:
    """One generation's collectives. Every rank calls the same ones in the same order; they fail together."""

    rank: int
    world_size: int
    generation: int

    def connect(self, generations: Generations) -> None:
        """Connect to all ranks of this generation.

        Raises:
            PeerLostError: a rank died while they connected.
        """
        if self.world_size == 1:
            return
        os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
        try:
            stores: Any = dist  # exports it, but its stub does not say so
            store = stores.FileStore(generations.store(self.generation), self.world_size)
            store.set_timeout(timedelta(seconds=_CONNECT_TIMEOUT_S))
            dist.init_process_group(
                "gloo",
                store=store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=_COLLECTIVE_TIMEOUT_S),
            )
        except RuntimeError as error:
            raise PeerLostError(f"generation {self.generation} did not come together: {error}") from error

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum over all ranks; the result is the same, bit for bit, on each."""
        self._collective(lambda: dist.all_reduce(tensor))

    def broadcast(self, tensor: Tensor, source: int) -> None:
        self._collective(lambda: dist.broadcast(tensor, source))

    def barrier(self) -> None:
        self.sum(torch.zeros(1))

    def _collective(self, call: Callable[[], object]) -> None:
        if self.world_size == 1:
            return
        try:
            call()
        except RuntimeError as error:
            raise PeerLostError(f"a rank of generation {self.generation} is gone: {error}") from error

    def leave(self) -> None:
        """Disconnect; the peers' collectives fail from now on."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _loopback() -> str:
    """Name the loopback interface: all ranks run on this host."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])
