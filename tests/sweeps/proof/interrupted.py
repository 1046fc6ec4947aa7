"""The calls of a queue that the sweep interrupts, and what must hold after each of them."""

from __future__ import annotations

import gc
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from fsqueue import FileSampleRefQueue, QueueClosedError, SampleRef
from fsqueue.engine import heartbeat
from fsqueue.format import names
from tests.support import FakeClock, InThread, Queue, assert_clean, ids, names_in, numbered, ref
from tests.sweeps.proof.lines import Tripwire, hang_is_an_error, is_lockable

_TIMEOUT_S = 60.0
_STATES = ("pending", "leased", "done", "failed")


class Scene:
    """Hold one queue with the handle that is interrupted, another handle, and what the caller knows.

    Attributes:
        owned: refs that gets of the handle returned and nobody has settled for certain.
        sure: ids whose put has returned.
        unsure: ids whose put was interrupted.
    """

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.clock = FakeClock()
        given: dict[str, Any] = {"lease_timeout_s": _TIMEOUT_S, "clock": self.clock} | options
        self.given = given
        self.queue: Queue = FileSampleRefQueue(path, heartbeat_s=_TIMEOUT_S / 2, **given)
        self.other: Queue = FileSampleRefQueue(path, **given)
        self.batch = numbered(3)
        self.owned: dict[str, SampleRef] = {}
        self.sure: set[str] = set()
        self.unsure: set[str] = set()
        self.handle = self.queue.handle

    def put(self, refs: list[SampleRef]) -> None:
        self.unsure |= set(ids(refs)) - self.sure
        self.queue.put(refs)
        self.sure |= set(ids(refs))

    def get(self, count: int, *args: Any, **kwargs: Any) -> list[SampleRef]:
        refs = self.queue.get(count, *args, **kwargs)
        self.owned |= {each.sample_id: each for each in refs}
        return refs

    def put_and_get(self) -> None:
        self.put(self.batch)
        self.get(len(self.batch))

    def put_and_get_and_put(self) -> None:
        self.put_and_get()
        self.put(numbered(3, "n"))

    def put_for_other(self) -> None:
        self.put(self.batch)
        self.other.get(len(self.batch))

    def lose(self) -> None:
        """Let the handle's leases expire, and another handle give them back."""
        self.put_and_get()
        self.clock.advance(4 * _TIMEOUT_S)
        self.other.reclaim()

    def make_strays(self) -> None:
        """Leave refs leased that nobody has, as an error in a get does."""
        self.put_and_get()
        claims = [self.queue.handle.held.find(names.stem_of(sample_id)) for sample_id in self.owned]
        self.queue.handle.strays.add(claim for claim in claims if claim is not None)
        self.owned.clear()

    def misname(self) -> None:
        self.put(self.batch)
        os.rename(self.path / "pending" / "s00001.json", self.path / "pending" / "x.json")
        (self.path / "order.lock").write_bytes(b"")

    def settle(self) -> None:
        """Do what the caller does after the interruption, before all is looked at."""

    def damage(self) -> None:
        self.put(self.batch)
        (self.path / "pending" / "s00000.json").write_bytes(b"{")


class Call(NamedTuple):
    """One call, from the state that prepare brings the queue into."""

    run: Callable[[Any], Any]
    prepare: Callable[[Any], Any] = Scene.put_and_get
    options: Mapping[str, Any] = MappingProxyType({})


def _nothing(scene: Scene) -> None:
    pass


def _expired(scene: Scene) -> None:
    scene.put_for_other()
    scene.clock.advance(4 * _TIMEOUT_S)


def _loop(scene: Scene) -> None:
    """Work on two refs, of which one fails and one is given back by the block itself."""
    for number, lease in enumerate(scene.queue.consume(2, idle_s=0.0, retryable=False)):
        with lease:
            if number == 1:
                lease.release()
                break
            raise RuntimeError("work that fails")


def _batch(scene: Scene) -> None:
    with scene.queue.leased(3) as refs:
        scene.queue.release(refs[:1])


QUICK = {"durable": False}

CALLS: dict[str, Call] = {
    "the first put": Call(lambda s: s.put(s.batch), _nothing),
    "a put": Call(lambda s: s.put([*s.batch, ref("n1"), ref("n2")])),
    "a quick put": Call(lambda s: s.put([ref("n1")]), options=QUICK),
    "the first get": Call(lambda s: s.get(2), lambda s: s.put(s.batch)),
    "a get": Call(lambda s: s.get(2), Scene.put_and_get_and_put, QUICK),
    "a get of a partition": Call(lambda s: s.get(2, partition=(0, 1)), lambda s: s.put(s.batch), QUICK),
    "a get of nothing": Call(lambda s: s.get(2, 0.002), options=QUICK),
    "a get after strays": Call(lambda s: s.get(2), Scene.make_strays, QUICK),
    "a get that reclaims": Call(lambda s: s.get(2), _expired, QUICK),
    "a get that names": Call(lambda s: s.get(3), Scene.misname, QUICK),
    "a get that buries": Call(lambda s: s.get(3), Scene.damage, QUICK),
    "ack": Call(lambda s: s.queue.ack(s.batch)),
    "ack with a step": Call(lambda s: s.queue.ack(s.batch, step=7), options=QUICK),
    "ack, nothing kept": Call(lambda s: s.queue.ack(s.batch), options={"keep_done": False} | QUICK),
    "a late ack": Call(lambda s: s.queue.ack(list(s.owned.values())), Scene.lose, QUICK),
    "ack by id": Call(lambda s: s.queue.ack(s.batch), Scene.put_for_other, QUICK),
    "fail": Call(lambda s: s.queue.fail(s.batch, "x", True)),
    "fail for good": Call(lambda s: s.queue.fail(s.batch, "x", False), options=QUICK),
    "fail by id": Call(lambda s: s.queue.fail(s.batch, "x", True), Scene.put_for_other, QUICK),
    "release": Call(lambda s: s.queue.release(s.batch)),
    "release by id": Call(lambda s: s.queue.release(s.batch), Scene.put_for_other, QUICK),
    "renew": Call(lambda s: s.queue.renew(s.batch)),
    "reclaim": Call(lambda s: s.queue.reclaim(), _expired, QUICK),
    "a pause": Call(lambda s: (s.queue.pause("x"), s.get(1), s.queue.resume()), options=QUICK),
    "release_all": Call(lambda s: s.queue.release_all(), options=QUICK),
    "a loop over leases": Call(_loop, lambda s: s.put(s.batch), QUICK),
    "a leased batch": Call(_batch, lambda s: s.put(s.batch), QUICK),
    "close": Call(lambda s: s.queue.close()),
    "close after strays": Call(lambda s: s.queue.close(), Scene.make_strays, QUICK),
}


def interrupt(
    path: Path, call: Call, at: int, error: type[BaseException] = KeyboardInterrupt, kind: type[Scene] = Scene
) -> str | None:
    """Interrupt a call at a line and check what must hold then; return the line, None where the call ended before."""
    scene, wire = kind(path, **call.options), Tripwire(at, error)
    call.prepare(scene)
    try:
        wire.run(lambda: call.run(scene))
    except error as caught:
        if wire.where is None or wire.where not in str(caught):
            raise
    where = wire.where or "its end"
    with hang_is_an_error(where):
        try:
            _check(scene)
        except BaseException as problem:
            raise AssertionError(f"interrupted at {where}") from problem
    shutil.rmtree(path)
    return wire.where


def _check(scene: Scene) -> None:
    assert is_lockable(scene.path / "order.lock"), "the lock is held"
    queue = scene.queue
    scene.settle()
    try:
        scene.other.resume()
        scene.queue.paused()
        scene.put([ref("p1")])
        scene.get(100)
    except QueueClosedError:
        queue.close()
    assert _leased_by(scene, queue) <= set(scene.owned), "leased to nobody"
    InThread(lambda: _use(scene)).result()
    scene.other.release_all()
    with FileSampleRefQueue(scene.path, **scene.given) as third:  # whose acks are by id
        third.ack(third.get(100))
        third.ack(list(scene.owned.values()))
    queue.close()
    assert queue._opened is None, "not closed"
    assert scene.handle.presence not in _beating(), "beats on"
    assert not scene.handle._open, "its closing waits for something"
    found = Counter(_stem(name) for state in _STATES for name in names_in(scene.path, state))
    kept = scene.other.options.keep_done
    assert set(found.values()) <= {1}, f"in several states: {found}"
    assert scene.sure <= set(found) or not kept, f"lost: {scene.sure - set(found)}"
    assert set(found) <= scene.sure | scene.unsure, f"put by nobody: {set(found) - scene.sure - scene.unsure}"
    for state in ("pending", "leased"):
        assert names_in(scene.path, state) == [], f"left in {state}/"
    scene.other.close()
    assert_clean(scene.path)


def _use(scene: Scene) -> None:
    """Use the handle from another thread."""
    try:
        scene.put([ref("p2")])
        scene.queue.renew([ref("p2")])
        scene.get(100)
        scene.queue.reclaim()
        scene.queue.ack(list(scene.owned.values()))
    except QueueClosedError:
        pass


def _leased_by(scene: Scene, queue: Queue) -> set[str]:
    owner = f"@{scene.handle.owner}+"
    return {name.partition("@")[0] for name in names_in(scene.path, "leased") if owner in name}


def _stem(name: str) -> str:
    return name.removesuffix(".json").partition("@")[0]


def _beating() -> list[object]:
    gc.collect()
    hearts = [heart for hearts in list(heartbeat.heartbeats._hearts.values()) for heart in list(hearts.values())]
    return [getattr(heart.beat(), "__self__", None) for heart in hearts]
