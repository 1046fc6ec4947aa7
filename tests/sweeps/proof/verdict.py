"""The verdict after a crash or a fault: nothing lost, nothing doubled, everything delivered in time."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsqueue import CorruptRefError, FileSampleRefQueue, SampleRef
from fsqueue.disk import fileops
from fsqueue.disk.fileops import FileOps
from fsqueue.engine.pausing import PAUSED
from fsqueue.format import names, packed
from fsqueue.format.codec import Codec
from tests.support import ids
from tests.support.implementations import make_ref
from tests.sweeps.proof.operations import DONE, FAILED, GONE, LIVE, Operation
from tests.sweeps.proof.stages import CORRUPT, LEASE_S

_codec = Codec(SampleRef)
LONGEST_WAIT_S = 130.0
AT_ONCE_S = 0.1
_PARSERS: dict[str, tuple[str, Callable[[str], object]]] = {
    "pending": (LIVE, names.parse_ref),
    "leased": (LIVE, names.parse_leased),
    "failed": (FAILED, names.parse_ref),
}


def _look(fd: Any) -> None:
    os.fstat(fd)


class StoppedClock(FileOps):
    """Real file operations in a time that passes only in sleeps and when a test says so.

    An fsync is replaced by a look at its descriptor: the death of a process loses nothing that was written.
    """

    def __init__(self, filesystem_type: str = "ext4", seed: int = 0) -> None:
        self.seconds = 0.0
        self.filesystem_type = lambda path: filesystem_type
        started = fileops.FileOps.time()
        self.monotonic = lambda: 1e6 + self.seconds
        self.time = lambda: started + self.seconds
        self.sleep = lambda seconds: self.advance(float(seconds))
        self.random = random.Random(seed).random
        self.fsync = _look

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class Bystanders:
    """Refs in every state that an operation has no business with, and the live handle that leases one.

    Attributes:
        waiting: put by the operation's own handle before the operation.
    """

    queue: FileSampleRefQueue[SampleRef]
    held: list[SampleRef]
    waiting: SampleRef = field(default_factory=lambda: make_ref("waiting"))

    @staticmethod
    def settle_in(path: Path, operation: Operation) -> Bystanders:
        lock = operation.options.get("lock", "flock")
        queue = FileSampleRefQueue(path, lease_timeout_s=LEASE_S, owner="bystander", durable=False, lock=lock)
        queue.put([make_ref("old"), make_ref("dead"), make_ref("held")])
        old, dead, held = queue.get(3)
        queue.ack([old])
        queue.fail([dead], "a dead letter", retryable=False)
        return Bystanders(queue, [held])

    def assert_untouched(self, found: dict[str, list[str]], path: Path) -> None:
        assert found.get("old") == [DONE], f"an acked ref came back: {found.get('old')}"
        assert found.get("dead") == [FAILED], f"a dead letter moved: {found.get('dead')}"
        assert found.get("waiting") == [LIVE], f"a ref whose put had returned is {found.get('waiting')}"
        mine = [name for name in os.listdir(path / "leased") if name.startswith(f"held@{self.queue.owner}")]
        assert len(mine) == 1, "a live handle's lease was taken"


def census(path: Path) -> dict[str, list[str]]:
    """Id to the states that it has files in, one for each file; a file that is no ref counts as `CORRUPT`."""
    found: dict[str, list[str]] = {}
    done = packed.read_names(os.listdir(path / "done"))
    for name in os.listdir(path / "done"):
        assert names.parse_done(name) or packed.revision_of(name), f"done/{name} is no name of the format"
    for segment in done.segments:
        lines, damaged = packed.whole_lines((path / "done" / segment.name).read_bytes())
        assert not damaged and len(lines) == segment.refs, f"{segment.name} is damaged"
        for line in lines:
            found.setdefault(_codec.decode(line.data).sample_id, []).append(DONE)
    for file in done.files.values():
        found.setdefault(_id_inside(path / "done" / file), []).append(DONE)
    for directory, (state, parse) in _PARSERS.items():
        for name in sorted(os.listdir(path / directory)):
            assert parse(name) is not None, f"{directory}/{name} is no name of the format"
            found.setdefault(_id_inside(path / directory / name), []).append(state)
    return found


def _id_inside(file: Path) -> str:
    try:
        return _codec.decode(file.read_bytes()).sample_id
    except CorruptRefError:
        return CORRUPT


def assert_landed(found: dict[str, list[str]], batch: list[SampleRef], operation: Operation, finished: bool) -> None:
    """Every ref of the batch is in one place, and in one where the operation may have left it."""
    allowed = {operation.ends} if finished else operation.lands
    for index, ref in enumerate(batch):
        states = list(found.get(ref.sample_id, []))
        if index == 0 and operation.earlier is not None:
            states.remove(operation.earlier)
        assert len(states) <= 1, f"{ref.sample_id} is there {len(states)} times: {states}"
        landed = states[0] if states else GONE
        assert landed in allowed, f"{ref.sample_id} is {landed}, may be {sorted(allowed)}"


@dataclass
class Drained:
    """A second consumer's refs, and the seconds by its own clock until the last of them."""

    refs: list[SampleRef]
    took_s: float


def drain(queue: FileSampleRefQueue[SampleRef], clock: StoppedClock, expected: int) -> Drained:
    """Get everything there is; where something is late, let time pass up to the documented bound.

    What was paused is resumed first, as a person would.
    """
    if os.path.lexists(os.path.join(queue.path, PAUSED)):
        queue.resume()
    refs: list[SampleRef] = []
    started = clock.seconds
    while True:
        while found := queue.get(3):
            refs += found
        if len(refs) >= expected or clock.seconds - started > LONGEST_WAIT_S:
            return Drained(refs, clock.seconds - started)
        clock.advance(1.0)


@contextmanager
def second_consumer(path: Path) -> Iterator[tuple[FileSampleRefQueue[SampleRef], StoppedClock]]:
    clock = StoppedClock()
    with fileops.using(clock), FileSampleRefQueue(path) as queue:
        yield queue, clock


def assert_drains(path: Path, known: list[SampleRef], at_once: bool, may_fail: bool = False) -> float:
    """A second consumer gets every live ref once, as it was put; returns the seconds that it took.

    The refs named ``held`` and `CORRUPT` are not expected. With may_fail, a ref whose failing was cut short may
    become a dead letter instead.
    """
    originals = {ref.sample_id: ref for ref in known}
    live = {found for found, states in census(path).items() if LIVE in states} - {"held", CORRUPT}
    with second_consumer(path) as (consumer, clock):
        drained = drain(consumer, clock, 0 if may_fail else len(live))
        got = Counter(ids(drained.refs))
        dead = {found for found, states in census(path).items() if FAILED in states} if may_fail else set()
        assert live - dead <= got.keys() <= live, f"lost {live - dead - set(got)}, unexpected {set(got) - live}"
        assert max(got.values(), default=1) == 1, f"delivered twice: {got}"
        for ref in drained.refs:
            assert ref == originals[ref.sample_id], f"{ref.sample_id} came back changed"
        assert not at_once or drained.took_s < AT_ONCE_S, f"delivered only after {drained.took_s} s"
        assert consumer.ack(drained.refs) == []
        assert consumer.get(1) == []
        return drained.took_s
