"""Runs the queue on simulated shared filesystems that lie as real ones do, seed after seed, and checks every history.

    python benchmarks/simulate.py --seeds 5000
    python benchmarks/simulate.py --mount gluster --seeds 500
    python benchmarks/simulate.py --seed 254 --trace
    python benchmarks/simulate.py --plan plan.json --trace
    python benchmarks/simulate.py --members --seeds 1000

A run is a few clients with steps, faults and clocks of their own, and one mount: an NFS, another kind of filesystem
(simulation/kinds.py), or a mix of lies (simulation/rules.py).
It is deterministic: the same seed gives the same run, call by call. A failing seed is made smaller and printed with
its trace and the command that replays it. Exit 1 when anything was wrong.

With --members, clients are producers, consumers and ranks of a stream, which stall, die, withdraw, and come back with
and without a proof that their predecessors are gone (simulation/stream_run.py says what is checked).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from history.checker import Verdict
from simulation.kinds import KINDS, MIXED
from simulation.plan import Plan, make_plan, plan_from_json
from simulation.rules import LIES, UNMEASURED, UNSURVIVED
from simulation.run import Outcome, run
from simulation.shrink import shrink
from simulation.stream_plan import StreamPlan, make_stream_plan, stream_plan_from_json
from simulation.stream_run import run_stream


def main() -> int:
    parsed = _parser().parse_args()
    if parsed.members:
        return _simulate_members(parsed)
    started = time.monotonic()
    total, mounts = Verdict(), Counter[str]()
    calls = failures = runs = 0
    for plan in _plans(parsed):
        outcome = run(plan, traced=parsed.trace)
        total.add(outcome.verdict)
        mounts[f"{plan.rules.mount}, lock {plan.rules.lock if plan.lock == 'flock' else 'off'}"] += 1
        calls += outcome.calls
        runs += 1
        if parsed.trace:
            print("\n".join(outcome.trace))
        if outcome.problems:
            failures += 1
            print(report(outcome, small=not parsed.trace))
            if failures >= parsed.stop_after:
                break
    took_s = time.monotonic() - started
    print(f"{runs} runs in {took_s:.1f} s ({', '.join(f'{name} {n}' for name, n in sorted(mounts.items()))})")
    print(f"{calls:,} file operations; {total.summary()}; failing runs {failures}")
    return 1 if failures else 0


def _simulate_members(parsed: argparse.Namespace) -> int:
    started, total, ends = time.monotonic(), Counter[str](), Counter[str]()
    failures = 0
    for plan in _stream_plans(parsed):
        outcome = run_stream(plan, traced=parsed.trace)
        ends += outcome.ends
        total.update(
            runs=1,
            calls=outcome.calls,
            trained=outcome.trained,
            successions=outcome.successions,
            withdrawals=outcome.withdrawals,
        )
        if parsed.trace:
            print("\n".join(outcome.trace))
        if outcome.problems:
            failures += 1
            print(f"seed {plan.seed} FAILS: {'; '.join(outcome.problems)}\nmount: {plan.rules.describe()}")
            print(f"replay:\n  python benchmarks/simulate.py --members --trace --plan '{plan.to_json()}'")
            if failures >= parsed.stop_after:
                break
    print(f"{total['runs']} runs in {time.monotonic() - started:.1f} s; members: {_counted(ends)}")
    print(
        f"{total['calls']:,} file operations; {total['trained']:,} samples trained, {total['successions']:,} members "
        f"started again, {total['withdrawals']:,} withdrawals; failing runs {failures}"
    )
    return 1 if failures else 0


def _counted(ends: Counter[str]) -> str:
    return ", ".join(f"{how} {number}" for how, number in ends.most_common())


def _stream_plans(parsed: argparse.Namespace) -> Iterator[StreamPlan]:
    if parsed.plan is not None:
        yield stream_plan_from_json(_text_of(parsed.plan))
        return
    for seed in _seeds(parsed):
        yield make_stream_plan(seed, parsed.mount)


def _text_of(plan: str) -> str:
    return plan if plan.startswith("{") else Path(plan).read_text(encoding="utf-8")


def _seeds(parsed: argparse.Namespace) -> Iterable[int]:
    return [parsed.seed] if parsed.seed is not None else range(parsed.first, parsed.first + parsed.seeds)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=500, help="how many (default: 500)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--seed", type=int, help="this one alone")
    parser.add_argument("--plan", help="a plan as it was printed, or a file that holds one")
    parser.add_argument("--trace", action="store_true", help="print every file operation; do not make it smaller")
    parser.add_argument("--mount", choices=[*sorted(KINDS), MIXED], help="the kind of mount (default: by the seed)")
    parser.add_argument(
        "--lies",
        nargs="*",
        default=[],
        choices=sorted({*LIES, *UNMEASURED}),
        help="told by every mount, besides its own",
    )
    parser.add_argument(
        "--unsurvived",
        action="store_true",
        help=f"with those that are off for now: {', '.join(sorted(UNSURVIVED)) or 'none'}",
    )
    parser.add_argument("--members", action="store_true", help="runs of a stream's members")
    parser.add_argument("--stop-after", type=int, default=3, help="failing runs (default: 3)")
    return parser


def _plans(parsed: argparse.Namespace) -> Iterator[Plan]:
    if parsed.plan is not None:
        yield plan_from_json(_text_of(parsed.plan))
        return
    for seed in _seeds(parsed):
        yield make_plan(seed, tuple(parsed.lies), parsed.mount, parsed.unsurvived)


def report(outcome: Outcome, small: bool = True) -> str:
    """A failing run, made small: its trace, what was wrong, and how to see it again."""
    lines = [f"seed {outcome.plan.seed} FAILS: {'; '.join(outcome.problems)}"]
    if small:
        outcome = run(shrink(outcome).plan, traced=True)
        begin = next((at for at, line in enumerate(outcome.trace) if "  -- " in line), 0)
        lines += ["the smallest run found that fails alike:", *outcome.trace[begin:]]
    lines += [f"mount: {outcome.plan.rules.describe()}", *outcome.problems]
    lines += ["replay:", f"  python benchmarks/simulate.py --trace --plan '{outcome.plan.to_json()}'"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
