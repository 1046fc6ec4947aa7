"""The processes that do the work: each opens every subject, then runs what the parent asks for.

A command is a method name of `Worker` with its arguments; the reply is ``(True, result)`` or ``(False,
traceback)``.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from against_peers.kinds import PEERS
from subjects.kinds import open_subject
from subjects.sample import LEASE_TIMEOUT_S, sample
from subjects.subject import QueueSubject, Subject

MINIMUM_CYCLES = 2
BARRIER_TIMEOUT_S = 120.0
SILENCE_S = 10.0
RECOVERY_TRIES = 40
RECOVERY_PAUSE_S = 0.1


@dataclass
class Slice:
    """One process's share of one measurement: durations of its calls in seconds, and refs it moved."""

    put_s: list[float] = field(default_factory=list)
    get_s: list[float] = field(default_factory=list)
    ack_s: list[float] = field(default_factory=list)
    refs_put: int = 0
    refs_got: int = 0


@dataclass
class Ledger:
    """Ids that this process put and got, for the check that none was lost or doubled."""

    put: list[str] = field(default_factory=list)
    got: list[str] = field(default_factory=list)


class Worker:
    """The commands."""

    def __init__(self, index: int, durable: bool, barriers: dict[int, Barrier]) -> None:
        self._index = index
        self._durable = durable
        self._barriers = barriers
        self._subjects: dict[str, Subject] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._serial = 0

    def open(self, key: str, kind: str, path: str, lease_timeout_s: float = LEASE_TIMEOUT_S) -> None:
        if kind in PEERS:
            os.makedirs(path, exist_ok=True)
            self._subjects[key] = PEERS[kind](path, lease_timeout_s)
        else:
            self._subjects[key] = open_subject(kind, path, f"worker{self._index}", self._durable, lease_timeout_s)
        self._ledgers[key] = Ledger()

    def _ids(self, count: int) -> list[str]:
        first = self._serial
        self._serial += count
        return [f"s{self._index}-{number:08d}" for number in range(first, first + count)]

    def fill(self, key: str, count: int) -> None:
        ids = self._ids(count)
        self._subjects[key].fill(ids)
        self._ledgers[key].put += ids

    def settle(self) -> None:
        """Take what was filled out of the collector's sight: a backlog in memory would slow everything else."""
        gc.collect()
        gc.freeze()

    def run(self, key: str, batch: int, seconds: float, processes: int) -> Slice:
        """Cycles of put, get, ack for that long, started together with the other processes."""
        subject, ledger, found = self._subjects[key], self._ledgers[key], Slice()
        gc.collect()
        self._barriers[processes].wait(BARRIER_TIMEOUT_S)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(found.put_s) < MINIMUM_CYCLES:
            self._cycle(subject, ledger, found, batch)
        return found

    def _cycle(self, subject: Subject, ledger: Ledger, found: Slice, batch: int) -> None:
        ids = self._ids(batch)
        to_put, to_get = subject.plan(ids, batch)
        started = time.perf_counter()
        subject.put(to_put)
        put = time.perf_counter()
        refs = subject.get(to_get)
        got = time.perf_counter()
        subject.ack(refs)
        acked = time.perf_counter()
        found.put_s.append(put - started)
        found.get_s.append(got - put)
        found.ack_s.append(acked - got)
        found.refs_put += batch
        found.refs_got += len(refs)
        ledger.put += ids
        ledger.got += [ref.sample_id for ref in refs]

    def hold(self, key: str, count: int) -> list[str]:
        """Put refs and take them, for good."""
        subject, ids = self._subjects[key], self._ids(count)
        to_put, _ = subject.plan(ids, count)
        subject.put(to_put)
        return [ref.sample_id for ref in subject.get(subject.plan([], count)[1])]

    def regain(self, key: str, count: int) -> list[str]:
        """Take what another process held when it was killed; fewer than count where it does not come back.

        It is tried for a fixed number of times, so that a slow machine is no reason for failing.
        """
        subject, found = self._subjects[key], []
        for _ in range(RECOVERY_TRIES):
            subject.recover()
            refs = subject.get(subject.plan([], count)[1])
            found += [ref.sample_id for ref in refs]
            subject.ack(refs)
            if len(found) >= count:
                break
            time.sleep(RECOVERY_PAUSE_S)
        return found

    def drain(self, key: str) -> tuple[Ledger, int]:
        """Empty the subject; everything that this process put and got, and how many refs are left."""
        subject, ledger = self._subjects[key], self._ledgers[key]
        ledger.got += subject.drain()
        return ledger, subject.leftover()

    def consume(self, key: str, count: int) -> list[float]:
        """Wait for refs one at a time; seconds from before each put to after the get that returned it."""
        subject = self._subjects[key]
        assert isinstance(subject, QueueSubject)
        delays: list[float] = []
        self._barriers[2].wait(BARRIER_TIMEOUT_S)
        while len(delays) < count:
            refs = subject.queue.get(1, timeout_s=SILENCE_S)
            now = time.monotonic()
            if not refs:
                raise RuntimeError(f"{key}: no ref arrived within {SILENCE_S} s, {len(delays)} of {count} had")
            delays.append(now - refs[0].metadata["put_at"])
            self._ledgers[key].got.append(refs[0].sample_id)
            subject.queue.ack(refs)
        return delays

    def produce(self, key: str, count: int, interval_s: float) -> None:
        subject = self._subjects[key]
        assert isinstance(subject, QueueSubject)
        self._barriers[2].wait(BARRIER_TIMEOUT_S)
        for sample_id in self._ids(count):
            time.sleep(interval_s)
            subject.queue.put([sample(sample_id, put_at=time.monotonic())])
            self._ledgers[key].put.append(sample_id)

    def close(self) -> None:
        for subject in self._subjects.values():
            subject.close()
        self._subjects.clear()


def main(channel: Connection, index: int, durable: bool, barriers: dict[int, Barrier]) -> None:
    """A worker process: run commands until the parent closes its end."""
    worker = Worker(index, durable, barriers)
    try:
        while True:
            try:
                name, arguments = channel.recv()
            except EOFError:
                return
            channel.send(_run(getattr(worker, name), arguments))
    except KeyboardInterrupt:
        pass
    finally:
        worker.close()


def _run(command: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    try:
        return True, command(*arguments)
    except Exception:
        return False, traceback.format_exc()
