"""The queue on filesystems that lie as real ones do: thousands of runs, each history checked."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

import simulate
from fsqueue.engine.expire import Reclaimer
from fsqueue.engine.moves import Moves
from fsqueue.engine.packing.revision import Revision
from fsqueue.engine.put import Putter
from history.checker import Verdict
from simulate import report
from simulation.kinds import KINDS, MIXED, survived
from simulation.plan import Client, Fault, Plan, make_plan, plan_from_json
from simulation.rules import LIES, UNMEASURED, UNSURVIVED, Rules
from simulation.run import Outcome, run
from simulation.shrink import shrink
from tests.support import GUARD_S
from tests.sweeps.proof import tally

BLOCK = 100


def sweep(seeds: range, lies: tuple[str, ...] = (), mount: str | None = None) -> None:
    """Run the seeds; the first that fails is made small and shown with its trace."""
    total = Verdict()
    for seed in seeds:
        outcome = run(make_plan(seed, lies, mount))
        assert not outcome.problems, report(outcome)
        total.add(outcome.verdict)
        tally.count("simulated file operations", outcome.calls)
    tally.count("simulated runs: refs lost 0, leased twice 0", len(seeds))
    tally.count("simulated puts", total.puts)
    tally.count("simulated deliveries", total.deliveries)
    for cause, number in total.again.items():
        tally.count(f"simulated deliveries again: {cause}", number)


@pytest.mark.parametrize("first", range(0, 1_000, BLOCK))
def test_no_history_breaks_a_promise(first: int) -> None:
    """Nothing lost, nothing unexpected, no lease held twice, everything drained in the documented time."""
    sweep(range(first, first + BLOCK))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1_000, 11_000, 1_000))
def test_no_history_of_many_breaks_a_promise(first: int) -> None:
    """The same over ten thousand seeds."""
    sweep(range(first, first + 1_000))


@pytest.mark.slow
@pytest.mark.parametrize("mount", [*sorted(KINDS), MIXED])
def test_no_history_on_this_kind_of_mount_breaks_a_promise(mount: str) -> None:
    """Each kind of filesystem alone, and free mixes of their lies."""
    sweep(range(30_000, 30_500), mount=mount)


@pytest.mark.slow
@pytest.mark.parametrize("lie", sorted(UNMEASURED))
def test_lies_that_nobody_measured(lie: str) -> None:
    """What the manuals allow beyond the measurements breaks no promise either."""
    sweep(range(20_000, 20_500), (lie,), "nfs")


def test_every_lie_and_every_kind_of_mount_has_its_seeds() -> None:
    """A thousand seeds tell each lie many times, but for those that are switched off by name."""
    rules = [make_plan(seed).rules for seed in range(1_000)]
    told = Counter(lie for mount in rules for lie in mount.lies)
    assert min(told[lie] for lie in LIES.keys() - UNSURVIVED) > 40
    assert not told.keys() & UNSURVIVED
    kinds = Counter(mount.mount for mount in rules)
    assert kinds.keys() == {*KINDS, MIXED}
    assert min(kinds.values()) > 10 and kinds["nfs"] > 400


@pytest.mark.parametrize("mount", ["nfs", MIXED])
def test_a_run_is_deterministic(mount: str) -> None:
    """The same plan gives the same file operations at the same times, also when it has been through JSON."""
    plan = make_plan(7, mount=mount, unsurvived=True)
    first, second = run(plan, traced=True), run(plan_from_json(plan.to_json()), traced=True)
    assert len(first.trace) > 100
    assert first.trace == second.trace


def test_a_run_is_the_same_in_another_process() -> None:
    """Sets of names are in another order there; a seed that failed on one machine fails on every other."""
    command = [sys.executable, simulate.__file__, "--seeds", "12", "--trace"]
    first, second = (
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, timeout=GUARD_S
        ).stdout.splitlines()[:-2]
        for seed in ("1", "2")
    )
    assert len(first) > 5_000 and first == second


def small_plan(**rules: Any) -> Plan:
    """One producer; two consumers of which one stops for longer than its lease."""
    return Plan(
        3,
        Rules(**rules),
        (
            Client("p", 0.0, (("put", ["a", "b", "c"]), ("work", 1.0))),
            Client("c", 300.0, (("work", 0.5), ("get", 3, 1.0, None), ("work", 12.0), ("ack", 3))),
            Client(
                "d", -300.0, (("work", 0.5), ("get", 3, 1.0, None), ("work", 12.0), ("get", 3, 1.0, None), ("ack", 3))
            ),
        ),
        durable=False,
    )


@pytest.mark.parametrize("mount", sorted(KINDS))
def test_no_lease_is_shorter_than_its_timeout(mount: str) -> None:
    """Though its stamp may be cut down to the whole second."""
    rules = replace(KINDS[mount], latency_s=0.0005)
    for late_s in (0.5, 0.9):
        holder = Client("a", 0.0, (("put", ["x"]), ("work", late_s), ("get", 1, 1.0, None)))
        other = Client("b", 0.0, (("work", 10.05), ("get", 1, 5.0, None), ("ack", 1)))
        outcome = run(Plan(1, survived(rules), (holder, other)), traced=True)
        assert not outcome.problems, report(outcome)


@pytest.mark.parametrize("mount", sorted(KINDS))
def test_whoever_put_a_ref_gets_it_back_when_the_lease_of_another_node_has_expired(mount: str) -> None:
    """Though it may still know the ref by the name under which it put it, so that a rename to that does nothing."""
    rules = replace(KINDS[mount], names_s=max(KINDS[mount].names_s, 30.0), latency_s=0.001)
    putter = Client("a", 0.0, (("put", ["x"]), ("work", 3.0), ("get", 1, 10.0 + rules.seen_after_s, None), ("ack", 1)))
    other = Client("b", 0.0, (("get", 1, 2.0, None),))
    outcome = run(Plan(1, survived(rules), (putter, other)), traced=True)
    assert not outcome.problems, report(outcome)
    before_the_end = outcome.trace[: next(at for at, line in enumerate(outcome.trace) if "all faults cease" in line)]
    assert any(" a " in line and "rename leased/x@a" in line and "done/x" in line for line in before_the_end)


def test_a_trace_says_which_lies_were_on() -> None:
    """In its first line, and a report does."""
    plan = make_plan(5, mount="gluster")
    outcome = run(plan, traced=True)
    for text in (outcome.trace[0], report(outcome, small=False)):
        assert "gluster (fuse.glusterfs)" in text
        assert all(lie in text for lie in plan.rules.lies)


def test_a_mount_is_made_kinder_by_one_lie_at_a_time() -> None:
    """Until it tells none; so the smallest run shows the lies that it takes."""
    rules = make_plan(5, mount="gluster", unsurvived=True).rules
    for lie in rules.lies:
        assert any(lie not in kinder and len(kinder.lies) == len(rules.lies) - 1 for kinder in rules.without_one())
    while kinder := rules.without_one():
        rules = kinder[0]
    assert rules == Rules(
        "gluster",
        "fuse.glusterfs",
        names_s=0.0,
        misses_s=0.0,
        attributes_s=0.0,
        believed=0.0,
        latency_s=rules.latency_s,
    )


def without(
    problem: str, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, broken: Callable[..., Any]
) -> Outcome:
    """The outcome of the first seed that shows a queue which is broken like this."""
    monkeypatch.setattr(target, name, broken)
    for seed in range(120):
        outcome = run(make_plan(seed))
        if any(kind.startswith(problem) for kind in outcome.kinds()):
            return outcome
    raise AssertionError(f"120 seeds did not show that {name} is broken")


def test_a_queue_that_drops_refs_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A put that takes every id for known loses refs, and the checker says so."""
    without("lost", monkeypatch, Putter, "known", lambda self, stems: set(stems))


def test_a_queue_that_does_not_stamp_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that begin with an old stamp are taken while they run, and the checker says so."""
    without("double leases", monkeypatch, Moves, "stamp_pending", lambda self, stem: True)


def test_a_queue_that_never_reclaims_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refs of a client that died are stranded, and the end of the run says so."""
    without("stranded", monkeypatch, Reclaimer, "round", lambda self, *limits: 0)


def test_a_queue_that_loses_what_it_unpacks_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rewind that takes refs out of a segment without writing them loses them, and the end of the run says so."""
    without("settled", monkeypatch, Revision, "copy", lambda self, named: None)


def test_a_failing_plan_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left fails in the same way, has fewer parts, and can be replayed from the report."""
    outcome = without("lost", monkeypatch, Putter, "known", lambda self, stems: set(stems))
    small = shrink(outcome)
    assert small.plan.size() < outcome.plan.size()
    assert small.plan.size() <= 3
    assert "lost" in small.kinds()
    shown = report(outcome)
    command = next(line for line in shown.splitlines() if "--plan" in line)
    assert run(plan_from_json(command.partition("'")[2].rstrip("'"))).kinds() == small.kinds()


@pytest.mark.parametrize(
    "lock", ["excludes", *(pytest.param(lock, marks=pytest.mark.slow) for lock in ("local", "absent"))]
)
@pytest.mark.parametrize("kind", ["process", "node", "pause"])
def test_a_fault_before_every_operation(lock: str, kind: str) -> None:
    """A consumer is stopped for longer than its lease, killed, or loses power, before each of its operations."""
    plan = small_plan(lock=lock)
    for call in range(1, 400):
        fault = Fault(call, kind, 11.0 if kind == "pause" else 0.0)
        client = replace(plan.clients[1], faults=(fault,))
        outcome = run(replace(plan, clients=(plan.clients[0], client, plan.clients[2])), traced=True)
        assert not outcome.problems, report(outcome)
        tally.count(f"simulated runs with a fault before one operation: {kind}")
        if not any("**" in line for line in outcome.trace):
            return
    raise AssertionError("the client never came to its end")
