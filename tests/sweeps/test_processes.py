"""Real processes on one queue, killed and started again at random: nothing lost, nothing leased to two."""

from __future__ import annotations

import itertools
import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue, SampleRef, dp_partition
from tests.support import Child, Queue, assert_clean, drain, ids, names_in, ref, running, wait_until

BATCH = 5


class Occupied(AssertionError):
    """Two living processes hold the same ref."""


@contextmanager
def occupying(held_dir: Path, sample_ids: list[str]) -> Iterator[None]:
    """Mark refs as held by this process, by files that only one process can make."""
    markers = [held_dir / sample_id for sample_id in sample_ids]
    for marker in markers:
        occupy(marker)
    yield
    for marker in markers:
        marker.unlink()


def occupy(marker: Path) -> None:
    """Make the marker; one that a process left when it was killed is replaced."""
    mine = f"{marker}.{os.getpid()}"
    Path(mine).write_text(str(os.getpid()))
    try:
        os.link(mine, marker)
    except FileExistsError:
        holder = int(marker.read_text())
        if running(holder):
            raise Occupied(f"{marker.name} is held by {holder} and by {os.getpid()}") from None
        os.replace(mine, marker)
    else:
        os.unlink(mine)


class Log:
    """The log of one process: a line for each thing it did, whole even when it is killed."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, word: str, sample_ids: list[str]) -> None:
        if sample_ids:
            os.write(self._fd, "".join(f"{word} {sample_id}\n" for sample_id in sample_ids).encode())


def work(pipe: Connection, scratch: Path, name: str, puts: int, index: int, width: int, seed: int) -> None:
    """Put, lease, occupy, and then ack, fail or release, until told to stop by the file that says so."""
    chance = random.Random(seed)
    log = Log(scratch / "logs" / name)
    partition = (index % width, width) if width > 1 else None
    try:
        with FileSampleRefQueue(scratch / "q", durable=False) as queue:
            while not (scratch / "stop").exists():
                if puts > 0:
                    puts -= 1
                    fresh = [ref(f"{name}-{puts}-{k}") for k in range(BATCH)]
                    queue.put(fresh)
                    log.write("put", ids(fresh))
                batch = queue.get(chance.randrange(1, 2 * BATCH), 0.02, partition=partition)
                with occupying(scratch / "held", ids(batch)):
                    assert queue.renew(batch) == []
                settle(queue, log, batch, chance)
    except BaseException as error:
        (scratch / "errors" / name).write_text(repr(error))
        raise


def settle(queue: Queue, log: Log, batch: list[SampleRef], chance: random.Random) -> None:
    """Ack most; give some back either way. What was acked and not lost is logged."""
    luck = chance.random()
    given_back = batch[:1] if luck < 0.2 else []
    rest = batch[len(given_back) :]
    assert (queue.fail(given_back, "again", retryable=True) if luck < 0.1 else queue.release(given_back)) == []
    assert queue.ack(rest) == []
    log.write("acked", ids(rest))


def torture(scratch: Path, *, processes: int, puts: int, kills: int, lock: str, width: int = 1) -> None:
    """Run the workers, kill some at random and start others in their place; then count."""
    for folder in ("logs", "held", "errors"):
        (scratch / folder).mkdir()
    queue = FileSampleRefQueue(scratch / "q", lock=lock)
    chance = random.Random(20240607)
    serial = itertools.count()
    with ExitStack() as stack:

        def start(index: int, puts: int) -> tuple[str, Child]:
            number = next(serial)
            name = f"w{number:03d}"
            return name, stack.enter_context(Child(work, scratch, name, puts, index, width, number))

        workers = [start(index, puts) for index in range(processes)]
        for _ in range(kills):
            before = queue.counts().done
            wait_until(partial(moved_on, queue, before, workers), "progress", 0.02)
            assert not stopped(workers), errors(scratch)
            victim = chance.randrange(processes)
            _, child = workers[victim]
            child.kill()
            workers[victim] = start(victim, puts // 2)
        living = [name for name, _ in workers]
        wait_until(lambda: finished(queue, scratch, living) or stopped(workers), "the end of the work", 0.1)
        (scratch / "stop").touch()
        assert [child.join() for _, child in workers] == [0] * processes, errors(scratch)
    count(scratch, queue)
    queue.close()
    assert_clean(scratch / "q")


def moved_on(queue: Queue, done: int, workers: list[tuple[str, Child]]) -> bool:
    return queue.counts().done > done or stopped(workers)


def stopped(workers: list[tuple[str, Child]]) -> bool:
    return any(child.process.exitcode is not None for _, child in workers)


def errors(scratch: Path) -> str:
    return "; ".join(f"{file.name}: {file.read_text()}" for file in (scratch / "errors").iterdir())


def finished(queue: Queue, scratch: Path, living: list[str]) -> bool:
    """All living workers have put all that they put, and nothing is pending or leased."""
    logs = [scratch / "logs" / name for name in living]
    if not all(log.exists() and f" {log.name}-0-0\n" in log.read_text() for log in logs):
        return False
    counts = queue.counts()
    return counts.pending == counts.leased == 0


def logged(scratch: Path, word: str) -> Counter[str]:
    """Count how often the processes logged this word for each id."""
    found: Counter[str] = Counter()
    for file in (scratch / "logs").iterdir():
        found.update(line.split(" ")[1] for line in file.read_text().splitlines() if line.startswith(f"{word} "))
    return found


def count(scratch: Path, queue: Queue) -> None:
    """Every ref whose put returned is done once; every ack that succeeded, succeeded in one process only."""
    rest = drain(queue)
    done = {name.removesuffix(".json") for name in names_in(scratch / "q", "done")}
    put, acked = logged(scratch, "put"), logged(scratch, "acked")
    assert set(put) - done == set(), "lost"
    assert {i: n for i, n in acked.items() if n > 1} == {}, "acked by two"
    assert set(acked) <= done and not set(acked) & set(rest)
    assert tuple(queue.counts())[:2] == (0, 0)
    assert tuple(queue.counts())[3] == 0
    assert len(names_in(scratch / "q", "done")) == len(done)


def test_eight_processes(tmp_path: Path) -> None:
    """Eight processes put, get, ack, fail and release at once: each ref is held by one at a time and done once."""
    torture(tmp_path, processes=8, puts=12, kills=0, lock="flock")


def test_eight_processes_killed_at_random(tmp_path: Path) -> None:
    """With processes SIGKILLed and replaced at random, no ref is lost, and none is held by two living ones."""
    torture(tmp_path, processes=8, puts=10, kills=12, lock="flock")


def test_without_a_lock(tmp_path: Path) -> None:
    """The same with the lock switched off: order may suffer, but nothing is lost and nothing is leased to two."""
    torture(tmp_path, processes=8, puts=10, kills=10, lock="none")


def test_with_a_lease_lock(tmp_path: Path) -> None:
    """The same with filelock's lease as the lock, on a smaller scale."""
    torture(tmp_path, processes=4, puts=6, kills=3, lock="lease")


def test_partitions_killed_at_random(tmp_path: Path) -> None:
    """The same with each process asking for its partition only."""
    torture(tmp_path, processes=4, puts=10, kills=5, lock="flock", width=4)


def count_up(pipe: Connection, path: Path, counter: Path, rounds: int) -> None:
    """Lease the one ref, add one to a counter without any lock, give the ref back; the lease is the lock."""
    with FileSampleRefQueue(path, durable=False) as queue:
        for _ in range(rounds):
            while not (batch := queue.get(1, 5.0)):
                pass
            counter.write_text(str(int(counter.read_text()) + 1))
            assert queue.release(batch) == []
    pipe.send("done")


@pytest.mark.parametrize("lock", ["flock", "none"])
def test_no_update_is_lost_under_a_lease(tmp_path: Path, lock: str) -> None:
    """A counter that only the holder of one ref's lease increments ends at the exact number of increments."""
    path, counter = tmp_path / "q", tmp_path / "counter"
    counter.write_text("0")
    with FileSampleRefQueue(path, lock=lock) as queue:
        queue.put([ref("token")])
    with ExitStack() as stack:
        children = [stack.enter_context(Child(count_up, path, counter, 60)) for _ in range(4)]
        assert [child.receive() for child in children] == ["done"] * 4
        assert [child.join() for child in children] == [0] * 4
    assert counter.read_text() == "240"
    assert_clean(path)


def put_all(pipe: Connection, path: Path, sample_ids: list[str]) -> None:
    with FileSampleRefQueue(path) as queue:
        pipe.recv()
        for sample_id in sample_ids:
            queue.put([ref(sample_id)])
        pipe.send("done")


def test_same_ids_put_by_all(tmp_path: Path) -> None:
    """Six processes that put the same ids at the same time queue each of them once."""
    path = tmp_path / "q"
    wanted = [f"s{k}" for k in range(40)]
    with ExitStack() as stack:
        children = [stack.enter_context(Child(put_all, path, wanted)) for _ in range(6)]
        for child in children:
            child.send("go")
        for child in children:
            assert child.receive() == "done" and child.join() == 0
    with FileSampleRefQueue(path) as queue:
        assert drain(queue) == wanted, "each of them in the order in which all of them put"
    assert_clean(path)


def take_some(pipe: Connection, path: Path, rank: int, width: int) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        found: list[str] = []
        while batch := queue.get(8, partition=(rank, width)):
            queue.ack(batch, step=rank)
            found += ids(batch)
        pipe.send(found)


def test_ranks_share_a_backlog(tmp_path: Path) -> None:
    """Data-parallel ranks in processes of their own take exactly their partitions, each in FIFO order."""
    path = tmp_path / "q"
    todo = [ref(f"s{k:04d}") for k in range(600)]
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(todo)
    with ExitStack() as stack:
        children = [stack.enter_context(Child(take_some, path, rank, 3)) for rank in range(3)]
        found = [child.receive() for child in children]
        assert [child.join() for child in children] == [0] * 3
    assert found == [[i for i in ids(todo) if dp_partition(i, 3) == rank] for rank in range(3)]
    assert_clean(path)
