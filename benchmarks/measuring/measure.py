"""What is run, in which order: fill, interleaved rounds, wake-up, and the check that nothing was lost.

Within a round every subject gets its slice of every case in turn, so that a noisy moment of the machine hits all
alike; ratios are taken within a round, and the median over the rounds is reported.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from measuring.fleet import Fleet, WorkerError
from measuring.worker import Ledger, Slice
from subjects.kinds import ALONE, SUBJECTS, WAITING

WAKEUP_INTERVAL_S = 0.02


@dataclass(frozen=True)
class Options:
    """The parameters of a run; durations in seconds.

    Attributes:
        kinds: what is measured.
        strangers: those of them whose failures are reported and do not end the run.
    """

    directory: str
    backlogs: tuple[int, ...]
    batches: tuple[int, ...]
    processes: tuple[int, ...]
    durable: bool
    rounds: int
    slice_s: float
    wakeups: int
    kinds: tuple[str, ...] = tuple(SUBJECTS)
    strangers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    kind: str
    backlog: int
    batch: int
    processes: int


@dataclass(frozen=True)
class Verdict:
    """What became of the refs of one subject at one backlog."""

    kind: str
    backlog: int
    put: int
    delivered: int
    lost: int
    doubled: int
    left: int

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.left)


@dataclass
class Findings:
    """Raw results: for each case one list of the processes' slices a round; the errors of strangers
    by kind and number of processes, after which that kind is not run with so many any more."""

    slices: dict[Case, list[list[Slice]]] = field(default_factory=dict)
    wakeups_s: dict[str, list[float]] = field(default_factory=dict)
    verdicts: list[Verdict] = field(default_factory=list)
    failures: dict[tuple[str, int], str] = field(default_factory=dict)


def measure(options: Options, progress: Callable[[str], None]) -> Findings:
    """Run everything.

    Raises:
        WorkerError: a worker failed.
    """
    findings = Findings()
    with Fleet(options.processes, options.durable) as fleet:
        for backlog in options.backlogs:
            progress(f"filling to {backlog} pending")
            _fill(fleet, options, backlog)
        fleet.together(len(fleet), "settle")
        os.sync()
        _rounds(fleet, options, findings, progress)
        if options.wakeups:
            _wakeups(fleet, options, findings, progress)
        for backlog in options.backlogs:
            progress(f"emptying and checking {backlog}")
            for kind in options.kinds:
                _conclude(fleet, kind, backlog, options, findings)
        progress("")
    return findings


def _key(kind: str, backlog: int) -> str:
    return f"{kind}-{backlog}"


def _users(fleet: Fleet, kind: str) -> int:
    """How many workers use a subject: a queue in memory is one process's."""
    return 1 if kind in ALONE else len(fleet)


def _fill(fleet: Fleet, options: Options, backlog: int) -> None:
    for kind in options.kinds:
        key = _key(kind, backlog)
        for index in range(_users(fleet, kind)):
            fleet.call(index, "open", key, kind, os.path.join(options.directory, key))
        fleet.call(0, "fill", key, backlog)


def _cases(options: Options) -> list[Case]:
    return [
        Case(kind, backlog, batch, processes)
        for processes in options.processes
        for batch in options.batches
        for backlog in options.backlogs
        for kind in options.kinds
        if kind not in ALONE or processes == 1
    ]


def _rounds(fleet: Fleet, options: Options, findings: Findings, progress: Callable[[str], None]) -> None:
    """The first round only warms up and is not kept."""
    cases = _cases(options)
    for number in range(options.rounds + 1):
        for case in cases if number % 2 else reversed(cases):
            if (case.kind, case.processes) in findings.failures:
                continue
            progress(f"round {number}/{options.rounds}: {case.kind} {case.backlog} x{case.batch} p{case.processes}")
            seconds = options.slice_s if number else 0.0
            key = _key(case.kind, case.backlog)
            try:
                found = fleet.together(case.processes, "run", key, case.batch, seconds, case.processes)
            except WorkerError as error:
                if case.kind not in options.strangers:
                    raise
                findings.failures[case.kind, case.processes] = error.summary
                continue
            if number:
                findings.slices.setdefault(case, []).append(found)


def _wakeups(fleet: Fleet, options: Options, findings: Findings, progress: Callable[[str], None]) -> None:
    """Worker 0 waits, worker 1 puts one ref every 20 ms; several turns, so that noise hits all alike."""
    turns = min(options.rounds, options.wakeups)
    for kind in WAITING:
        for index in (0, 1):
            fleet.call(index, "open", _key(kind, 0), kind, os.path.join(options.directory, _key(kind, 0)))
    for turn in range(turns):
        for kind in WAITING:
            progress(f"wake-up {turn + 1}/{turns}: {kind}")
            count = options.wakeups // turns
            fleet.send(0, "consume", _key(kind, 0), count)
            fleet.send(1, "produce", _key(kind, 0), count, WAKEUP_INTERVAL_S)
            findings.wakeups_s.setdefault(kind, []).extend(fleet.reply(0))
            fleet.reply(1)
    findings.verdicts += [_verify(fleet, kind, 0, users=2) for kind in WAITING]


def _conclude(fleet: Fleet, kind: str, backlog: int, options: Options, findings: Findings) -> None:
    try:
        findings.verdicts.append(_verify(fleet, kind, backlog))
    except WorkerError as error:
        if kind not in options.strangers:
            raise
        findings.failures[kind, _users(fleet, kind)] = error.summary


def _verify(fleet: Fleet, kind: str, backlog: int, users: int | None = None) -> Verdict:
    """Empty a subject; compare what all processes put with what all were given."""
    put: Counter[str] = Counter()
    got: Counter[str] = Counter()
    left = 0
    for index in range(users or _users(fleet, kind)):
        ledger, left = fleet.call(index, "drain", _key(kind, backlog))
        assert isinstance(ledger, Ledger)
        put.update(ledger.put)
        got.update(ledger.got)
    return Verdict(
        kind,
        backlog,
        put=len(put),
        delivered=got.total(),
        lost=len(put.keys() - got.keys()),
        doubled=got.total() - len(got),
        left=left,
    )
