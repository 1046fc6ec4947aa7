"""The supervisor of a demo run: starts the processes, watches and kills them, and reports what came of it.

prepare -> rollouts and trainers, until the trainers have trained everything -> evaluate -> check -> report

A worker that is killed is started again; one that ends with an error ends the run, which can be resumed.

It needs no torch itself, and touches the queue only to count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from fsqueue import FileSampleRefQueue
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.demo.crew import Crew
from fsqueue.demo.demo_dir import DemoDirectory
from fsqueue.demo.generations import Generations
from fsqueue.demo.journal import Journal, JournalReader, starts_of
from fsqueue.demo.options import DemoError, DemoOptions, DemoReport, Progress, Snapshot
from fsqueue.demo.report import Totals, make_report
from fsqueue.demo.scheduler import Killer, Scheduler
from fsqueue.engine.layout import STREAM
from fsqueue.operate.check import check_queue
from fsqueue.records import SampleRef

_LOADING = "loading torch and transformers"
_POLL_S = 0.05
_PROGRESS_S = 0.5


def run_demo(options: DemoOptions, progress: Progress = lambda snapshot: None) -> DemoReport:
    """Run the demo to its end.

    Args:
        progress: called about twice a second, and at once with a message when something happens.

    Raises:
        DemoError: the directory is not empty, an error has ended a process, or nothing moves any more.
    """
    demo = DemoDirectory(options.directory)
    demo.create(options)
    return _run(demo, options, progress)


def resume_demo(directory: str, progress: Progress = lambda snapshot: None) -> DemoReport:
    """Go on with a run whose processes are gone: from its last checkpoint, with what that has not seen.

    Raises:
        DemoError: there is no run, it is going on, or as for `run_demo`.
    """
    demo = DemoDirectory(directory)
    options = replace(demo.read_options(), directory=demo.path, kill=False, preempt=False)
    return _run(demo, options, progress)


def _run(demo: DemoDirectory, options: DemoOptions, progress: Progress) -> DemoReport:
    generations = Generations(demo)
    with (
        FileSampleRefQueue(demo.queue, lease_timeout_s=options.lease_timeout_s, run_id=options.run_id) as queue,
        FileMetadataStore(demo.ledger),  # made here, once, as the queue is
    ):
        _forget_stream(demo, queue)
        generations.advance()
        with (
            closing(Journal(demo.log, "supervisor", starts_of(demo.log, "supervisor") + 1)),
            Crew(demo, options.rollouts, options.trainers, generations.advance) as crew,
        ):
            return _Run(options, demo, queue, crew, progress).to_the_end()


def _forget_stream(demo: DemoDirectory, queue: FileSampleRefQueue[SampleRef]) -> None:
    """Begin with an empty stream/: whoever was killed with the whole group would be taken for one that died just now.

    Raises:
        DemoError: somebody takes part in it.
    """
    for member in queue.stream().members():
        if member.standing == "joined" and member.record.process.liveness() != "dead":
            raise DemoError(f"{demo.path}: {member.describe()} is at work: end that run first")
    stream = os.path.join(demo.queue, STREAM)
    for name in os.listdir(stream):
        os.unlink(os.path.join(stream, name))


@dataclass
class _Run:
    """One run's state in the supervisor."""

    options: DemoOptions
    demo: DemoDirectory
    queue: FileSampleRefQueue[SampleRef]
    crew: Crew
    progress: Progress

    def __post_init__(self) -> None:
        self._reader = JournalReader(self.demo.log)
        self._totals = Totals()
        self._started = self._shown = self._moved = time.monotonic()
        self._preparing = _LOADING
        self._killer = Killer(self.options, self.crew, self._totals, self._say)
        self._scheduler = Scheduler(self.options, self.crew, self._totals, self.queue.stream(), self._say)

    def to_the_end(self) -> DemoReport:
        self.crew.start()
        self._until(lambda: self.crew.finished)
        self.crew.evaluate.start()
        self._until(lambda: self.crew.evaluate.finished)
        self._show("checking")
        violations = check_queue(self.demo.queue)
        plan = self.demo.read_plan()
        if plan is None:
            raise DemoError(f"{self.demo.path} has lost its plan")
        return make_report(
            self.demo,
            plan,
            self._totals,
            kills=self._killer.kills,
            preemptions=self._scheduler.preemptions,
            seconds=self._elapsed_s(),
            violations=len(violations),
        )

    def _until(self, finished: Callable[[], bool]) -> None:
        """Watch, kill and show until then."""
        while True:
            for worker in self.crew.watch():
                self._say(f"started {worker.name} again, pid {worker.pid}, attempt {worker.starts}")
            over = finished()
            self._read_events()
            if over:
                return
            self._killer.tick()
            self._scheduler.tick()
            if time.monotonic() - self._shown > _PROGRESS_S:
                self._show()
            time.sleep(_POLL_S)

    def _read_events(self) -> None:
        for event in self._reader.read():
            self._totals.add(event)
            self._moved = time.monotonic()
            if event.kind == "acceptance":
                when = "before" if event.worker == "prepare" else "after"
                self._show(message=f"top-1 acceptance {when} training: {event.value:.1%}")
            elif event.kind == "preparing":
                self._preparing = event.note
            elif event.kind == "prepared":
                self._show(message=event.note)
            elif event.kind == "failed":
                self._show(message=f"{event.worker} failed {event.ids[0]}: {event.note}")
        if time.monotonic() - self._moved > self.options.stall_timeout_s:
            raise DemoError(f"nothing has moved for {self.options.stall_timeout_s:.0f} s; see {self.demo.log}")

    def _stage(self) -> str:
        if not self.crew.prepare.finished:
            return "preparing"
        if self.crew.finished:
            return "evaluating"
        return "training" if self._totals.step else "preparing"

    def _waits_for(self) -> str:
        """Say what comes before the first step."""
        if self._stage() != "preparing":
            return ""
        if not self.crew.prepare.finished:
            return self._preparing
        if not self._totals.all_known:
            return f"the first features: rollouts ({self.options.rollouts}) load the target model"
        return f"the first step: trainers ({self.options.trainers}) load torch, and meet"

    def _say(self, message: str) -> None:
        self._show(message=message)

    def _show(self, stage: str | None = None, message: str | None = None) -> None:
        self._shown = time.monotonic()
        counts = self.queue.counts()
        totals = self._totals
        self.progress(
            Snapshot(
                stage=stage or self._stage(),
                elapsed_s=self._elapsed_s(),
                total=self.options.total,
                **counts._asdict(),
                step=totals.step,
                samples_per_s=totals.samples_per_s(counts.done, time.time()),
                losses={int(worker.rpartition("-")[2]): loss for worker, loss in sorted(totals.last_loss.items())},
                waits_for=self._waits_for(),
                message=message,
            )
        )

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started
