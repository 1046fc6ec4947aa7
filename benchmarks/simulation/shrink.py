"""Makes a failing plan small: fewer clients, steps, faults and lies, as long as it still fails in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from simulation.plan import Client, Plan
from simulation.run import Outcome, run


def shrink(outcome: Outcome, run_plan: Callable[[Plan], Outcome] = run, limit: int = 400) -> Outcome:
    """The smallest outcome found in limit runs that has a problem of a kind that the first one had."""
    wanted = outcome.kinds()
    best = outcome
    runs = 0
    progress = True
    while progress:
        progress = False
        for smaller in _smaller(best.plan):
            if runs >= limit:
                return best
            runs += 1
            tried = run_plan(smaller)
            if tried.kinds() & wanted:
                best, progress = tried, True
                break
    return best


def _smaller(plan: Plan) -> Iterator[Plan]:
    """Plans with one thing less, the largest things first."""
    clients = plan.clients
    if len(clients) > 1:
        for client in clients:
            yield replace(plan, clients=tuple(c for c in clients if c is not client))
    yield from _with_fewer_steps(plan)
    for index, client in enumerate(clients):
        for fault in client.faults:
            yield _with(plan, index, replace(client, faults=tuple(f for f in client.faults if f is not fault)))
    for rules in plan.rules.without_one():
        yield replace(plan, rules=rules)
    yield from _plainer(plan)


def _with_fewer_steps(plan: Plan) -> Iterator[Plan]:
    """Half of a client's steps, a quarter of them, and so on down to one."""
    for index, client in enumerate(plan.clients):
        steps = client.steps
        size = (len(steps) + 1) // 2
        while size:
            for start in range(0, len(steps), size):
                yield _with(plan, index, replace(client, steps=steps[:start] + steps[start + size :]))
            size //= 2


def _plainer(plan: Plan) -> Iterator[Plan]:
    plain = Plan(plan.seed, plan.rules, plan.clients)
    for name in ("lock", "durable", "keep_done", "heartbeat_s", "max_attempts", "created"):
        if getattr(plan, name) != getattr(plain, name):
            yield replace(plan, **{name: getattr(plain, name)})
    for index, client in enumerate(plan.clients):
        if client.skew_s:
            yield _with(plan, index, replace(client, skew_s=0.0))


def _with(plan: Plan, index: int, client: Client) -> Plan:
    return replace(plan, clients=(*plan.clients[:index], client, *plan.clients[index + 1 :]))
