"""Starts the worker processes, and talks to them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from measuring import worker

JOIN_S = 30.0


class WorkerError(RuntimeError):
    """A command failed in a worker; the text is its traceback."""

    @property
    def summary(self) -> str:
        """The last line: the error itself."""
        return str(self).strip().splitlines()[-1]


def reap(process: BaseProcess, patience_s: float) -> None:
    """Wait for a process to end, and kill it where it does not in time."""
    process.join(patience_s)
    if process.is_alive():
        process.kill()
        process.join()


class Fleet:
    """A fixed number of spawned worker processes, ended on leaving the block.

    Args:
        sizes: how many of them will ever be started together; the largest is the fleet's size.
    """

    def __init__(self, sizes: Iterable[int], durable: bool) -> None:
        context = multiprocessing.get_context("spawn")
        parties = sorted({1, 2, *sizes})
        # Kept, since a barrier's semaphores are gone for children that are still starting once it is collected.
        self._barriers = {count: context.Barrier(count) for count in parties}
        self._channels: list[Connection] = []
        self._processes: list[BaseProcess] = []
        for index in range(parties[-1]):
            ours, theirs = context.Pipe()
            process = context.Process(target=worker.main, args=(theirs, index, durable, self._barriers), daemon=True)
            process.start()
            theirs.close()
            self._channels.append(ours)
            self._processes.append(process)

    def __len__(self) -> int:
        return len(self._channels)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.close()
        for process in self._processes:
            reap(process, 0.0 if error else JOIN_S)

    def send(self, index: int, name: str, *arguments: Any) -> None:
        self._channels[index].send((name, arguments))

    def reply(self, index: int) -> Any:
        """The result of the command sent last.

        Raises:
            WorkerError: the command failed, or its process died.
        """
        try:
            succeeded, result = self._channels[index].recv()
        except (EOFError, ConnectionResetError):
            self._processes[index].join(JOIN_S)
            raise WorkerError(f"worker {index} died with exit code {self._processes[index].exitcode}") from None
        if not succeeded:
            raise WorkerError(result)
        return result

    def call(self, index: int, name: str, *arguments: Any) -> Any:
        self.send(index, name, *arguments)
        return self.reply(index)

    def kill(self, index: int) -> None:
        """SIGKILL a worker, and reap it."""
        self._processes[index].kill()
        self._processes[index].join()

    def together(self, count: int, name: str, *arguments: Any) -> list[Any]:
        """The same command on the first workers at once; the first error is raised after all have replied."""
        for index in range(count):
            self.send(index, name, *arguments)
        replies: list[Any] = []
        errors: list[WorkerError] = []
        for index in range(count):
            try:
                replies.append(self.reply(index))
            except WorkerError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return replies
