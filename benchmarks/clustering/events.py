"""List what can happen to a run, and what each event needs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

from clustering import process_events, slurm, slurm_events
from clustering.process_events import POD
from clustering.run import Account
from clustering.slurm import SHORTEST_EXPIRY_S, SLURMS_OWN_EXPIRY_S, Slurm
from clustering.slurm_events import HANDLERS, SlurmRun


class Site:
    """Hold the schedulers that the events use: each is started with its first event, and stopped at the end of `with`.

    Args:
        folder: where the runs are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._slurms: dict[int, Slurm] = {}

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def slurm(self, expiry_s: int) -> Slurm:
        """Return the Slurm whose requeued jobs wait for so long; another one is stopped for it."""
        if expiry_s not in self._slurms:
            self._stack.close()
            self._slurms.clear()
            folder = Path(mkdtemp(prefix="slurm-"))
            self._stack.callback(shutil.rmtree, folder, ignore_errors=True)
            self._slurms[expiry_s] = self._stack.enter_context(Slurm(folder, expiry_s))
        return self._slurms[expiry_s]


@dataclass(frozen=True)
class Event:
    """Describe one event.

    Attributes:
        under: the scheduler.
        play: runs the recipes, lets the event happen once so many samples are done, and accounts for all of them.
        prepare: starts what it needs, before several of it are played side by side.
        alone: it would disturb others that run at the same time.
        quick: it belongs to the small selection.
    """

    name: str
    under: str
    play: Callable[[Site, Path, int], Account]
    prepare: Callable[[Site], object] = lambda site: None
    alone: bool = False
    quick: bool = False


def lacking(under: str) -> str:
    """Say what a scheduler lacks on this host; "" where it can be used."""
    if under == "slurm":
        return " ".join(slurm.lacking()) or ("root" if os.geteuid() else "")
    module = {"ray": "ray", "torchrun": "torch"}.get(under)
    if module is not None:
        return "" if find_spec(module) else module
    return "" if _can_unshare() else "the right to unshare pids"


def _can_unshare() -> bool:
    return shutil.which("unshare") is not None and not subprocess.run([*POD, "true"], capture_output=True).returncode


def all_events() -> list[Event]:
    return [*_slurm_events(), *_process_events()]


def _process_events() -> Iterator[Event]:
    killed, told = signal.SIGKILL, signal.SIGTERM
    for under, name, event, quick in (
        ("torchrun", "a rank raises", process_events.rank_raises, True),
        ("torchrun", "SIGKILL of a rank", process_events.rank_killed, False),
        ("ray", "SIGKILL of a rollout's actor", process_events.actor_killed("rollout-1"), False),
        ("ray", "SIGKILL of a rank's actor", process_events.actor_killed("trainer-1"), False),
        ("ray", "SIGKILL of the driver", process_events.driver_killed, False),
        ("pods", "SIGKILL of a rollout, attempt given", process_events.pod_replaced("rollout", killed, 1), True),
        ("pods", "SIGKILL of a rollout, none given", process_events.pod_replaced("rollout", killed, None), False),
        ("pods", "SIGKILL of the trainer, attempt given", process_events.pod_replaced("trainer", killed, 1), False),
        ("pods", "SIGTERM of the trainer", process_events.pod_replaced("trainer", told, None), False),
    ):
        yield Event(f"{under}: {name}", under, _in_folder(event), quick=quick)


def _in_folder(event: Callable[[Path, int], Account]) -> Callable[[Site, Path, int], Account]:
    return lambda site, folder, after: event(folder, after)


def _slurm_events() -> Iterator[Event]:
    for name, event in (
        ("requeue of a trainer", slurm_events.requeue_trainer),
        ("requeue of a producer", slurm_events.requeue_producer),
        ("requeue of both", slurm_events.requeue_both),
    ):
        for handler in HANDLERS:
            quick = name.endswith("trainer") and handler == "withdraw"
            yield _slurm_event(f"{name}, SIGTERM: {handler}", event, handler, quick=quick)
        yield _slurm_event(f"{name}, Slurm's own delay", event, expiry_s=SLURMS_OWN_EXPIRY_S)
    yield _slurm_event("preemption by a higher partition", slurm_events.preemption, alone=True)
    yield _slurm_event("scancel --signal=TERM of both", slurm_events.scancel_signal)
    yield _slurm_event("all stopped for twice the silence", slurm_events.stall)
    yield _slurm_event("world size 2, 1, 3", slurm_events.worlds_2_1_3)
    quorum = {"quorum": 1.0}
    yield _slurm_event("a producer never returns, quorum 1", slurm_events.producer_never_returns, policy=quorum)
    brief = {"await_s": 5.0}
    yield _slurm_event("a producer returns after await_s", slurm_events.producer_returns_too_late, policy=brief)
    yield _slurm_event("SIGKILL of slurmctld in a requeue", slurm_events.kill_controller, alone=True)
    yield _slurm_event("SIGKILL of a rank", slurm_events.kill_rank)


def _slurm_event(
    name: str,
    event: slurm_events.Event,
    handler: str = "withdraw",
    *,
    expiry_s: int = SHORTEST_EXPIRY_S,
    policy: dict[str, float] | None = None,
    alone: bool = False,
    quick: bool = False,
) -> Event:
    def play(site: Site, folder: Path, after: int) -> Account:
        return event(SlurmRun(site.slurm(expiry_s), folder, handler, policy), after)

    return Event(f"slurm: {name}", "slurm", play, lambda site: site.slurm(expiry_s), alone, quick)
