"""Members of a stream on filesystems that lie, with clocks of their own: they stall, die, leave and come back."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fsqueue.engine.settle import Settler
from fsqueue.stream.agreement import Rendezvous
from fsqueue.stream.joining import Places
from fsqueue.stream.members import Member
from fsqueue.stream.stream import Stream
from simulation.stream_plan import SILENCE_S, make_stream_plan, stream_plan_from_json
from simulation.stream_run import StreamOutcome, run_stream
from tests.sweeps.proof import tally

BLOCK = 50


pytestmark = pytest.mark.usefixtures("noticing_stalls")


def sweep(seeds: range) -> Counter[str]:
    ends = Counter[str]()
    for seed in seeds:
        plan = make_stream_plan(seed)
        outcome = run_stream(plan)
        assert not outcome.problems, (
            f"seed {seed}: {outcome.problems}; see benchmarks/simulate.py --members --seed {seed} --trace"
        )
        ends += outcome.ends
        tally.count("simulated members started again", outcome.successions)
        tally.count("simulated members that withdrew", outcome.withdrawals)
    tally.count("simulated runs of a stream: samples trained twice 0, ends too early or too late 0", len(seeds))
    return ends


@pytest.mark.parametrize("first", range(0, 150, BLOCK))
def test_no_run_of_a_stream_breaks_a_promise(first: int) -> None:
    """It ends when it may and in time, nobody who lives is called missing, and no sample is trained twice."""
    sweep(range(first, first + BLOCK))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1_000, 3_000, 500))
def test_no_run_of_many_breaks_a_promise(first: int) -> None:
    ends = sweep(range(first, first + 500))
    assert len(ends) > 5 and min(ends["was replaced"], ends["somebody is missing"]) > 20


def test_a_run_is_deterministic() -> None:
    """Also where the plan has been through JSON."""
    plan = make_stream_plan(4)
    first, second = run_stream(plan, traced=True), run_stream(stream_plan_from_json(plan.to_json()), traced=True)
    assert len(first.trace) > 1_000 and first.trace == second.trace


def test_every_kind_of_member_and_fault_has_its_seeds() -> None:
    parts = [part for seed in range(150) for part in make_stream_plan(seed).parts]
    assert min(Counter(part.role for part in parts).values()) > 50
    assert min(Counter(part.proof for part in parts).values()) > 50
    assert min(Counter(fault.kind for part in parts for fault in part.faults).values()) > 50
    assert sum(part.understudy for part in parts) > 20 and sum(part.gone for part in parts) > 20
    assert sum(bool(part.withdraws) for part in parts) > 50 and sum(bool(part.twin_after) for part in parts) > 20
    assert sum(make_stream_plan(seed).quorum for seed in range(150)) > 2


def without(problem: str, monkeypatch: pytest.MonkeyPatch, target: Any, name: str, broken: object) -> StreamOutcome:
    """The outcome of the first seed that shows a stream which is broken like this."""
    monkeypatch.setattr(target, name, broken)
    for seed in range(120):
        outcome = run_stream(make_stream_plan(seed))
        if any(found.startswith(problem) for found in outcome.problems):
            return outcome
    raise AssertionError(f"120 seeds did not show that {name} is broken")


def test_a_stream_that_does_not_wait_for_its_producers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without("ended early", monkeypatch, Stream, "all_closed", lambda self, role: True)


def test_a_stream_that_never_ends_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    without("not over", monkeypatch, Stream, "drained", lambda self, besides=frozenset(): False)


def test_a_stream_that_is_impatient_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It calls one silent who has missed no more than a beat."""
    impatient = property(lambda self: self.age_s > SILENCE_S / 4)
    without("called silent", monkeypatch, Member, "_has_fallen_silent", impatient)


def test_acks_of_lost_leases_that_count_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was stopped for longer than its lease, and is not told, has trained what another one trains, too."""
    ack = Settler.ack

    def believing(self: Settler, targets: Any, step: int | None) -> list[str]:
        ack(self, targets, step)
        return []

    without("trained twice", monkeypatch, Settler, "ack", believing)


def test_a_successor_that_waits_for_ever_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has neither a proof that its predecessor is gone, nor takes its silence for one."""
    without("not over", monkeypatch, Places, "_has_gone", lambda self, member, record: member.state != "open")


def test_a_rank_that_waits_for_a_verdict_that_binds_the_one_before_it_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 0 has taken the word of one that it did not know to be replaced, and has gone on."""
    monkeypatch.setattr(Rendezvous, "_is_surely_overtaken", lambda self: self._spoke_at < self.window)
    without("not over", monkeypatch, Rendezvous, "_is_of", lambda self, lead, said, voice: False)
