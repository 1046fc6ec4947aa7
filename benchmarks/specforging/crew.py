"""The processes of a run: started with what they need to find SpecForge, waited for, and always reaped."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from specforging.settings import Generation, Settings, to_argument

_IMPORTED_FROM = Path(__file__).resolve().parents[1]
_TAIL = 1500


class Crew:
    """Start producers and ranks; leaving the block kills and reaps what is left.

    Args:
        paths: where SpecForge is, besides what is installed.
    """

    def __init__(self, settings: Settings, paths: list[str]) -> None:
        self._settings = settings
        self._processes: list[subprocess.Popen[bytes]] = []
        where = [str(_IMPORTED_FROM), *paths, *filter(None, [os.environ.get("PYTHONPATH")])]
        quiet = {"TORCHDYNAMO_DISABLE": "1", "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
        on_cpu = {"SPECFORGE_DEVICE": "cpu", "FSDP_SHARDING": "NO_SHARD", "HF_HUB_OFFLINE": "1"}
        self._environment = os.environ | quiet | on_cpu | {"PYTHONPATH": os.pathsep.join(where)}

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def producer(self, name: str) -> subprocess.Popen[bytes]:
        return self._start("producer", name, to_argument(self._settings), name)

    def rank(self, generation: Generation, rank: int) -> subprocess.Popen[bytes]:
        name = f"trainer-{generation.number}-{rank}"
        return self._start("trainer", name, to_argument(self._settings), to_argument(generation), str(rank))

    def _start(self, module: str, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self._settings.at(f"{name}.log"), "ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"specforging.{module}", *arguments],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    def last_words(self, name: str) -> str:
        return self._settings.at(f"{name}.log").read_text(errors="replace")[-_TAIL:]


def wait(process: subprocess.Popen[bytes], until: float) -> int | None:
    """Return how a process ended; None where it had not by then (monotonic)."""
    try:
        return process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
