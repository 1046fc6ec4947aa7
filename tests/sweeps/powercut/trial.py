"""The trial of one state of the disk: its queue is opened, checked, mended and drained."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsqueue import FileSampleRefQueue, NotAQueueError, SampleRef
from fsqueue.disk.fileops import FileOps, using
from fsqueue.errors import CorruptRefError
from fsqueue.format import names
from fsqueue.format.codec import Codec
from fsqueue.operate.check import check_queue, repair
from tests.sweeps.powercut.journal import Moment, Record
from tests.sweeps.powercut.states import Image, images

LONG_AGO_NS = 1_600_000_000_000_000_000
A_WHILE_S = 3600.0
QUEUE = "queue"
_decode = Codec(SampleRef).decode


@dataclass
class Trial:
    """The findings in one state.

    Attributes:
        delivered: how often each id came out.
        done: how often each id is in done/, as a whole file or as a line of a segment.
        failed: the ids whose ref is in failed/, whole.
        ended: the stream says, of the queue that is empty then, that nothing will ever come again.
        reported: the problems that check named before mending.
        left: what check still finds after mending.
        refused: why the queue could not be opened any more.
    """

    delivered: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    ended: bool = False
    reported: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    refused: str | None = None


def materialise(image: Image, base: Path) -> None:
    """Make a directory tree that is this image; files look as if a long time had passed."""
    base.mkdir()
    made: dict[int, Path] = {}
    for path, content, node in sorted(image.files):
        place = base / path
        if content is None:
            place.mkdir()
        elif node in made:
            os.link(made[node], place)
        else:
            place.write_bytes(content)
            os.utime(place, ns=(LONG_AGO_NS, LONG_AGO_NS))
            made[node] = place


def attempt(image: Image, base: Path) -> Trial:
    """Materialise a state, and do what a person would: check, check --repair, then go on working."""
    materialise(image, base)
    trial, ops = Trial(), _hasty()
    with using(ops):
        try:
            if (base / QUEUE / "fsqueue.json").exists():
                _mend(base / QUEUE, trial)
            _drain(base / QUEUE, trial, ops)
        except NotAQueueError as error:
            trial.refused = str(error)
        finally:
            shutil.rmtree(base)
    return trial


def _mend(path: Path, trial: Trial) -> None:
    trial.reported = [f"{found.kind} {found.path}" for found in check_queue(path)]
    repair(path)
    trial.left = [f"{found.kind} {found.path}" for found in check_queue(path, notes=True) if found.mendable]


def _drain(path: Path, trial: Trial, ops: FileOps) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        trial.done, trial.failed = _settled(path / "done"), _settled(path / "failed")
        while refs := queue.get(64) or _after_a_while(queue, path, ops):
            trial.delivered.update(ref.sample_id for ref in refs)
            queue.ack(refs)
        trial.ended = (path / "stream").exists() and queue.drained()


def _settled(folder: Path) -> Counter[str]:
    """Count how often each id is there, in a file or a line that decodes."""
    found: Counter[str] = Counter()
    for name in os.listdir(folder):
        data = (folder / name).read_bytes()
        if name.endswith(".jsonl"):
            found.update(json.loads(line)["ref"]["sample_id"] for line in data.splitlines())
        elif parsed := names.parse_done(name):
            with suppress(CorruptRefError):
                found[parsed[0]] += names.stem_of(_decode(data).sample_id) == parsed[0]
    return found


def _after_a_while(queue: FileSampleRefQueue[SampleRef], path: Path, ops: FileOps) -> list[SampleRef]:
    """Return what comes when every lease has run out."""
    for name in os.listdir(path / "leased"):
        os.utime(path / "leased" / name, ns=(LONG_AGO_NS, LONG_AGO_NS))
    ops.sleep(A_WHILE_S)
    queue.reclaim()
    return queue.get(64)


def _hasty() -> FileOps:
    """Real operations, but nothing is synced, a pause takes no time, and there is no room for a reserve to fill."""
    ops: Any = FileOps()
    slept = [0.0]
    monotonic = ops.monotonic
    ops.sleep = lambda seconds: slept.append(slept.pop() + seconds)
    ops.monotonic = lambda: monotonic() + slept[0]
    ops.fsync = lambda fd: None
    ops.filesystem_type = lambda path: "ext4"
    ops.room = lambda fd: (0, 1 << 20)
    ops.each = lambda work, items, threads: [work(item) for item in items]
    hasty: FileOps = ops
    return hasty


@dataclass
class Promises:
    """The promises of the calls that had returned before the power cut.

    Attributes:
        kept: ids that must be there.
        settled: ids that were acknowledged, or failed for good, and must not come out again.
        lives: how often each id was put at most.
        producing: producers that have joined, and not begun to leave.
    """

    kept: set[str] = field(default_factory=set)
    settled: set[str] = field(default_factory=set)
    lives: Counter[str] = field(default_factory=Counter)
    producing: set[str] = field(default_factory=set)

    def add(self, moment: Moment) -> None:
        if moment.what == "put begins":
            self.lives.update(moment.ids)
            self.settled.difference_update(moment.ids)
        elif moment.what == "return begins":
            self.settled.difference_update(moment.ids)
        elif moment.what == "producer joined":
            self.producing.update(moment.ids)
        elif moment.what == "producer leaves":
            self.producing.difference_update(moment.ids)
        elif moment.what == "put returned":
            self.kept.update(moment.ids)
        elif moment.what == "removal begins":
            self.kept.difference_update(moment.ids)
        else:
            self.settled.update(moment.ids)


@dataclass
class Survey:
    """All states after all possible power cuts in one script, and what was wrong with them.

    Attributes:
        came_back: states in which an acknowledged ref is delivered again.
        twice: states in which a ref is done or delivered more often than it was put.
    """

    cuts: int = 0
    states: int = 0
    distinct: int = 0
    problems: list[str] = field(default_factory=list)
    came_back: int = 0
    twice: int = 0


def survey(
    records: Sequence[Record], first: int, rules: str, durable: bool, base: Path, limit: int | None = None
) -> Survey:
    """Try every state that a power cut after each of the records may leave.

    Args:
        first: the power is not cut before so many of them.
        limit: see `images`.
        durable: whether what has returned must be there.
    """
    result = Survey()
    trials: dict[Image, Trial] = {}
    promises = Promises()
    for cut in range(len(records) + 1):
        last = records[cut - 1] if cut else None
        if isinstance(last, Moment):
            promises.add(last)
        if cut < first:
            continue
        result.cuts += 1
        for image in set(images(records[:cut], rules, limit)):
            result.states += 1
            if image not in trials:
                trials[image] = attempt(image, base / f"state{len(trials)}")
            found = _problems(trials[image], promises if durable else Promises())
            result.problems += [f"cut after {cut} records: {problem}" for problem in found]
            if durable:
                result.came_back += bool(promises.settled & set(trials[image].delivered))
                result.twice += bool(trials[image].done + trials[image].delivered - promises.lives)
    result.distinct = len(trials)
    return result


def _problems(trial: Trial, promises: Promises) -> list[str]:
    found = [f"not mended: {line}" for line in trial.left]
    if trial.refused is not None:
        return [*found, f"refused: {trial.refused}"]
    there = set(trial.delivered + trial.done + trial.failed)
    found += [f"lost: {sample_id}" for sample_id in sorted(promises.kept - there)]
    found += [f"delivered {count} times: {i}" for i, count in trial.delivered.items() if count > 1]
    found += [f"done {count} times: {i}" for i, count in trial.done.items() if count > 1]
    if trial.ended and promises.producing:
        found.append(f"the stream has ended, without the producers {sorted(promises.producing)}")
    return found
