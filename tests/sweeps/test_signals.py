"""Real signals at random instants: their handlers raise, or close the queue on top of the call that they interrupt."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import pytest

from fsqueue import FileSampleRefQueue, FsQueueError
from tests.support import Queue, assert_clean, drain, names_in, ref
from tests.sweeps.proof import tally
from tests.sweeps.proof.lines import hang_is_an_error, is_lockable

_ROUNDS = 60
_LONGEST_S = 0.004


class Struck(BaseException):
    """What the handler raises."""


@contextmanager
def struck_soon(handler: Callable[[], None], after_s: float) -> Iterator[None]:
    """Run a handler in the main thread, wherever it is by then."""

    def strike() -> None:
        time.sleep(after_s)
        os.kill(os.getpid(), signal.SIGUSR1)

    def handle(number: int, frame: FrameType | None) -> None:
        handler()

    before = signal.signal(signal.SIGUSR1, handle)
    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)


def put_get_and_settle(queue: Queue, put: list[str], prefix: str) -> None:
    """Use a queue until something ends it; put takes the ids whose put has returned."""
    for number in range(10_000):
        sample_id = f"{prefix}-{number}"
        queue.put([ref(sample_id)])
        put.append(sample_id)
        some = queue.get(2)
        queue.release(some) if number % 5 == 4 else queue.ack(some)


def found_in(path: Path) -> list[str]:
    return sorted(name.partition(".")[0].partition("@")[0] for state in STATES for name in names_in(path, state))


STATES = ("pending", "leased", "done", "failed")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # struck before its with: Python closes it
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function Directory.__del__:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.timeout(300)
def test_a_handler_that_raises(path: Path) -> None:
    """One handle survives exceptions at random instants: no lock stays held, nothing that was put is lost."""
    rng, put = random.Random(7), list[str]()

    def strike() -> None:
        raise Struck

    with FileSampleRefQueue(path, durable=False, heartbeat_s=10.0, lease_timeout_s=60.0) as queue:
        for round_ in range(_ROUNDS):
            with hang_is_an_error(f"round {round_}"):
                with suppress(Struck), struck_soon(strike, rng.random() * _LONGEST_S):
                    put_get_and_settle(queue, put, str(round_))
                assert is_lockable(path / "order.lock")
                queue.release_all()
            tally.count("signals whose handler raised in a call of a queue: locks held 0, refs lost 0")
        drain(queue)
    assert set(put) <= set(found_in(path)) and len(found_in(path)) == len(set(found_in(path)))
    assert (names_in(path, "pending"), names_in(path, "leased")) == ([], [])
    assert_clean(path)


@pytest.mark.timeout(300)
def test_a_handler_that_closes(path: Path) -> None:
    """Closing in a signal handler, on top of a put, get or ack, hangs nowhere and leaves nothing leased or locked."""
    rng, put = random.Random(8), list[str]()
    for round_ in range(_ROUNDS):
        queue = FileSampleRefQueue(path, durable=False, heartbeat_s=10.0, lease_timeout_s=60.0)
        with hang_is_an_error(f"round {round_}"):
            with suppress(FsQueueError), struck_soon(queue.close, rng.random() * _LONGEST_S):
                put_get_and_settle(queue, put, str(round_))
            assert is_lockable(path / "order.lock")
            queue.close()
        tally.count("signals whose handler closed a queue on top of a call: locks held 0, refs lost 0")
    with FileSampleRefQueue(path) as other:
        other.ack([ref(name.partition("@")[0]) for name in names_in(path, "leased")])
        drain(other)
    assert set(put) <= set(found_in(path)) and len(found_in(path)) == len(set(found_in(path)))
    assert_clean(path)
