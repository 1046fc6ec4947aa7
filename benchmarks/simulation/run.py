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

from fsqueue import FileSampleRefQueue, SampleRef, StaleLockWarning
from fsqueue.disk.fileops import using
from fsqueue.engine.claim import SWEEP_S
from fsqueue.errors import CorruptRefError
from fsqueue.format import names, packed
from fsqueue.format.codec import Codec
from fsqueue.operate.check import check_queue
from history.checker import Verdict, check
from history.recording import OVERLAP, Call, Line, Log, calls_in
from simulation.cache import Cache
from simulation.node import Process
from simulation.plan import LEASE_S, Plan
from simulation.rules import Rules
from simulation.script import QUEUE, Script, make_ref
from simulation.server import Inode
from simulation.world import Machine, World

DRAINED_WITHIN_S = LEASE_S + SWEEP_S
_LIVE = ("pending", "leased")
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


class _Observer:
    """Sees every rename at the server: which refs settle, and whether an id ever has two live files."""

    def __init__(self, world: World, log: Log) -> None:
        self._world = world
        self._log = log
        self._folders: dict[Inode, str] = {}
        self.twice: list[str] = []
        world.server.renamed = self._renamed
        world.server.removed = self._removed

    def _renamed(self, inode: Inode, source: Inode, name: str, target: Inode, new_name: str) -> None:
        self._learn_folders()
        folder = self._folders.get(target)
        if folder in ("done", "failed") and source is not target:
            parsed = names.parse_done(new_name) if folder == "done" else (names.parse_ref(new_name),)
            if parsed and parsed[0]:
                self._log.saw("arrived", folder, [parsed[0]])
        elif folder in _LIVE and (stem := _stem(folder, new_name)) is not None:
            if self._folders.get(source) in ("done", "failed"):
                self._log.saw("requeue", "server", [stem])
            # What is fetched from done/ is looked at after it was fetched, and goes back where its id is live.
            fetched = folder == "leased" and self._folders.get(source) in ("done", "failed")
            if not fetched and len(live := self.live(stem)) > 1:
                self.twice.append(f"{stem} at {self._world.now:.3f}: {' and '.join(live)}")

    def _removed(self, directory: Inode, name: str) -> None:
        """Where done files are not kept, an acknowledged ref is removed."""
        self._learn_folders()
        folder = self._folders.get(directory, "")
        if folder in _LIVE and (stem := _stem(folder, name)) is not None:
            self._log.saw("arrived", folder, [stem])

    def _learn_folders(self) -> None:
        queue = self._world.server.walk(QUEUE)
        if len(self._folders) < 6 and queue is not None and queue.entries:
            self._folders = {inode: name for name, inode in queue.entries.items() if inode.entries is not None}

    def entries(self, folder: str) -> dict[str, Inode]:
        directory = self._world.server.walk(f"{QUEUE}/{folder}")
        return {} if directory is None or directory.entries is None else directory.entries

    def live(self, stem: str) -> list[str]:
        """The names that an id has in pending/ and leased/."""
        return [f"{folder}/{name}" for folder in _LIVE for name in self.entries(folder) if _stem(folder, name) == stem]

    def file_of(self, sample_id: str, owner: str) -> int:
        """Which copy of a ref an owner leases; any live one, where it does not really lease it."""
        stem = names.stem_of(sample_id)
        leases = ((names.parse_leased(name), inode) for name, inode in self.entries("leased").items())
        mine = next((inode for lease, inode in leases if lease and (lease.stem, lease.owner) == (stem, owner)), None)
        if mine is None:
            for folder in _LIVE:
                for name, inode in self.entries(folder).items():
                    if _stem(folder, name) == sample_id:
                        return inode.number
        return mine.number if mine is not None else 0


def _stem(folder: str, name: str) -> str | None:
    if folder == "leased":
        parsed = names.parse_leased(name)
        return parsed[0] if parsed else None
    return names.parse_ref(name)


class _NoHeartbeats:
    """The heartbeat thread's place: in a run, beats are steps."""

    def new_key(self) -> int:
        return 0

    def register(self, *_: object) -> None:
        pass

    def unregister(self, key: int) -> None:
        pass


@contextmanager
def _deterministic() -> Iterator[None]:
    """Names of owners and of packings by number, no heartbeat thread, and every client looks like another host."""
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
    with _deterministic():
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
        self._observer = _Observer(self._world, self._log)
        self._scripts: list[Script] = []

    def outcome(self) -> Outcome:
        world = self._world
        if self._plan.created:
            world.rules = _kind(self._plan.rules)
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
        verdict = check(calls, LEASE_S, lock_excludes=self._plan.lock != "none")
        if not problems:
            problems += verdict.problems()
            problems += self._errors()
            problems += self._contents()
            problems += self._damage()
            if self._plan.lock != "none" and not world.overlaps:
                problems += [f"queued twice: {line}" for line in self._observer.twice]
        return Outcome(self._plan, verdict, problems, world.calls, world.trace or [])

    def end(self) -> None:
        """Nothing that is left of this run makes calls any more."""
        for machine in self._world.machines:
            machine.dead = True

    def _fresh_machine(self, name: str) -> Machine:
        """A host that has seen nothing yet and that nothing befalls."""
        rng = random.Random(f"{self._plan.seed}/{name}")
        cache = Cache(self._world.server, self._world.rules, lambda: self._world.now, rng)
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
        """All faults cease, and one fresh client gets everything within the documented time."""
        world = self._world
        world.say("-- all faults cease")
        world.rules = _kind(world.rules)
        machine = self._fresh_machine("drain")
        started = world.now
        queue = self._open(machine)
        while world.now - started < DRAINED_WITHIN_S and self._left():
            key = self._log.begin("get", queue.owner)
            refs = queue.get(8, 1.0)
            files = [self._observer.file_of(ref.sample_id, queue.owner) for ref in refs]
            self._log.end(key, ids=[ref.sample_id for ref in refs], files=files)
            key = self._log.begin("ack", queue.owner, [ref.sample_id for ref in refs])
            self._log.end(key, lost=queue.ack(refs))
        return [f"stranded: {name}, {DRAINED_WITHIN_S:.0f} s after the last fault" for name in self._left()]

    def _left(self) -> list[str]:
        return [
            f"{folder}/{name}"
            for folder in _LIVE
            for name in self._observer.entries(folder)
            if _stem(folder, name) is not None
        ]

    def _errors(self) -> list[str]:
        """Only a file handle that the server reported as stale may come out as an error."""
        errors = [error for script in self._scripts for error in script.errors]
        excused = {errno.ESTALE}
        if not self._plan.keep_done:
            excused.add(errno.ENOENT)  # a rename was done, and the ref acked and unlinked before its answer came
        return [f"error {os.strerror(error.errno or 0)}: {error}" for error in errors if error.errno not in excused]

    def _damage(self) -> list[str]:
        """What `fsqueue check` finds in the drained queue.

        Torn bookkeeping is no damage: an owner that was stopped for longer than its lease may write its history at
        the same time as the next one. The ref before it is whole, which `_contents` has seen.
        """
        with using(self._fresh_machine("check").ops):
            found = [violation for violation in check_queue(QUEUE) if violation.kind != "torn"]
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


def _kind(rules: Rules) -> Rules:
    """The same mount on a good day."""
    return Rules(lock=rules.lock, latency_s=rules.latency_s)


def _overlap(since: float | None, until: float | None) -> Call:
    assert since is not None
    return Call(OVERLAP, "server", (), since, until, until if until is not None else float("inf"))
