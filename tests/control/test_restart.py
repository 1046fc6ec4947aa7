"""Restarted controllers: what reconciling finds, kills at random instants, rewinding to a checkpoint."""

from __future__ import annotations

import itertools
import json
import os
import random
import select
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from against_sqlite.queue import PlainSqliteQueue
from fsqueue import FileSampleRefQueue, MemorySampleRefQueue, SampleRef
from fsqueue.control.controller import DataFlowController
from fsqueue.control.errors import LiveNamesakeError
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.errors import LeasesHeldError
from fsqueue.format import names
from tests.support import (
    GUARD_S,
    Child,
    assert_clean,
    content,
    ids,
    lease_and_obey,
    names_in,
    numbered,
    ref,
    refs,
)
from tests.support.dying import died
from tests.support.foreign_records import SampleRef as ForeignRef
from tests.support.foreign_records import foreign_ref
from tests.sweeps.proof import tally
from tests.sweeps.proof.apart import Apart

Controller = DataFlowController[Any]


class Site:
    """A queue and a ledger in one directory, and controllers over them."""

    def __init__(self, path: Path) -> None:
        self.queue = path / "queue"
        self.ledger = path / "ledger"
        self._opened: list[Any] = []

    def controller(self, owner: str | None = None, **options: Any) -> Controller:
        queue: Any = FileSampleRefQueue(self.queue, owner=owner, **{"durable": False, **options})
        store: Any = FileMetadataStore(self.ledger, durable=bool(options.get("durable")))
        self._opened += [queue, store]
        return DataFlowController("run", sample_queue=queue, metadata_store=store)

    def live(self) -> Counter[str]:
        """Count how often each id is pending or leased."""
        pending = [names.parse_ref(name) for name in names_in(self.queue, "pending")]
        leases = [names.parse_leased(name) for name in names_in(self.queue, "leased")]
        return Counter(stem for stem in [*pending, *(lease[0] for lease in leases if lease)] if stem)

    def close(self) -> None:
        for each in self._opened:
            each.close()


@pytest.fixture
def site(tmp_path: Path) -> Any:
    made = Site(tmp_path)
    yield made
    made.close()


class Features:
    """A feature store that notes what it is told to free."""

    def __init__(self) -> None:
        self.aborted: list[tuple[str, str]] = []

    def abort(self, sample_id: str, *, reason: str = "aborted", **more: Any) -> None:
        self.aborted.append((sample_id, reason))


def drain(controller: Controller) -> list[str]:
    """Lease and acknowledge until there is nothing more."""
    found: list[str] = []
    while batch := ids(controller.lease_train_refs("t", 50)):
        controller.ack_train_refs("t", batch, global_step=1_000, optimizer_durable=True)
        found += batch
    return found


# -- what becomes of each sample ------------------------------------------------------------------------------------


def test_a_sample_that_was_committed_and_not_put(site: Site) -> None:
    """The crash between the ledger's commit and the queue's put: it is put, in commit order."""
    controller = site.controller()
    controller.store.commit_samples(refs("a", "b", "c"))
    controller.require_queue("test").put(refs("b"))
    report = controller.reconcile_on_restart()
    assert (report["requeued"], report["released"]) == (["a", "b", "c"], [])
    assert site.live() == {"a": 1, "b": 1, "c": 1}
    assert_clean(site.queue)


def test_a_sample_that_is_put_anew_has_the_file_that_a_put_makes(site: Site, tmp_path: Path) -> None:
    """To the last byte, tuples and ids that no file name can spell too; one that is done here is moved, not put."""
    samples = [ref("a"), ref("b/@5", num_tokens=3, metadata={"span": (0, [1, (2,)])}), ref("é" * 90), ref("done")]
    controller = site.controller()
    controller.store.commit_samples(samples)
    with FileSampleRefQueue(site.queue, durable=False) as other:
        other.put(samples[3:])
        other.ack(other.get(1))
    controller.reconcile_on_restart()
    with FileSampleRefQueue(tmp_path / "other", durable=False) as other:
        other.put(samples[:3])
    for name in names_in(tmp_path / "other", "pending"):
        made, put = (path / "pending" / name for path in (site.queue, tmp_path / "other"))
        assert made.read_bytes() == put.read_bytes()
    assert site.live() == dict.fromkeys(map(names.stem_of, ids(samples)), 1)
    assert content(site.queue / "pending" / "done.json")["_fsqueue"]["history"][-1]["event"] == "requeued"
    assert_clean(site.queue)


def test_a_file_that_is_no_ref_is_no_sample(site: Site) -> None:
    """One with a sample's id for its name, which somebody left in pending/, does not stand for it: that is put."""
    controller = site.controller()
    controller.store.commit_samples(refs("a"))
    (site.queue / "pending" / "a").touch()
    controller.reconcile_on_restart()
    assert site.live() == {"a": 1}


def test_a_sample_that_was_acknowledged_in_the_ledger_alone(site: Site) -> None:
    """The crash between the two acknowledgements: done under its step, wherever it lies and whoever holds it."""
    before = site.controller()
    before.commit_samples("w0", refs("a", "b", "c", "d"))
    before.lease_train_refs("t0", 2)
    before.store.record_train_ack(["a", "c"], global_step=7, optimizer_durable=True)
    controller, features = site.controller(), Features()
    report = controller.reconcile_on_restart(features)
    assert (report["released"], report["requeued"], report["leased"]) == (["a", "c"], ["b", "d"], ["b"])
    assert (report["global_step"], report["optimizer_durable"]) == (7, True)
    assert features.aborted == [("a", "reconciled-released"), ("c", "reconciled-released")]
    assert names_in(site.queue, "done") == ["a@7.json", "c@7.json"]
    assert site.live() == {"b": 1, "d": 1}
    assert_clean(site.queue)


def test_reconciling_twice_changes_nothing(site: Site) -> None:
    """The second report says the same."""
    controller = site.controller()
    controller.store.commit_samples(numbered(30))
    controller.store.record_train_ack(["s00003"], global_step=1, optimizer_durable=True)
    first = controller.reconcile_on_restart()
    listed = {state: names_in(site.queue, state) for state in ("pending", "leased", "done", "failed")}
    assert controller.reconcile_on_restart() == first
    assert {state: names_in(site.queue, state) for state in listed} == listed
    assert sorted(drain(controller)) == first["requeued"]


def test_an_acknowledgement_on_the_queue_alone_does_not_count(site: Site) -> None:
    """The ledger decides: the sample's own file comes back from done/, so that it is there once."""
    controller = site.controller()
    controller.commit_samples("w0", refs("a", "b"))
    queue: Any = controller.sample_queue
    queue.ack(queue.get(2), step=5)
    assert names_in(site.queue, "done") == ["a@5.json", "b@5.json"]
    assert controller.reconcile_on_restart()["requeued"] == ["a", "b"]
    assert names_in(site.queue, "done") == []
    assert sorted(drain(controller)) == ["a", "b"]


def test_dead_letters_stay_where_they_are(site: Site) -> None:
    """A ref that failed for good does not come back with every restart; put again by hand, it is one like others."""
    controller = site.controller()
    controller.commit_samples("w0", refs("a", "b", "c"))
    controller.lease_train_refs("t0", 2)
    controller.fail_refs("t0", ["a", "b"], "poisoned", False)
    os.rename(site.queue / "failed" / "b.json", site.queue / "pending" / "b.json")
    report = controller.reconcile_on_restart()
    assert (report["failed"], report["requeued"], report["released"]) == (["a"], ["b", "c"], [])
    assert names_in(site.queue, "failed") == ["a.json"]


def test_ids_that_no_file_name_can_spell(site: Site) -> None:
    """Long, odd and nested names are settled and put like others."""
    odd = ["a/b@c", "ü" * 200, "..", "x" * 300, " "]
    controller = site.controller()
    controller.store.commit_samples([ref(each) for each in odd])
    controller.reconcile_on_restart()
    controller.store.record_train_ack(odd[:3], global_step=2, optimizer_durable=True)
    assert controller.reconcile_on_restart()["released"] == odd[:3]
    assert drain(controller) == odd[3:]
    assert_clean(site.queue)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_queue_that_knows_the_contract_alone(tmp_path: Path, kind: str) -> None:
    """The process is gone and its queue with it, or not: acknowledged samples leave it, all others are in it once."""
    with FileMetadataStore[SampleRef](tmp_path / "ledger") as store:
        queue: Any = MemorySampleRefQueue() if kind == "memory" else PlainSqliteQueue(str(tmp_path / "queue.db"))
        before: Controller = DataFlowController("run", sample_queue=queue, metadata_store=store)
        before.commit_samples("w0", refs("a", "b", "c", "d"))
        before.lease_train_refs("t0", 1)
        store.record_train_ack(["a", "b"], global_step=1, optimizer_durable=True)
        fresh: Any = MemorySampleRefQueue()
        for now in (queue, fresh):
            after: Controller = DataFlowController("run", sample_queue=now, metadata_store=store)
            for _ in range(2):
                report = after.reconcile_on_restart()
                assert (report["released"], report["requeued"]) == (["a", "b"], ["c", "d"])
            assert ids(after.lease_train_refs("t0", 9)) == ["c", "d"]
        queue.close()


def test_another_packages_refs(tmp_path: Path) -> None:
    """Queue and ledger give them back as they were, also when they are put anew."""
    with (
        FileMetadataStore(tmp_path / "ledger", ref_type=ForeignRef) as store,
        FileSampleRefQueue(tmp_path / "queue", ref_type=ForeignRef) as queue,
    ):
        controller: Controller = DataFlowController("run", sample_queue=queue, metadata_store=store)
        store.commit_samples([foreign_ref("a"), foreign_ref("b")])
        controller.reconcile_on_restart()
        assert controller.lease_train_refs("t0", 2) == [foreign_ref("a"), foreign_ref("b")]


# -- predecessors ---------------------------------------------------------------------------------------------------


def test_a_dead_predecessor_is_settled_at_once(site: Site) -> None:
    """A killed process's leases are pending when reconciling returns, with the attempt counted."""
    site.controller().commit_samples("w0", refs("a", "b", "c"))
    with Child(lease_and_obey, site.queue, 2, {"owner": "trainer-0"}) as child:
        child.receive()
        child.kill()
    controller = site.controller("trainer-0")
    assert controller.reconcile_on_restart()["leased"] == []
    assert len(names_in(site.queue, "pending")) == 3
    pending = json.loads((site.queue / "pending" / "a.json").read_bytes())
    assert pending["_fsqueue"]["expiries"] == 1
    assert_clean(site.queue)


def test_a_handle_that_was_closed_in_this_process_is_a_dead_predecessor(site: Site) -> None:
    """Its leases come back though the process runs: nobody can settle them any more."""
    before = site.controller("trainer-0")
    before.commit_samples("w0", refs("a", "b"))
    before.lease_train_refs("t0", 2)
    queue: Any = before.sample_queue
    queue.close()
    controller = site.controller("trainer-0")
    controller.reconcile_on_restart()
    assert names_in(site.queue, "pending") == ["a.json", "b.json"]


@pytest.mark.parametrize("where", ["this process", "another process"])
def test_a_live_namesake_is_not_robbed(site: Site, where: str) -> None:
    """An error names it, before anything is changed; other owners' leases are nobody's business."""
    before = site.controller("trainer-0" if where == "this process" else "elsewhere")
    before.commit_samples("w0", numbered(6))
    with Child(lease_and_obey, site.queue, 3, {"owner": "trainer-0"}) as child:
        child.receive()
        before.lease_train_refs("t0", 1)
        listed = names_in(site.queue, "leased")
        controller = site.controller("trainer-0")
        with pytest.raises(LiveNamesakeError, match=r"owner trainer-0\.\d+\.\w+ leases \d refs .* runs on this host"):
            controller.reconcile_on_restart(predecessor_gone=True)
        assert names_in(site.queue, "leased") == listed
        report = site.controller("trainer-1").reconcile_on_restart()
        assert len(report["leased"]) == 4 and len(report["requeued"]) == 6
        assert names_in(site.queue, "leased") == listed
        child.send("end")
        assert child.join() == 0


def test_a_namesake_on_another_node(site: Site) -> None:
    """An owner of whom nobody can see if it lives is an error, unless the caller knows that it is gone."""
    controller = site.controller("trainer-0")
    controller.commit_samples("w0", refs("a", "b"))
    elsewhere = "trainer-0.4711.9f3a01"
    os.rename(site.queue / "pending" / "a.json", site.queue / "leased" / f"a@{elsewhere}.json")
    with pytest.raises(LiveNamesakeError, match="cannot be seen from this host") as caught:
        controller.reconcile_on_restart()
    assert (caught.value.owner, caught.value.leases) == (elsewhere, 1)
    assert controller.reconcile_on_restart(predecessor_gone=True)["leased"] == []
    assert site.live() == {"a": 1, "b": 1}


# -- several processes ----------------------------------------------------------------------------------------------


def commit_lease_ack(pipe: Connection, path: Path, name: str) -> None:
    """A child with a controller of its own: commits 30 samples, leases 12, acknowledges 7 of them, and waits."""
    controller = Site(path).controller(name)
    controller.commit_samples(name, numbered(30, prefix=name))
    pipe.send("committed")
    pipe.recv()
    leased = ids(controller.lease_train_refs(name, 12))
    controller.ack_train_refs(name, leased[:7], global_step=3, optimizer_durable=True)
    pipe.send((leased, leased[:7]))
    pipe.recv()


def test_two_controllers_over_one_directory_and_a_third_that_reconciles(tmp_path: Path, site: Site) -> None:
    """Released is exactly what was acknowledged, requeued is the rest, and nothing is trained twice."""
    with Child(commit_lease_ack, tmp_path, "one") as one, Child(commit_lease_ack, tmp_path, "two") as two:
        assert [one.receive(), two.receive()] == ["committed"] * 2
        one.send("go")
        two.send("go")
        (leased_one, acked_one), (leased_two, acked_two) = one.receive(), two.receive()
        assert not set(leased_one) & set(leased_two)
        one.kill()
        two.kill()
    third = site.controller("three")
    report = third.reconcile_on_restart()
    everything = ids(numbered(30, prefix="one")) + ids(numbered(30, prefix="two"))
    acked = set(acked_one + acked_two)
    assert set(report["released"]) == acked and len(report["released"]) == 14
    assert sorted(report["requeued"]) == sorted(set(everything) - acked)
    assert site.live() == Counter(report["requeued"])
    assert Counter(drain(third)) == Counter(report["requeued"])
    assert third.store.durable_marker()["acked"] == set(everything)
    assert_clean(site.queue)


def work_until_killed(path: Path, seed: int, tell: int) -> None:
    """Reconcile, then commit, lease, acknowledge and fail at random; tell each step as a line of JSON."""
    chance = random.Random(seed)
    controller = Site(path).controller("worker", durable=bool(seed % 2))

    def say(what: str, sample_ids: list[str]) -> None:
        os.write(tell, json.dumps([what, sample_ids]).encode() + b"\n")

    controller.reconcile_on_restart()
    say("ready", [])
    for step in range(1_000_000):
        new = [ref(f"{seed}-{step}-{n}") for n in range(chance.randrange(4))]
        controller.commit_samples("w", new)
        say("committed", ids(new))
        leased = ids(controller.lease_train_refs("t", chance.randrange(1, 5)))
        say("leased", leased)
        cut = chance.randrange(len(leased) + 1)
        controller.ack_train_refs("t", leased[:cut], global_step=step, optimizer_durable=True)
        say("acked", leased[:cut])
        controller.fail_refs("t", leased[cut:], "again", True)


def _has_said(fd: int, patience_s: float) -> bool:
    """Wait for a pipe to have something; by poll, since a test process may have more descriptors than select takes."""
    looking = select.poll()
    looking.register(fd, select.POLLIN)
    return bool(looking.poll(1000 * patience_s))


def run_and_kill(path: Path, seed: int, steps: int, delay_s: float) -> list[tuple[str, list[str]]]:
    """Fork a worker, kill it some time after it has told so many steps, and reap it.

    Returns what it had told by then.
    """
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(told)
        try:
            work_until_killed(path, seed, tell)
        finally:
            os._exit(1)
    os.close(tell)
    said = b""
    try:
        while said.count(b"\n") < steps:
            assert _has_said(told, GUARD_S), "the worker hung"
            said += (more := os.read(told, 1 << 16))
            assert more, "the worker failed"
        end = time.monotonic() + delay_s
        while (left_s := end - time.monotonic()) > 0:
            if _has_said(told, left_s):
                said += os.read(told, 1 << 16)
    finally:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    while more := os.read(told, 1 << 16):
        said += more
    os.close(told)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    return [(what, sample_ids) for what, sample_ids in map(json.loads, said.splitlines())]


@pytest.mark.parametrize("kills", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_killed_at_random_instants(tmp_path: Path, kills: int) -> None:
    """After every restart no committed sample is lost, and none that was durably acknowledged is leased again."""
    chance = random.Random(kills)
    committed: set[str] = set()
    acked: set[str] = set()
    for seed in range(kills):
        site = Site(tmp_path)
        for what, sample_ids in run_and_kill(tmp_path, seed, seed % 4 * chance.randrange(5), chance.uniform(0.0, 0.03)):
            if what == "committed":
                committed.update(sample_ids)
            elif what == "leased":
                assert not acked.intersection(sample_ids), "an acknowledged sample was leased again"
            elif what == "acked":
                acked.update(sample_ids)
        controller = site.controller("worker")
        report = controller.reconcile_on_restart()
        assert report["leased"] == report["failed"] == []
        in_ledger = set(controller.store.all_committed_ids())
        assert committed <= in_ledger and acked <= set(report["released"])
        assert site.live() == Counter(in_ledger - set(report["released"]))
        committed, acked = in_ledger, set(report["released"])
        site.close()
    site = Site(tmp_path)
    controller = site.controller("worker")
    rest = drain(controller)
    assert Counter(rest) == Counter(committed - acked)
    assert len(committed) > kills / 2 and len(acked) > kills / 4
    tally.count("SIGKILLs of a controller at random instants: samples lost or leased after their ack 0", kills)
    site.close()
    assert_clean(tmp_path / "queue")


def commit(path: Path) -> None:
    Site(path).controller("worker").commit_samples("w", refs("x", "y"))


def lease_and_ack(path: Path) -> None:
    controller = Site(path).controller("worker")
    controller.ack_train_refs("t", ids(controller.lease_train_refs("t", 2)), global_step=9)


def reconcile(path: Path) -> None:
    Site(path).controller("worker").reconcile_on_restart()


def rewind(path: Path) -> None:
    Site(path).controller("worker").rewind(after_step=3)


def die_and_reconcile(tmp_path: Path, work: Callable[[Path], None], stride: int) -> None:
    for number in itertools.count(0, stride):
        path = tmp_path / str(number)
        site = Site(path)
        before = site.controller("before")
        before.commit_samples("w", refs("a", "b", "c", "d"))
        for step in (3, 4):
            before.ack_train_refs("t", ids(before.lease_train_refs("t", 1)), global_step=step)
        before.store.commit_samples(refs("unput"))
        before.store.record_train_ack(["c"], global_step=5, optimizer_durable=False)
        before.require_queue("test").ack(refs("d"))
        site.close()
        ended = not died(work, path, number)
        site = Site(path)
        controller = site.controller("worker")
        report = controller.reconcile_on_restart()
        assert sorted(report["released"] + report["requeued"]) == sorted(controller.store.all_committed_ids())
        assert site.live() == Counter(report["requeued"])
        assert {"a", "b", "c"} - set(report["released"]) <= ({"b", "c"} if work is rewind else set())
        assert Counter(drain(controller)) == Counter(report["requeued"])
        site.close()
        assert_clean(site.queue)
        if ended:
            break
        tally.count("crash points of a controller on a ledger and a queue: samples lost or doubled 0")
        shutil.rmtree(path)


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("work", [commit, lease_and_ack, reconcile, rewind])
def test_dying_at_any_file_operation_and_reconciling(
    tmp_path: Path, apart: Apart, work: Callable[[Path], None], stride: int
) -> None:
    """The next controller finds every sample once, acknowledged or in the queue, wherever the last one died."""
    apart(die_and_reconcile, tmp_path, work, stride)


# -- rewinding ------------------------------------------------------------------------------------------------------


def test_rewinding_brings_back_what_was_trained_after_the_checkpoint(site: Site) -> None:
    """Each sample once, in the ledger and in the queue; a second call changes nothing; then they are trained again."""
    controller = site.controller()
    controller.commit_samples("w0", numbered(12))
    for step in range(1, 4):
        controller.ack_train_refs("t0", ids(controller.lease_train_refs("t0", 3)), global_step=step)
    for _ in range(2):
        report = controller.rewind(after_step=1)
        assert report["released"] == ids(numbered(3)) and report["global_step"] == 1
        assert site.live() == Counter(ids(numbered(12))[3:])
    assert names_in(site.queue, "done") == [f"s{n:05d}@1.json" for n in range(3)]
    history = json.loads((site.queue / "pending" / "s00004.json").read_bytes())["_fsqueue"]["history"]
    assert [event["event"] for event in history] == ["rewound"]
    assert sorted(drain(controller)) == ids(numbered(12))[3:]
    assert_clean(site.queue)


def test_a_rewind_that_died_half_way_is_completed_by_reconciling(site: Site) -> None:
    """The ledger forgot, the queue did not follow: the next controller makes it."""
    controller = site.controller()
    controller.commit_samples("w0", refs("a", "b"))
    controller.ack_train_refs("t0", ids(controller.lease_train_refs("t0", 2)), global_step=5)
    controller.store.forget_acks(after_step=4)
    assert site.controller().reconcile_on_restart()["requeued"] == ["a", "b"]
    assert site.live() == {"a": 1, "b": 1} and names_in(site.queue, "done") == []


def test_nobody_rewinds_under_a_training_trainer(site: Site) -> None:
    """An error names who leases; force goes ahead and leaves those leases alone."""
    controller = site.controller()
    controller.commit_samples("w0", refs("a", "b", "c"))
    controller.ack_train_refs("t0", ids(controller.lease_train_refs("t0", 1)), global_step=5)
    other = site.controller("rank-1")
    other.lease_train_refs("t1", 1)
    with pytest.raises(LeasesHeldError, match=r"rank-1\.\d+\.\w+"):
        controller.rewind(after_step=4)
    assert controller.store.durable_marker()["acked"] == {"a"}
    report = controller.rewind(after_step=4, force=True)
    assert (report["requeued"], report["leased"]) == (["a", "b", "c"], ["b"])
    assert site.live() == {"a": 1, "b": 1, "c": 1}
