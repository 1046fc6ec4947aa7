"""Use a queue from asyncio: the contract of `FileSampleRefQueue`, with its calls in threads.

    async with AsyncSampleRefQueue(FileSampleRefQueue("/shared/queue")) as queue:
        async for lease in queue.consume(batch=16):
            async with lease as ref:
                await work(ref)

A call that is cancelled before its thread has begun does nothing; one that is under way is completed first, so that
whoever calls again, as after a time-out, meets no call of his own. But a `get` ends soon, and what it has leased goes
back to pending/ without a counted attempt. So nothing is lost, doubled, or left leased to nobody.
"""

from __future__ import annotations

from fsqueue.aio.loop import AsyncLease
from fsqueue.aio.queue import AsyncSampleRefQueue

__all__ = ["AsyncLease", "AsyncSampleRefQueue"]
