"""A client of a run: opens the queue, makes the calls of its plan, and starts anew where it died."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from fsqueue import FileSampleRefQueue, QueueIOError, SampleRef
from fsqueue.disk.fileops import using
from fsqueue.errors import FsQueueError
from fsqueue.format import names
from fsqueue.operate.requeue import requeue
from history.recording import Log, Recorded
from simulation.cache import Cache
from simulation.node import Process
from simulation.plan import LEASE_S, Client, Plan
from simulation.world import Died, Machine, World

QUEUE = "/queue"
_REBOOT_S = (8.0, 16.0)


def make_ref(sample_id: str) -> SampleRef:
    """A ref whose content follows from its id."""
    return SampleRef(sample_id, "run", None, "file:///features", {"hidden": f"{sample_id}/hidden"}, {}, "eagle3")


class Script:
    """Runs one client's steps.

    Attributes:
        errors: that the queue has raised.
        cache: of the node that it runs on.
    """

    def __init__(self, world: World, plan: Plan, client: Client, log: Log, file_of: Callable[[str, str], int]) -> None:
        self.errors: list[FsQueueError] = []
        self.name = client.name
        self._world = world
        self._plan = plan
        self._client = client
        self._log = log
        self._file_of = file_of
        self._rng = random.Random(f"{plan.seed}/{client.name}")
        self._faults = sorted(client.faults, key=lambda fault: fault.call)
        self.cache = self._new_cache()
        self._machine = self._boot()
        self._queue: Recorded | None = None
        self._held: dict[str, SampleRef] = {}

    def _new_cache(self) -> Cache:
        return Cache(self._world.server, self._world.rules, lambda: self._world.now, self._rng)

    def _boot(self) -> Machine:
        """A new process; it takes over the faults that its predecessor did not live to see."""
        process = Process(self._world, self.cache, self._rng)
        return Machine(self._world, process, self._client.name, self._client.skew_s, self._faults, self._rng)

    def run(self) -> None:
        steps = iter(self._client.steps)
        while True:
            try:
                for step in steps:
                    self._take(step)
                return
            except Died:
                self._restart()

    def _restart(self) -> None:
        """Kernel and caches outlive a process; a node that lost power comes back with nothing."""
        fault = self._machine.died_of
        assert fault is not None
        self._faults = [later for later in self._faults if later.call > fault.call]
        self._queue = None
        if fault.kind == "node":
            self.cache = self._new_cache()
            self._world.wait(self._rng.uniform(*_REBOOT_S))
        self._machine = self._boot()

    def _take(self, step: tuple[Any, ...]) -> None:
        name, *arguments = step
        self._world.say(f"{self._client.name}  -- {name} {arguments or ''}")
        try:
            if self._queue is None:
                self._queue = self._open()
            getattr(self, f"_{name}")(self._queue, *arguments)
        except FsQueueError as error:
            self._world.say(f"{self._client.name}  !! {error}")
            self.errors.append(error)

    def _open(self) -> Recorded:
        with using(self._machine.ops):
            queue = FileSampleRefQueue(
                QUEUE,
                lease_timeout_s=LEASE_S,
                owner=self._client.name,
                durable=self._plan.durable,
                keep_done=self._plan.keep_done,
                max_attempts=self._plan.max_attempts,
                max_deliveries=self._plan.max_attempts,
                heartbeat_s=self._plan.heartbeat_s,
                lock=self._plan.lock,
            )
        return Recorded(queue, self._log, file_of=self._file_of)

    def _put(self, queue: Recorded, ids: list[str]) -> None:
        """A put that failed is repeated once, as its error advises."""
        refs = [make_ref(sample_id) for sample_id in ids]
        try:
            queue.put(refs)
        except QueueIOError as error:
            self.errors.append(error)
            queue.put(refs)

    def _get(self, queue: Recorded, count: int, timeout_s: float | None, partition: list[int] | None) -> None:
        for ref in queue.get(count, timeout_s, partition=tuple(partition) if partition else None):
            assert ref == make_ref(ref.sample_id), f"{ref.sample_id} came back changed"
            self._held[ref.sample_id] = ref

    def _some(self, count: int) -> list[SampleRef]:
        return list(self._held.values())[:count]

    def _forget(self, refs: list[SampleRef]) -> None:
        for ref in refs:
            self._held.pop(ref.sample_id, None)

    def _ack(self, queue: Recorded, count: int, step: int | None = None) -> None:
        refs = self._some(count)
        queue.ack(refs, step=step)
        self._forget(refs)

    def _fail(self, queue: Recorded, count: int, retryable: bool) -> None:
        refs = self._some(count)
        queue.fail(refs, "simulated", retryable)
        self._forget(refs)

    def _release(self, queue: Recorded, count: int) -> None:
        refs = self._some(count)
        queue.release(refs)
        self._forget(refs)

    def _renew(self, queue: Recorded, count: int) -> None:
        refs = self._some(count)
        lost = queue.renew(refs)
        self._forget([ref for ref in refs if ref.sample_id in lost])

    def _by_id(self, queue: Recorded, how: str, ids: list[str]) -> None:
        refs = [make_ref(sample_id) for sample_id in ids]
        if how == "ack":
            queue.ack(refs)
        elif how == "release":
            queue.release(refs)
        else:
            queue.fail(refs, "simulated", how == "fail")
        self._forget(refs)

    def _beat(self, queue: Recorded) -> None:
        if self._plan.heartbeat_s is None or not self._held:
            return
        key = self._log.begin("beat", queue.owner, self._held)
        try:
            queue.queue.handle.presence.beat()
        except OSError as error:  # the heartbeat's thread logs it, and beats again
            self._world.say(f"{self._client.name}  !! {error}")
            self._log.gave_up(key)
            return
        self._log.end(key)

    def _reclaim(self, queue: Recorded) -> None:
        queue.queue.reclaim()

    def _requeue(self, queue: Recorded, ids: list[str]) -> None:
        """What `fsqueue requeue` does, as a process of its own would; the observer sees what comes of it."""
        key = self._log.begin("requeueing", queue.owner, ids)
        try:
            with using(self._machine.ops):
                requeue(QUEUE, ids)
        finally:
            self._log.gave_up(key)

    def _rewind(self, queue: Recorded, step: int) -> None:
        key = self._log.begin("rewind", queue.owner)
        self._log.end(key, ids=queue.queue.rewind(after_step=step, force=True))

    def _pack(self, queue: Recorded) -> None:
        """Of whatever age; the observer sees that what is packed stays where it is."""
        queue.queue.pack(older_than_s=-1.0)

    def _move(self, queue: Recorded) -> None:
        """Somebody takes a lease away by hand: mv leased/x@owner.json pending/x.json."""
        with suppress(OSError):  # whoever types it looks and tries again, or not
            leased = sorted(name for name in self._entries("leased") if names.parse_leased(name))
            if not leased:
                return
            name = self._rng.choice(leased)
            stem = name.partition("@")[0]
            key = self._log.begin("move", "operator", [stem])
            try:
                self._mv(f"{QUEUE}/leased", name, f"{QUEUE}/pending", names.ref_file(stem))
            finally:
                self._log.gave_up(key)

    def _entries(self, folder: str) -> list[str]:
        ops = self._machine.ops
        fd = ops.open(f"{QUEUE}/{folder}", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return ops.listdir(fd)
        finally:
            ops.close(fd)

    def _mv(self, source: str, name: str, target: str, new_name: str) -> None:
        ops = self._machine.ops
        fds = [ops.open(folder, os.O_RDONLY | os.O_DIRECTORY) for folder in (source, target)]
        try:
            ops.rename(name, new_name, src_dir_fd=fds[0], dst_dir_fd=fds[1])
        finally:
            for fd in fds:
                ops.close(fd)

    def _work(self, queue: Recorded, seconds: float) -> None:
        self._machine.ops.sleep(seconds)

    def _reopen(self, queue: Recorded) -> None:
        self._queue = None
        queue.queue.close()
