"""The queue from asyncio: whatever is cancelled when, nothing is lost and nothing is leased to nobody."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, InvalidArgumentError, QueueClosedError, SampleRef
from fsqueue.aio import AsyncLease, AsyncSampleRefQueue
from tests.support import GUARD_S, assert_clean, content, ids, lease_name, names_in, numbered, refs
from tests.sweeps.proof import tally
from tests.test_consume import states


def using_queue(path: Path, work: Callable[[AsyncSampleRefQueue[SampleRef]], Awaitable[Any]], **options: Any) -> Any:
    """Run work on a queue in an event loop of its own, in which nothing may hang."""

    async def main() -> Any:
        async with AsyncSampleRefQueue(FileSampleRefQueue(path, durable=False, **options)) as queue:
            return await asyncio.wait_for(work(queue), GUARD_S)

    return asyncio.run(main())


def test_the_calls_do_as_the_queue_s_own(path: Path) -> None:
    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        await queue.put(numbered(5))
        await queue.put_when_below(refs("last"), high=100)
        first, second, third, fourth = await queue.get(4)
        assert (await queue.depth(), await queue.in_flight()) == (2, 4)
        assert await queue.renew([first]) == await queue.ack([first], step=7) == []
        assert await queue.fail([second], "bad", False) == await queue.release([third]) == []
        assert await queue.get(0) == [] and not await queue.drained()
        assert tuple(await queue.counts()) == (3, 1, 1, 1)
        assert ids(await queue.get(9, partition=(0, 1))) == ["s00004", "last", "s00002"]
        await queue.ack([fourth])

    using_queue(path, work)
    assert names_in(path, "done") == ["s00000@7.json", "s00003.json"] and len(names_in(path, "leased")) == 3


@pytest.mark.parametrize("arrives", [False, True])
def test_a_get_that_is_cancelled_leases_nothing(path: Path, arrives: bool) -> None:
    """While it waits, or in the instant in which it has something."""

    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        getting = asyncio.create_task(queue.get(4, GUARD_S))
        await asyncio.sleep(0.05)
        if arrives:
            queue.queue.put(refs("a", "b"))  # in the loop's own thread: the get returns behind the task's back
            while not names_in(path, "leased"):
                pass
        getting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await getting
        await queue.put(refs("c"))

    using_queue(path, work)
    assert names_in(path, "leased") == []
    assert len(names_in(path, "pending")) == (3 if arrives else 1)
    assert_clean(path)


def test_random_cancellations_lose_and_double_nothing(path: Path) -> None:
    """Producers and consumers whose calls are cancelled at random, all on one handle: each ref is done once."""
    chance, count = random.Random(14), 300
    done: Counter[str] = Counter()

    async def shaken(call: Awaitable[Any]) -> Any:
        """Cancel a call after a while, or not."""
        task = asyncio.ensure_future(call)
        if chance.random() < 0.5:
            await asyncio.sleep(chance.choice((0.0, 0.001, 0.003, 0.01)))
            task.cancel()
            tally.count("calls from asyncio that were cancelled: refs lost, doubled or leased to nobody 0")
        with suppress(asyncio.CancelledError):
            return await task
        return None

    async def produce(queue: AsyncSampleRefQueue[SampleRef], part: list[SampleRef]) -> None:
        for first in range(0, len(part), 5):
            batch = part[first : first + 5]
            if await shaken(queue.put(batch)) is None:  # made or not: what was trained meanwhile is not put again
                known = queue.queue.states(ids(batch))
                await queue.put([ref for ref in batch if not known.get(ref.sample_id)])

    async def consume(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        while len(done) < count:
            got = await shaken(queue.get(chance.randrange(1, 6), 0.05)) or []
            for ref in got:
                if chance.random() < 0.3:
                    await shaken(queue.release([ref]))
                    await queue.release([ref])
                else:
                    done[ref.sample_id] += 1
                    await shaken(queue.ack([ref]))
                    await queue.ack([ref])

    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        parts = [numbered(count // 3, prefix) for prefix in "abc"]
        await asyncio.gather(*(produce(queue, part) for part in parts), *(consume(queue) for _ in range(6)))

    using_queue(path, work)
    assert set(done.values()) == {1} and len(done) == count == len(names_in(path, "done"))
    assert names_in(path, "leased") == names_in(path, "pending") == []
    assert_clean(path)


def test_a_loop_settles_each_ref_as_its_block_ends(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        await queue.put(refs("good", "bad", "own", "given", "rest"))
        async for lease in queue.consume(3, idle_s=0.0, retryable=False):
            async with lease as ref:
                if ref.sample_id == "bad":
                    raise ZeroDivisionError("no such layer")
                if ref.sample_id == "own":
                    assert await lease.fail("too short") and lease.settled
                if ref.sample_id == "given":
                    assert await lease.release()
                    break
        async for lease in queue.consume(3):
            async with lease:
                assert await lease.ack(step=7)
            break

    with caplog.at_level(logging.WARNING, "fsqueue"):
        using_queue(path, work)
    assert states(path) == {"done": ["given", "good"], "failed": ["bad", "own"], "pending": ["rest"]}
    assert content(path / "failed" / "bad.json")["_fsqueue"]["reason"].startswith("ZeroDivisionError: no such layer\n")
    assert names_in(path, "done")[0] == "given@7.json" and "work on bad failed" in caplog.text


@pytest.mark.parametrize("how", ["cancelled", "broken off", "stopped", "raised"])
def test_a_loop_that_ends_early_gives_the_rest_back(path: Path, how: str) -> None:
    """Uncounted, but for the ref of the block that raised."""
    stop = asyncio.Event()

    async def loop(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        async for lease in queue.consume(3, stop_event=stop, on_error="raise"):
            async with lease:
                if how == "raised":
                    raise ZeroDivisionError
                if how == "cancelled":
                    await asyncio.sleep(GUARD_S)
                stop.set()
                if how == "broken off":
                    break

    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        await queue.put(refs("a", "b", "c"))
        task = asyncio.create_task(loop(queue))
        while how == "cancelled" and not names_in(path, "leased"):
            await asyncio.sleep(0.01)
        if how == "cancelled":
            task.cancel()
        with suppress(asyncio.CancelledError, ZeroDivisionError):
            await task

    using_queue(path, work)
    ended = {"cancelled": {}, "raised": {}}.get(how, {"done": ["a"]})
    assert states(path) == ended | {"pending": sorted({"a", "b", "c"} - set(ended.get("done", [])))}
    counted = [n for n in names_in(path, "pending") if "attempts" in content(path / "pending" / n).get("_fsqueue", {})]
    assert counted == (["a.json"] if how == "raised" else [])


def test_what_a_loop_has_not_begun_goes_back_as_the_queue_is_closed(path: Path) -> None:
    """Also where the loop was left and not ended yet, and what was handed out in vain; nobody begins on it later."""

    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> Any:
        await queue.put(refs("a", "b", "c", "d"))
        loop, leases = queue.consume(4), []
        async for lease in loop:
            leases.append(lease)
            if len(leases) == 2:
                break
        async with leases[0]:
            pass
        return loop, leases[1]

    _, late = using_queue(path, work)
    assert states(path) == {"done": ["a"], "pending": ["b", "c", "d"]}
    with pytest.raises(QueueClosedError):
        asyncio.run(late.__aenter__())


def test_leases_that_tasks_work_on_outlast_the_loop(path: Path) -> None:
    """They are renewed, and not given back, until their own blocks end."""

    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        await queue.put(refs("a", "b"))
        tasks, go_on = [], asyncio.Event()

        async def do(lease: AsyncLease[SampleRef]) -> None:
            async with lease:
                await go_on.wait()
                assert not lease.settled

        async for lease in queue.consume(1, idle_s=0.0):
            tasks.append(asyncio.create_task(do(lease)))
        for stem in ("a", "b"):
            file = path / "leased" / lease_name(path, stem)
            stamped = file.stat().st_mtime_ns
            while file.stat().st_mtime_ns == stamped:
                await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(*tasks)
        while any(thread.name == "fsqueue-renew" for thread in threading.enumerate()):
            await asyncio.sleep(0.01)

    using_queue(path, work, lease_timeout_s=2.0)
    assert states(path) == {"done": ["a", "b"]}


def test_a_lease_that_is_dropped_without_a_block_goes_back(path: Path) -> None:
    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        await queue.put(refs("a", "b"))
        async for lease in queue.consume(1):
            if lease.ref.sample_id == "b":
                async with lease:
                    break
        while names_in(path, "pending") != ["a.json"]:
            await asyncio.sleep(0.01)

    using_queue(path, work)
    assert states(path) == {"done": ["b"], "pending": ["a"]}


def test_a_ref_whose_acknowledgement_fails_goes_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "the disk")

    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        await queue.put(refs("a"))
        monkeypatch.setattr(queue.queue, "ack", refuse)
        loop = queue.consume()
        with pytest.raises(OSError, match="the disk"):
            async for lease in loop:
                async with lease:
                    pass
        assert await queue.depth() == 1

    using_queue(path, work)


def test_a_loop_ends_with_its_stream(path: Path) -> None:
    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> int:
        count = 0
        with FileSampleRefQueue(path, durable=False) as other, other.producer("p"):
            other.put(refs("a", "b"))
        async for lease in queue.consume():
            async with lease:
                count += 1
        return count

    assert using_queue(path, work) == 2


def test_more_waiting_gets_than_threads_hold_no_acknowledgement_up(path: Path) -> None:
    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        await queue.put(refs("a"))
        got = await queue.get(1)
        waiting = [asyncio.create_task(queue.get(1, GUARD_S)) for _ in range(100)]
        await asyncio.sleep(0)
        await asyncio.wait_for(queue.ack(got), GUARD_S / 2)
        for task in waiting:
            task.cancel()

    using_queue(path, work)
    assert names_in(path, "done") == ["a.json"]


def test_after_its_end_it_refuses(path: Path) -> None:
    async def main() -> None:
        queue = AsyncSampleRefQueue(FileSampleRefQueue(path, durable=False))
        getting = asyncio.create_task(queue.get(1, GUARD_S))
        await asyncio.sleep(0.05)
        await queue.aclose()
        assert await getting == []
        with pytest.raises(QueueClosedError):
            await queue.get(1)
        with pytest.raises(QueueClosedError):
            queue.queue.depth()
        await queue.aclose()

    asyncio.run(main())


def test_slips(path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="AsyncSampleRefQueue"):
        AsyncSampleRefQueue(str(path))  # type: ignore[arg-type]
    with FileSampleRefQueue(path) as queue, pytest.raises(InvalidArgumentError, match="waiting"):
        AsyncSampleRefQueue(queue, waiting=0)

    async def work(queue: AsyncSampleRefQueue[SampleRef]) -> None:
        with pytest.raises(InvalidArgumentError, match="on_error"):
            await anext(queue.consume(on_error="skip"))  # type: ignore[arg-type]

    using_queue(path, work)
