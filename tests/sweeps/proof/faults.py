"""Run an operation while one of its file operations fails, and judge the error, the queue and the handle."""

from __future__ import annotations

import errno
import gc
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsqueue import FsQueueError, SampleRef, StaleLockWarning
from fsqueue.disk import fileops
from tests.support import ids
from tests.support.implementations import make_ref
from tests.sweeps.proof.operations import FAILED, LIVE, Operation
from tests.sweeps.proof.stages import CORRUPT, LONG_AGO_S, Stage, new_batch
from tests.sweeps.proof.verdict import Bystanders, StoppedClock, assert_landed, census, drain, second_consumer

REFUSE, DO_FIRST, SHORTEN, TEAR = "refuse", "do first", "shorten", "tear"
_EVERY = frozenset(fileops.CALLS)
_NAMES = frozenset({"rename", "link", "unlink", "mkdir"})
_WRITES = frozenset({"write", "pwrite"})


@dataclass(frozen=True)
class Fault:
    """One way in which a file operation fails.

    Attributes:
        how: refuse it, do it and report an error all the same, do half of it, or do half and report an error.
        lasting: every later call that it applies to fails as well, until the operation has ended.
        lies: the error says something that is not so; a lease may then be given up that was not lost.
    """

    name: str
    code: int | None
    calls: frozenset[str]
    how: str = REFUSE
    lasting: bool = False
    lies: bool = False

    def __str__(self) -> str:
        return self.name

    def error(self, filename: object) -> BaseException:
        if self.code is None:
            return KeyboardInterrupt()
        if isinstance(filename, str):
            return OSError(self.code, os.strerror(self.code), filename)
        return OSError(self.code, os.strerror(self.code))


def _refused(code: int, lies: bool = False) -> Fault:
    return Fault(errno.errorcode[code], code, _EVERY, lies=lies)


FAULTS: tuple[Fault, ...] = (
    _refused(errno.ENOSPC),
    _refused(errno.EDQUOT),
    _refused(errno.EIO),
    _refused(errno.ENOENT, lies=True),
    _refused(errno.EEXIST, lies=True),
    _refused(errno.ESTALE),
    _refused(errno.EACCES),
    _refused(errno.EROFS),
    _refused(errno.EMFILE),
    _refused(errno.EINTR),
    Fault("short write", 0, _WRITES, SHORTEN),
    Fault("torn write", errno.ENOSPC, _WRITES, TEAR),
    Fault("full disk", errno.ENOSPC, _WRITES | _NAMES - {"unlink"}, lasting=True),
    Fault("dead server", errno.EIO, _EVERY, lasting=True),
    Fault("done, but EIO", errno.EIO, _NAMES | {"utime", "fsync", "pwrite", "ftruncate", "unlock"}, DO_FIRST),
    Fault("done, but ENOENT", errno.ENOENT, frozenset({"rename", "unlink"}), DO_FIRST, lies=True),
    Fault("done, but EEXIST", errno.EEXIST, frozenset({"link", "mkdir"}), DO_FIRST, lies=True),
    Fault("Ctrl-C", None, _EVERY),
)


@dataclass
class Injector:
    """Fails the at-th file operation that the fault applies to, counted from 0, once it is armed."""

    fault: Fault
    at: int
    armed: bool = False
    fired: str | None = None
    _seen: int = 0
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.armed or name not in self.fault.calls:
            return call(*args, **kwargs)
        with self._mutex:
            hit = self._seen == self.at or (self.fault.lasting and self._seen > self.at)
            self._seen += 1
        if not hit:
            return call(*args, **kwargs)
        self.fired = self.fired or name
        return self._fail(name, call, args, kwargs)

    def _fail(self, name: str, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if name == "access":
            return False  # access(2) has no other way to say that it failed
        if self.fault.how in (SHORTEN, TEAR):
            done = call(args[0], args[1][: max(1, len(args[1]) // 2)], *args[2:], **kwargs)
            if self.fault.how == SHORTEN:
                return done
        elif self.fault.how == DO_FIRST or name == "close":
            call(*args, **kwargs)  # a close that reports an error has closed
        raise self.fault.error(args[0] if args else None)


@dataclass
class Outcome:
    """The outcome of one fault.

    Attributes:
        call: the file operation that failed; None: the operation has fewer of them.
        raised: what the operation raised.
        stranded: ids that nobody was given, and that came back only when their lease had expired.
    """

    call: str | None
    raised: BaseException | None = None
    stranded: set[str] = field(default_factory=set)


def fail_once(path: Path, operation: Operation, size: int, fault: Fault, at: int, **options: Any) -> Outcome:
    """Run the operation with the fault, then again without it; then drain the queue by the same handle."""
    descriptors = len(os.listdir("/proc/self/fd"))
    trial = _Trial(path, operation, size, fault, at, options)
    try:
        outcome = trial.run()
    except AssertionError as error:
        where = f"{fault} at file operation {at} ({trial.injector.fired})"
        raise AssertionError(f"{operation} with a batch of {size}, {where}: {error}") from error
    finally:
        trial.close()
    if fault.code is None:
        # An interrupt may end a close() in the middle: then what is left open goes with the objects.
        outcome.raised = None
        del trial
        gc.collect()
    leaked = len(os.listdir("/proc/self/fd")) - descriptors
    assert leaked <= 0, f"{operation}, {fault} at file operation {at} ({outcome.call}): {leaked} descriptors leaked"
    return outcome


class _Trial:
    def __init__(
        self, path: Path, operation: Operation, size: int, fault: Fault, at: int, options: dict[str, Any]
    ) -> None:
        self.operation = operation
        self.injector = Injector(fault, at)
        self.stage = Stage(path, new_batch(size), {**options, **operation.options})
        self.clock = StoppedClock()
        self.bystanders: Bystanders | None = None

    def run(self) -> Outcome:
        self._prepare()
        try:
            raised = self._attempt()
            if self.injector.fired is None:
                return Outcome(None)
            if raised is not None:
                self._judge_error(raised)
            if self.bystanders is not None:
                self._judge_state(finished=False)
            if raised is not None:
                self._repeat()
            stranded = self._drain() if self.bystanders is not None else set()
        finally:
            self.injector.armed = False
        fault = self.injector.fault
        # Where an error outlasts an operator's handle, its lease ends with its process, or by itself.
        excused = fault.lies or (fault.lasting and self.operation.by_operator)
        assert not stranded or excused, f"{stranded} came back only after the lease had expired"
        return Outcome(self.injector.fired, raised, stranded)

    def _prepare(self) -> None:
        stage = self.stage
        if not self.operation.bare:
            with fileops.using(self.clock):
                self.bystanders = Bystanders.settle_in(stage.path, self.operation)
        with fileops.using(fileops.wrapped(self._table(), self.injector)):
            self.operation.prepare(stage)
        if self.bystanders is not None:
            self.bystanders.queue.put([self.bystanders.waiting])

    def _table(self) -> StoppedClock:
        """A local filesystem, or one of several hosts where the fault is a lie that only those tell."""
        return StoppedClock("nfs4" if self.injector.fault.lies else "ext4")

    def _attempt(self) -> BaseException | None:
        self.injector.armed = True
        try:
            with fileops.using(fileops.wrapped(self._table(), self.injector)):
                self.stage.returned = self.operation.run(self.stage)
        except (Exception, KeyboardInterrupt) as error:
            return error
        finally:
            self.injector.armed = False
        return None

    def _judge_error(self, error: BaseException) -> None:
        fault = self.injector.fault
        if fault.code is None and isinstance(error, KeyboardInterrupt):
            return
        assert isinstance(error, FsQueueError), f"raised {error!r}"
        text = str(error)
        assert str(self.stage.path) in text, f"the error does not say where: {text}"
        if isinstance(error, OSError) and not fault.lies:
            assert error.errno == fault.code, f"errno {error.errno}: {text}"
            assert errno.errorcode[fault.code or 0] in text, f"the error does not say why: {text}"

    def _judge_state(self, finished: bool) -> None:
        assert self.bystanders is not None
        found = census(self.stage.path)
        self.bystanders.assert_untouched(found, self.stage.path)
        assert_landed(found, self.stage.batch, self.operation, finished)
        started = self.clock.seconds
        try:
            self.bystanders.queue.put([make_ref("after")])
        except StaleLockWarning as error:
            raise AssertionError("the lock was left held") from error
        assert self.clock.seconds == started, "the lock was left held for a while"

    def _repeat(self) -> None:
        """The same call, on the same handle, works now."""
        if self.operation.name.startswith("close"):
            return
        try:
            with fileops.using(StoppedClock()):
                self.stage.returned = self.operation.run(self.stage)
        except FsQueueError as error:
            raise AssertionError(f"the repeated call raised {error!r}") from error

    def _drain(self) -> set[str]:
        """Everything is delivered once: by this handle, or after their expiry the leases that it has."""
        stage, bystanders = self.stage, self.bystanders
        assert bystanders is not None
        refs: list[SampleRef] = []
        returned = stage.returned if isinstance(stage.returned, list) else []
        if returned and isinstance(returned[0], SampleRef):
            refs, returned = returned, []
            assert len(refs) <= len(stage.batch), f"asked for {len(stage.batch)}, got {len(refs)}"
        self._judge_end(returned)
        if self.operation.name.startswith("close"):
            self._late()
            return set()
        refs = refs + drain(stage.queue, StoppedClock(), 0).refs
        got = ids(refs)
        assert len(set(got)) == len(got), f"delivered twice: {got}"
        originals = {ref.sample_id: ref for ref in [*stage.batch, bystanders.waiting, make_ref("after")]}
        assert all(ref == originals[ref.sample_id] for ref in refs), "a ref came back changed"
        kept = {ref.sample_id for ref in stage.batch if self.operation.keeps}
        return self._late() - set(got) - kept

    def _judge_end(self, lost: list[str]) -> None:
        fault = self.injector.fault
        if fault.lies:
            return
        # A reclaim that an error cut short gives the ref back as it is, without counting the expiry; an operator's
        # handle that an error outlasts leaves it leased.
        cut_short = self.operation.name == "reclaim-last-delivery" or (fault.lasting and self.operation.by_operator)
        # What an interrupt cuts off between the ledger and the queue is put by reconciling.
        cut_short = cut_short or (fault.code is None and self.operation.name == "controller-commit")
        assert_landed(census(self.stage.path), self.stage.batch, self.operation, finished=not cut_short)
        # Where an error was reported of a rename that was done, the repeated call finds the lease gone.
        assert not lost or fault.how == DO_FIRST, f"reported as lost: {lost}"

    def _late(self) -> set[str]:
        """The ids that a second consumer gets once every lease but the bystander's has expired."""
        stage = self.stage
        stage.close()
        for place in (*(stage.path / "leased").iterdir(), *(stage.path / "owners").iterdir()):
            if "bystander." not in place.name:
                os.utime(place, (LONG_AGO_S, LONG_AGO_S))
        live = {found for found, states in census(stage.path).items() if LIVE in states} - {"held", CORRUPT}
        with second_consumer(stage.path) as (consumer, clock):
            late = ids(drain(consumer, clock, len(live) if FAILED not in self.operation.lands else 0).refs)
        states = census(stage.path)
        buried = {found for found in live if LIVE not in states.get(found, [])}
        assert sorted(late) == sorted(live - buried), f"lost {live - set(late)}, twice or unexpected in {late}"
        return set(late)

    def close(self) -> None:
        self.stage.close()
        if self.bystanders is not None:
            self.bystanders.queue.close()
