"""The part that sources at a server have in common: prompts in flight, attempts until a deadline, and a clean end.

Threads ask, one prompt each at a time, and the prompts' order is kept. They are daemons: whoever presses Ctrl-C waits
for no reply that is still under way.
"""

from __future__ import annotations

import random
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from fsqueue.engine import arguments
from fsqueue.sources.contract import Captured, Captures, OnRefused, Prompt, layer_names
from fsqueue.sources.endpoint import Endpoint, RefusedError, UnansweredError
from fsqueue.sources.errors import PromptRefusedError, SourceSetupError, SourceUnreachableError

T = TypeVar("T")
S = TypeVar("S", bound="ServedSource")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0

_Job = tuple[Prompt, "Future[Captured]"]


class ServedSource(ABC):
    """States from a server.

    Args:
        endpoint: the server's URL.
        layers: the names of what the server was started to give, in its order.
        in_flight: how many prompts are asked for at once.
        timeout_s: how long one attempt may take.
        patience_s: how long attempts are repeated while the server gives no usable answer, as while it is restarted.
        api_key: sent as a bearer token.
    """

    kind = ""

    def __init__(
        self,
        endpoint: str,
        *,
        layers: Iterable[str | int],
        weight_version: str | None = None,
        in_flight: int = 8,
        timeout_s: float = 120.0,
        patience_s: float = 600.0,
        api_key: str | None = None,
    ) -> None:
        arguments.at_least("in_flight", in_flight, 1)
        self.layers = layer_names(layers)
        self._given_version = weight_version
        self._in_flight = in_flight
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._server = Endpoint(endpoint, timeout_s=timeout_s, connections=in_flight, api_key=api_key)
        self._stopping = threading.Event()

    @property
    def name(self) -> str:
        return f"{self.kind} at {self._server.url}"

    @abstractmethod
    def weight_version(self) -> str | None: ...

    @abstractmethod
    def _ask(self, prompt: Prompt) -> Captured:
        """Make one attempt.

        Raises:
            UnansweredError: make another one.
            RefusedError: do not.
        """

    def capture(self, prompts: Iterable[Prompt], *, on_refused: OnRefused | None = None) -> Captures:
        """Yield the states of the prompts, in their order; see `FeatureSource.capture`."""
        jobs: SimpleQueue[_Job | None] = SimpleQueue()
        waiting: deque[Future[Captured]] = deque()
        asking = iter(prompts)
        for _ in range(self._in_flight):
            threading.Thread(target=self._work, args=(jobs,), name="fsqueue-source", daemon=True).start()
        try:
            for prompt in asking:
                waiting.append(Future())
                jobs.put((prompt, waiting[-1]))
                while len(waiting) >= self._in_flight or (waiting and waiting[0].done()):
                    yield from self._first(waiting, on_refused)
            while waiting:
                yield from self._first(waiting, on_refused)
        finally:
            for future in waiting:
                future.cancel()
                future.add_done_callback(_discard)
            for _ in range(self._in_flight):
                jobs.put(None)

    def _first(self, waiting: deque[Future[Captured]], on_refused: OnRefused | None) -> Iterator[Captured]:
        try:
            captured = waiting[0].result()
        except PromptRefusedError as error:
            if on_refused is None:
                raise
            waiting.popleft()
            on_refused(error)
            return
        waiting.popleft()
        yield captured

    def _work(self, jobs: SimpleQueue[_Job | None]) -> None:
        while (job := jobs.get()) is not None:
            prompt, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self.answered(partial(self._ask, prompt), prompt.prompt_id))
            except BaseException as error:
                future.set_exception(error)

    def answered(self, attempt: Callable[[], T], prompt_id: str | None = None) -> T:
        """Repeat an attempt until it is answered, or patience_s is over; pauses grow, and differ from each other.

        Raises:
            SourceUnreachableError: there was no usable answer.
            PromptRefusedError, SourceSetupError: the server will not do this.
        """
        started, pause_s = time.monotonic(), _FIRST_PAUSE_S
        while True:
            try:
                return attempt()
            except UnansweredError as error:
                waited_s = time.monotonic() - started
                if waited_s >= self._patience_s or self._stopping.is_set():
                    raise SourceUnreachableError(self.name, prompt_id, waited_s, str(error)) from None
            except RefusedError as error:
                if error.is_prompt_s and prompt_id is not None:
                    problem = f"{error}: leave this prompt out, or change it"
                    raise PromptRefusedError(self.name, prompt_id, problem) from None
                raise SourceSetupError(
                    self.name, prompt_id, f"{error}: see that this is the server's URL, key and model"
                ) from None
            self._stopping.wait(min(pause_s, max(0.0, self._patience_s - waited_s)) * random.uniform(0.5, 1.0))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def close(self) -> None:
        """End what is under way, as far as it can be ended, and close the connections."""
        self._stopping.set()
        self._server.close()

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _discard(future: Future[Captured]) -> None:
    with suppress(Exception, CancelledError):
        future.result().discard()
