"""Several handles, driven at random through all methods, with hands in the directory, against a model."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fsqueue import Counts, FileSampleRefQueue, SampleRef, dp_partition
from fsqueue.disk import fileops
from fsqueue.format import names
from tests.support import ids
from tests.support.implementations import make_refs
from tests.sweeps.proof import tally
from tests.sweeps.proof.model import LEASE_S, MAX_ATTEMPTS, Model, View
from tests.sweeps.proof.verdict import StoppedClock

ID_POOL = ["a", "b", "c/d", ".e", "f%", "g@1", "ü", "x" * 200, "s1", "s2", "s3", "s4"]
HANDLES = 3
EVERYTHING = 1000

some_ids = st.lists(st.sampled_from(ID_POOL), min_size=1, max_size=4, unique=True)
one_id = st.sampled_from(ID_POOL)
handles = st.integers(0, HANDLES - 1)


class ManyHandles(RuleBasedStateMachine):
    """After every step the directories say what the model says."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="fsqueue-model-"))
        self.path = self.root / "queue"
        self.model = Model()
        self.opened = 0
        self.queues: dict[int, FileSampleRefQueue[SampleRef]] = {}

    @initialize(lock=st.sampled_from(["flock", "none"]))
    def begin(self, lock: str) -> None:
        """Open all handles."""
        self.lock = lock
        for index in range(HANDLES):
            self._open(index)

    def _open(self, index: int) -> None:
        self.opened += 1
        with fileops.using(StoppedClock(seed=self.opened)):
            self.queues[index] = FileSampleRefQueue(
                self.path,
                lease_timeout_s=LEASE_S,
                max_attempts=MAX_ATTEMPTS,
                max_deliveries=MAX_ATTEMPTS,
                clock=lambda: self.model.now,
                durable=False,
                lock=self.lock,
                owner=f"h{index}",
            )
        self.model.views[index] = View()

    @rule(index=handles, given=some_ids)
    def put(self, index: int, given: list[str]) -> None:
        self.queues[index].put(make_refs(*given))
        self.model.put(index, given)

    @rule(index=handles, count=st.integers(1, 5))
    def get(self, index: int, count: int) -> None:
        self._get(index, count, None)

    @rule(index=handles, count=st.integers(1, 5), partition=st.sampled_from([(0, 1), (0, 2), (1, 2), (0, 3), (2, 3)]))
    def get_partition(self, index: int, count: int, partition: tuple[int, int]) -> None:
        """Widths change from call to call, as when a run goes on with another number of ranks."""
        self._get(index, count, partition)

    def _get(self, index: int, count: int, partition: tuple[int, int] | None) -> list[str]:
        got = ids(self.queues[index].get(count, partition=partition))
        self.model.reclaim(index)
        possible = self.model.candidates(partition)
        assert len(got) <= count
        assert len(set(got)) == len(got) and set(got) <= set(possible), f"got {got}, pending were {possible}"
        assert got or not possible, f"got nothing though {possible} were pending"
        if self.model.ordered:
            assert got == possible[:count], f"got {got}, in order came {possible[:count]}"
        for sample_id in got:
            self.model.lease(index, sample_id)
        return got

    @rule(index=handles, given=some_ids, step=st.sampled_from([None, None, 0, 7]))
    def ack(self, index: int, given: list[str], step: int | None) -> None:
        assert self.queues[index].ack(make_refs(*given), step=step) == self.model.ack(index, given, step)

    @rule(index=handles, given=some_ids, retryable=st.booleans())
    def fail(self, index: int, given: list[str], retryable: bool) -> None:
        lost = self.queues[index].fail(make_refs(*given), "a reason", retryable)
        assert lost == self.model.fail(index, given, retryable)

    @rule(index=handles, given=some_ids)
    def release(self, index: int, given: list[str]) -> None:
        assert self.queues[index].release(make_refs(*given)) == self.model.release(index, given)

    @rule(index=handles, given=some_ids)
    def renew(self, index: int, given: list[str]) -> None:
        assert self.queues[index].renew(make_refs(*given)) == self.model.renew(index, given)

    @rule(index=handles)
    def reclaim(self, index: int) -> None:
        assert self.queues[index].reclaim() == self.model.reclaim(index)

    @rule(seconds=st.sampled_from([0.5, LEASE_S / 2, LEASE_S, LEASE_S + 1]))
    def pass_time(self, seconds: float) -> None:
        self.model.now += seconds

    @rule(index=handles)
    def reopen(self, index: int) -> None:
        """A restarted handle knows nothing of its predecessor's leases, which stay."""
        self.queues[index].close()
        for lease in self.model.leased.values():
            if lease.handle == index:
                lease.handle = -1
        self._open(index)

    @precondition(lambda self: self.model.leased)
    @rule(data=st.data())
    def take_a_lease_away(self, data: st.DataObject) -> None:
        self._move(data.draw(st.sampled_from(sorted(self.model.leased))), "leased", "pending")

    @precondition(lambda self: self.model.pending)
    @rule(data=st.data(), where=st.sampled_from(["failed", "done", ""]))
    def take_out_of_pending(self, data: st.DataObject, where: str) -> None:
        self._move(data.draw(st.sampled_from(sorted(self.model.pending))), "pending", where)

    @precondition(lambda self: self._not_live(self.model.failed))
    @rule(data=st.data(), where=st.sampled_from(["pending", ""]))
    def revive_a_dead_letter(self, data: st.DataObject, where: str) -> None:
        self._move(data.draw(st.sampled_from(self._not_live(self.model.failed))), "failed", where)

    @precondition(lambda self: self._not_live(self.model.done))
    @rule(data=st.data(), where=st.sampled_from(["pending", ""]))
    def once_more(self, data: st.DataObject, where: str) -> None:
        self._move(data.draw(st.sampled_from(self._not_live(self.model.done))), "done", where)

    def _not_live(self, found: Any) -> list[str]:
        return sorted(i for i in found if i not in self.model.pending and i not in self.model.leased)

    def _move(self, sample_id: str, source: str, target: str) -> None:
        """``mv``, or ``rm`` where there is no target."""
        stem = names.stem_of(sample_id)
        files = [f for f in sorted(os.listdir(self.path / source)) if f.removesuffix(".json").partition("@")[0] == stem]
        for name in files[1:]:
            os.unlink(self.path / source / name)
        if target:
            os.rename(self.path / source / files[0], self.path / target / names.ref_file(stem))
        else:
            os.unlink(self.path / source / files[0])
        self.model.move(sample_id, source, target)

    @rule(seed=st.integers(0, 1000), how=st.sampled_from(["delete", "tear", "nul", "twice", "garbage", "empty"]))
    def damage_the_order(self, seed: int, how: str) -> None:
        """The order is a hint: whatever becomes of it, every ref is handed out."""
        path = self.path / "order.lock"
        self.model.ordered = False
        data = path.read_bytes() if path.exists() else b""
        at = random.Random(seed).randrange(len(data) + 1)
        if how == "delete":
            path.unlink(missing_ok=True)
        else:
            changed = {
                "tear": data[:at],
                "nul": data[:at] + bytes(len(data) - at),
                "twice": data + data[64:],
                "garbage": data[:at] + random.Random(seed).randbytes(40) + data[at:],
                "empty": b"",
            }
            path.write_bytes(changed[how])

    @rule(seed=st.integers(0, 1000))
    def remove_an_owner_record(self, seed: int) -> None:
        found = sorted(os.listdir(self.path / "owners"))
        if found:
            (self.path / "owners" / found[seed % len(found)]).unlink()

    @invariant()
    def mtimes_are_the_models(self) -> None:
        """Stamp by the model's clock what the filesystem's has stamped, so that a run repeats itself exactly."""
        for name in os.listdir(self.path / "pending") if self.queues else ():
            if os.stat(self.path / "pending" / name).st_mtime > self.model.now:
                os.utime(self.path / "pending" / name, (self.model.now, self.model.now))

    @invariant()
    def directories_say_what_the_model_says(self) -> None:
        if not self.queues:
            return
        model = self.model
        tally.count("model steps")
        for state, expected in (("pending", model.pending), ("failed", model.failed)):
            found = sorted(str(names.parse_ref(name)) for name in os.listdir(self.path / state))
            assert found == self._expect(expected), f"{state}/ has {found}, should have {self._expect(expected)}"
        leased = [names.parse_leased(name) for name in os.listdir(self.path / "leased")]
        assert sorted(name.stem for name in leased if name) == self._expect(model.leased)
        for name in filter(None, leased):
            holder = next(lease.handle for i, lease in model.leased.items() if names.stem_of(i) == name.stem)
            assert holder < 0 or name.owner == self.queues[holder].owner
        done = {names.done_file(names.stem_of(i), step) for i, steps in model.done.items() for step in steps}
        assert set(os.listdir(self.path / "done")) == done
        queue = self.queues[0]
        assert queue.counts() == Counts(len(model.pending), len(model.leased), len(done), len(model.failed))
        assert (queue.depth(), queue.in_flight()) == (len(model.pending), len(model.leased))

    @staticmethod
    def _expect(sample_ids: Any) -> list[str]:
        return sorted(names.stem_of(sample_id) for sample_id in sample_ids)

    def teardown(self) -> None:
        """In the end everything that is live is delivered."""
        try:
            if self.queues:
                self.model.now += 2 * LEASE_S
                while self._get(0, EVERYTHING, None):
                    pass
                self.directories_say_what_the_model_says()
                assert not self.model.pending
        finally:
            for queue in self.queues.values():
                queue.close()
            shutil.rmtree(self.root)


def test_a_torn_order_hides_nothing_from_a_partition(tmp_path: Path) -> None:
    """Lines written where a handle's scan had been, before the order was torn off there, are handed out to it."""
    mine, others = "s001", [f"s{number:03d}" for number in range(100) if dp_partition(f"s{number:03d}", 2) == 1]
    assert dp_partition(mine, 2) == 0
    clock = StoppedClock()
    with (
        fileops.using(clock),
        FileSampleRefQueue(tmp_path / "queue", durable=False) as producer,
        FileSampleRefQueue(tmp_path / "queue", durable=False) as consumer,
    ):
        producer.put(make_refs(*others))
        assert consumer.get(1, partition=(0, 2)) == []
        os.truncate(tmp_path / "queue" / "order.lock", 200)
        producer.put(make_refs(mine))
        found = consumer.get(1, partition=(0, 2))
        while not found and clock.seconds < 130:
            clock.advance(1.0)
            found = consumer.get(1, partition=(0, 2))
        assert ids(found) == [mine]


COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "print_blob": True,
    "suppress_health_check": list(HealthCheck),
}


def test_handles_and_hands_against_the_model() -> None:
    """The directories say what the model says, whatever the handles do and a hand moves."""
    run_state_machine_as_test(ManyHandles, settings=settings(max_examples=80, stateful_step_count=40, **COMMON))


@pytest.mark.slow
def test_handles_and_hands_against_the_model_for_long() -> None:
    """The same, further."""
    run_state_machine_as_test(ManyHandles, settings=settings(max_examples=1500, stateful_step_count=60, **COMMON))
