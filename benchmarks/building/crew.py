"""The processes of one build at one queue."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_END_S = 30.0


class Crew:
    """Start so many workers under an interpreter, whose own fsqueue they use."""

    def __init__(self, label: str, python: str, path: str, size: int, durable: bool) -> None:
        self.label = label
        path_of = [str(_HERE.parent), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path_of))}
        durability = "durable" if durable else "quick"
        self._workers = [
            subprocess.Popen(
                [python, str(_HERE / "worker.py"), path, f"{label}{index}", durability],
                env=environment,
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
