"""The processes of one build at one queue."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring.builds import importing

_WORKER = Path(__file__).with_name("worker.py")
_END_S = 30.0


class Crew:
    """Start so many workers that use the fsqueue of a checkout; None: this one's."""

    def __init__(self, label: str, checkout: str | None, path: str, size: int, durable: bool) -> None:
        self.label = label
        durability = "durable" if durable else "quick"
        self._workers = [
            subprocess.Popen(
                [sys.executable, str(_WORKER), path, f"{label}{index}", durability],
                env=importing(checkout),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(size)
        ]

    def __len__(self) -> int:
        return len(self._workers)

    def call(self, count: int, *command: Any) -> list[Any]:
        """Give the first workers a command at once; return their answers.

        Raises:
            RuntimeError: one of them has ended.
        """
        for worker in self._workers[:count]:
            assert worker.stdin is not None
            worker.stdin.write(json.dumps(command) + "\n")
            worker.stdin.flush()
        answers = []
        for worker in self._workers[:count]:
            assert worker.stdout is not None
            line = worker.stdout.readline()
            if not line:
                raise RuntimeError(f"a worker of {self.label} ended with {worker.wait(_END_S)}")
            answers.append(json.loads(line))
        return answers

    def end(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait(_END_S)
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    stream.close()
