"""One run of a plan, and what came of it."""

from __future__ import annotations

import errno
import gc
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from unittest import mock

from fsqueue import FileSampleRefQueue, QueueIOError, SampleRef, StaleLockWarning
from fsqueue.disk.fileops import using
from fsqueue.engine.refused import SWEEP_S
from fsqueue.errors import CorruptRefError, FsQueueError
from fsqueue.format import names, packed
from fsqueue.format.codec import Codec
from fsqueue.operate.check import check_queue
from history.checker import Verdict, check
from history.recording import OVERLAP, Call, Line, Log, calls_in
from simulation.cache import Cache
from simulation.lies import LIED
from simulation.node import Process
from simulation.observer import LIVE, Observer, stem_in
from simulation.plan import LEASE_S, Plan
from simulation.script import QUEUE, Script, make_ref
from simulation.world import Machine, World

_decode = Codec(SampleRef).decode


@dataclass
class Outcome:
    """What came of a run: problems must be empty."""

    plan: Plan
    verdict: Verdict
    problems: list[str] = field(default_factory=list)
    calls: int = 0
    trace: list[str] = field(default_factory=list)

    def kinds(self) -> set[str]:
        """What kind of problems there are: the words before the first colon."""
        return {problem.partition(":")[0] for problem in self.problems}


class _NoHeartbeats:
    """The heartbeat thread's place: in a run, beats are steps."""

    def new_key(self) -> int:
        return 0

    def register(self, *_: object) -> None:
        pass

    def unregister(self, key: int) -> None:
        pass


@contextmanager
def deterministic() -> Iterator[None]:
    """Number the names of owners and of packings; no heartbeat thread, and every client looks like another host."""
    serials = count(1)

    def new_owner(name: str | None, path: str) -> str:
        serial = next(serials)
        return f"{name or 'operator'}.{serial}.{serial:06x}"

    with ExitStack() as stack:
        if gc.isenabled():
            gc.disable()  # else it decides when a dropped handle closes its descriptors
            stack.callback(gc.enable)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", StaleLockWarning)
        for module in ("engine.engine", "operate.operator"):
            stack.enter_context(mock.patch(f"fsqueue.{module}.new_owner", new_owner))
        stack.enter_context(
            mock.patch(
                "fsqueue.engine.packing.revision.secrets.token_hex", lambda size: f"{next(serials):0{2 * size}x}"
            )
        )
        stack.enter_context(mock.patch("os.getpid", lambda: 1))
        stack.enter_context(mock.patch("fsqueue.engine.heartbeat.heartbeats", _NoHeartbeats()))
        for name in ("boot_id", "pid_namespace"):
            stack.enter_context(mock.patch(f"fsqueue.engine.owners.{name}", lambda: None))
        stack.enter_context(mock.patch("fsqueue.engine.awake.process_age_s", lambda: 0.0))
        stack.enter_context(mock.patch("fsqueue.engine.owners.process_stat", lambda pid: (None, None)))
        yield


def run(plan: Plan, traced: bool = False) -> Outcome:
    """Run a plan from an empty server to a drained queue, and check it."""
    with deterministic():
        this = _Run(plan, traced)
        try:
            return this.outcome()
        finally:
            this.end()


class _Run:
    def __init__(self, plan: Plan, traced: bool) -> None:
        self._plan = plan
        self._world = World(plan.rules, traced)
        self._lines: list[Line] = []
        self._log = Log(self._lines.append, lambda: self._world.now)
        self._observer = Observer(self._world, self._log)
        self._scripts: list[Script] = []
        self._drained_within_s = LEASE_S + SWEEP_S + plan.rules.seen_after_s

    def outcome(self) -> Outcome:
        world = self._world
        world.say(f"mount {self._plan.rules.describe()}")
        if self._plan.created:
            world.rules = self._plan.rules.on_a_good_day()
            self._open(self._fresh_machine("creator")).close()
            world.rules = self._plan.rules
        self._scripts = [
            Script(world, self._plan, client, self._log, self._observer.file_of) for client in self._plan.clients
        ]
        world.run([script.run for script in self._scripts])
        problems = [f"{type(error).__name__}: {error}" for error in world.failures]
        if not problems:
            problems += self._drain()
        calls = calls_in(self._lines) + [_overlap(since, until) for since, until in world.overlaps]
        verdict = check(
            calls,
            LEASE_S,
            lock_excludes=self._plan.lock != "none",
            deduplicates=self._plan.rules.deduplicates,
        )
        if not problems:
            problems += verdict.problems()
            problems += self._errors()
            problems += self._contents()
            problems += self._damage()
            if self._plan.lock != "none" and not world.overlaps and self._plan.rules.deduplicates:
                problems += [f"queued twice: {line}" for line in self._observer.twice]
        return Outcome(self._plan, verdict, problems, world.calls, world.trace or [])

    def end(self) -> None:
        """Nothing that is left of this run makes calls any more."""
        for machine in self._world.machines:
            machine.dead = True

    def _fresh_machine(self, name: str, cache: Cache | None = None) -> Machine:
        """A process that nothing befalls, on a host that has seen nothing yet, or that has this in its caches."""
        rng = random.Random(f"{self._plan.seed}/{name}")
        if cache is None:
            cache = Cache(self._world.server, self._world.rules, lambda: self._world.now, rng)
        cache.rules = self._world.rules
        return Machine(self._world, Process(self._world, cache, rng), name, 0.0, [], rng)

    def _open(self, machine: Machine) -> FileSampleRefQueue[SampleRef]:
        with using(machine.ops):
            return FileSampleRefQueue(
                QUEUE,
                lease_timeout_s=LEASE_S,
                owner=machine.name,
                durable=False,
                lock=self._plan.lock,
                keep_done=self._plan.keep_done,
            )

    def _drain(self) -> list[str]:
        """All faults cease, and one client gets everything within the documented time: a new process on any node."""
        world = self._world
        rng = random.Random(f"{self._plan.seed}/drained by")
        script = rng.choice((None, *self._scripts))
        world.say(f"-- all faults cease; it is drained by {script.name if script else 'a node that knows nothing'}")
        world.rules = world.rules.on_a_good_day()
        machine = self._fresh_machine("drain", script.cache if script else None)
        started = world.now
        try:
            self._drain_with(self._open(machine), started)
        except FsQueueError as error:
            return [f"drain: {type(error).__name__}: {error}"]
        return [f"stranded: {name}, {self._drained_within_s:.0f} s after the last fault" for name in self._left()]

    def _drain_with(self, queue: FileSampleRefQueue[SampleRef], started: float) -> None:
        world = self._world
        while world.now - started < self._drained_within_s and self._left():
            key = self._log.begin("get", queue.owner)
            try:
                refs = queue.get(8, 1.0)
            except QueueIOError as error:
                if not self._is_of_a_torn_file(error):
                    raise
                self._log.end(key, ids=[], files=[])
                continue
            files = [self._observer.file_of(ref.sample_id, queue.owner) for ref in refs]
            self._log.end(key, ids=[ref.sample_id for ref in refs], files=files)
            key = self._log.begin("ack", queue.owner, [ref.sample_id for ref in refs])
            self._log.end(key, lost=queue.ack(refs))

    def _left(self) -> list[str]:
        return [
            f"{folder}/{name}"
            for folder in LIVE
            for name in self._observer.entries(folder)
            if stem_in(folder, name) is not None
        ]

    def _errors(self) -> list[str]:
        """Only a file handle that is stale indeed may come out as an error."""
        return [
            f"error {_kind(error)}: {error}"
            for script in self._scripts
            for error in script.errors
            if not self._is_excused(error)
        ]

    def _is_excused(self, error: FsQueueError) -> bool:
        if not isinstance(error, OSError) or (isinstance(error.__cause__, OSError) and _lied(error.__cause__)):
            return False
        if self._is_of_a_torn_file(error):
            return True
        if error.errno == errno.ENOENT and (not self._plan.keep_done or self._plan.rules.old_listings_s):
            return True  # a rename was done, and the ref acked and unlinked, or leased unseen, before its answer came
        return error.errno == errno.ESTALE

    def _is_of_a_torn_file(self, error: FsQueueError) -> bool:
        """A get raises where the one ref that it could lease cannot be read, and so does who writes its history."""
        return "two-writers-tear" in self._plan.rules and isinstance(error, OSError) and error.errno == errno.EIO

    def _damage(self) -> list[str]:
        """What `fsqueue check` finds in the drained queue.

        Torn bookkeeping is no damage: an owner that was stopped for longer than its lease may write its history at
        the same time as the next one. The ref before it is whole, which `_contents` has seen.
        """
        try:
            with using(self._fresh_machine("check").ops):
                found = [violation for violation in check_queue(QUEUE) if violation.kind != "torn"]
        except FsQueueError as error:
            return [f"check: {type(error).__name__}: {error}"]
        return [f"damage {violation.kind}: {violation.path}: {violation.problem}" for violation in found]

    def _contents(self) -> list[str]:
        """What is in done/ and failed/ at the end is what was put, and an id that was put once is there once."""
        problems = []
        found: Counter[str] = Counter()
        for place, stem, data in self._settled():
            found[stem] += 1
            try:
                if _decode(data) != make_ref(stem):
                    problems.append(f"changed: {place}: {data!r}")
            except CorruptRefError as error:
                problems.append(f"corrupt: {place}: {error}: {data!r}")
        if self._plan.keep_done:
            problems += self._counted(found)
        return problems

    def _settled(self) -> Iterator[tuple[str, str, bytes]]:
        """(where, stem, bytes) of each ref in done/ and failed/, whether packed or in the hand of a packing."""
        done, failed = self._observer.entries("done"), self._observer.entries("failed")
        names_in_done = packed.read_names(done)
        for segment in names_in_done.segments:
            lines, damaged = packed.whole_lines(bytes(done[segment.name].data))
            assert len(lines) == segment.refs and not damaged, segment
            yield from ((f"done/{segment.name}", line.stem, line.data) for line in lines)
        files = [("done", name, done[at]) for name, at in names_in_done.files.items()]
        for folder, name, inode in files + [("failed", name, inode) for name, inode in failed.items()]:
            if parsed := names.parse_done(name):
                yield f"{folder}/{name}", parsed[0], bytes(inode.data)

    def _counted(self, found: Counter[str]) -> list[str]:
        puts = Counter(i for line in self._lines if line.get("kind") == "put" for i in line["ids"])
        once = [sample_id for sample_id, number in puts.items() if number == 1 and found[sample_id] != 1]
        returned = {i for call in calls_in(self._lines) if call.kind == "put" and call.returned_at for i in call.ids}
        return [f"settled {found[i]} times: {i}" for i in once if found[i] > 1 or i in returned]


def _lied(error: OSError) -> bool:
    return LIED in str(error.strerror)


def _kind(error: FsQueueError) -> str:
    return os.strerror(error.errno or 0) if isinstance(error, OSError) else type(error).__name__


def _overlap(since: float | None, until: float | None) -> Call:
    assert since is not None
    return Call(OVERLAP, "server", (), since, until, until if until is not None else float("inf"))
