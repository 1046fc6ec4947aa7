"""Hold one run of the recipes in a folder: its files, its progress, and in the end the account of every sample."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import fsqueue
from fsqueue import FileSampleRefQueue
from fsqueue.operate.check import check_queue
from fsqueue.operate.show import entries
from fsqueue.stream.members import Member

RECIPES = Path(fsqueue.__file__).parent / "recipes"
GUARD_S = 400.0
_PAUSE_S = 0.1


stopping = threading.Event()
"""Set where the whole program is to end: every wait ends then."""


class HungError(Exception):
    """Say that a run did not end by itself."""


class StoppedError(Exception):
    """Say that a run was given up, since the whole program is to end."""


@dataclass(frozen=True)
class Account:
    """Say what became of a run's samples.

    Attributes:
        samples: how many should have been made.
        twice: ids that were acked more than once, or are in the final state of the training more than once.
        missing: ids that were not acked, or are not in that state.
        trouble: what else is not as it should be.
    """

    samples: int
    twice: list[str]
    missing: list[str]
    trouble: list[str]

    @property
    def is_well(self) -> bool:
        return not (self.twice or self.missing or self.trouble)


class Run:
    """Copy the recipes into a folder, as a user does, and prepare a queue there.

    Args:
        policy: what `prepare.py` is told, by option.
        edits: texts to replace in the copies.
    """

    rollouts = 2
    samples_each = 60

    def __init__(self, folder: Path, policy: Mapping[str, float], edits: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        for recipe in RECIPES.iterdir():
            if recipe.suffix != ".md" and recipe.is_file():
                shutil.copy(recipe, folder)
        for before, after in edits.items():
            self._edit(before, after)
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(RECIPES.parent.parent),
            "RUN": str(folder),
            "OMP_NUM_THREADS": "1",
            "ROLLOUT_S": "0.1",
            "TRAIN_S": "0.1",
        }
        options = [f"--{name.replace('_', '-')}={value:g}" for name, value in policy.items()]
        self.call("prepare.py", str(folder), *options)
        self.queue_path = folder / "queue"

    def _edit(self, before: str, after: str) -> None:
        edited = 0
        for file in (self.folder / "rollout.py", self.folder / "trainer.py"):
            text = file.read_text(encoding="utf-8")
            edited += before in text
            file.write_text(text.replace(before, after), encoding="utf-8")
        if not edited:
            raise RuntimeError(f"the recipes do not say {before!r} any more")

    def call(self, program: str, *arguments: str) -> None:
        """Run one of the programs to its end."""
        command = [sys.executable, program, *arguments]
        subprocess.run(
            command, cwd=self.folder, env=self.full_environment, check=True, capture_output=True, timeout=120
        )

    @property
    def full_environment(self) -> dict[str, str]:
        return os.environ | self.environment

    def start(self, *command: str, **more: str) -> subprocess.Popen[bytes]:
        """Start a command in the folder, its output in a log there."""
        with open(self.folder / "started.log", "ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.full_environment | more,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def done(self) -> int:
        return len(os.listdir(self.queue_path / "done"))

    def wait_for_done(self, count: int) -> None:
        self.wait_until(lambda: self.done() >= count, f"{count} samples to be done")

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + GUARD_S
        while not condition():
            if stopping.is_set():
                raise StoppedError
            if time.monotonic() > deadline:
                raise HungError(f"waited {GUARD_S:.0f} s for {what}")
            time.sleep(_PAUSE_S)

    def members(self) -> list[Member]:
        with FileSampleRefQueue(self.queue_path, create=False) as queue:
            return queue.stream().members()

    def signal_members(self, number: int) -> int:
        """Signal every process that takes part; return how many there were."""
        pids = {member.record.process.pid for member in self.members() if member.state == "open"}
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(pids)

    def stall(self, seconds: float) -> None:
        """Stop all members for so long, as a node does that hangs."""
        self.signal_members(signal.SIGSTOP)
        time.sleep(seconds)
        self.signal_members(signal.SIGCONT)

    def account(self, lost: frozenset[str] = frozenset()) -> Account:
        """Compare what should have been made with what was acked, and with what the checkpoint has.

        Args:
            lost: ids that nobody was left to make, for as far as they were not put.
        """
        acked = Counter(entry.id for entry in entries(self.queue_path, ["done"]))
        waiting = [entry.id for entry in entries(self.queue_path, ["pending", "leased", "failed"])]
        trained = Counter(sample for shard in self._shards() for sample in json.loads(shard.read_text()))
        expected = {f"rollout-{index}-{n:06d}" for index in range(self.rollouts) for n in range(self.samples_each)}
        put = acked.keys() | set(waiting)
        expected -= lost - put
        twice = sorted({each for found in (acked, trained) for each, count in found.items() if count > 1})
        missing = sorted((expected - acked.keys()) | (expected - trained.keys()))
        trouble = [str(damage) for damage in check_queue(self.queue_path)]
        trouble += [f"{each} was never to be made" for each in sorted(put - expected)]
        return Account(len(expected), twice, missing, trouble)

    def _shards(self) -> list[Path]:
        checkpoint = self.folder / "checkpoint.json"
        step = json.loads(checkpoint.read_text())["step"] if checkpoint.exists() else 0
        shards = sorted((self.folder / "trained").glob("*.json"))
        return [shard for shard in shards if int(shard.name.partition("-")[0]) <= step]

    def logs(self) -> str:
        """Return the end of each log, for who has to find out what went wrong."""
        ends = []
        for log in sorted(self.folder.glob("*.log")):
            ends.append(f"--- {log.name}\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
        return "\n".join(ends)
