"""`fsqueue config`: show what a queue stores about itself, and change it while others use it."""

from __future__ import annotations

import click
from msgspec.structs import asdict

from fsqueue.cli.arguments import as_json, dry_run, duration, takes_queue, timeout
from fsqueue.cli.output import age, data, one_json, remark
from fsqueue.engine.configure import configure as change_settings
from fsqueue.engine.configure import would_configure
from fsqueue.engine.listing import reading
from fsqueue.engine.onlooker import time_there
from fsqueue.engine.settings import Settings
from fsqueue.operate.operator import operator


@click.command(epilog="Example:  fsqueue config /shared/queue --lease-timeout 10m")
@takes_queue
@click.option("--lease-timeout", type=timeout, metavar="TIME", help="Such as 10m, or never.")
@click.option("--retry-delay", type=duration, help="How long a ref that failed waits before it comes again.")
@click.option("--retry-backoff", type=float, help="By how much longer after each further failure.")
@click.option("--retry-jitter", type=float, help="By which part, at most, longer by chance.")
@click.option("--max-hold", type=timeout, metavar="TIME", help="For how long a ref may be held, such as 1h, or never.")
@dry_run
@as_json
@click.pass_context
def config(ctx: click.Context, /, queue: str, dry_run: bool, as_json: bool, **changes: float | None) -> None:
    """Print what a queue stores: its lease timeout, its lock, its run, and for how long refs wait that have failed.

    With options, change that first, also while others use the queue: they take it up within half a minute, and always
    before a lease ends by it. What was leased under a longer timeout may rely on that for as long again.
    """
    given = {
        f"{name}_s" if name in ("lease_timeout", "retry_delay", "max_hold") else name: value
        for name, value in changes.items()
        if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }
    with reading(queue) as layout:
        settings = before = layout.settings
        if dry_run:
            settings = would_configure(layout, given, time_there(layout))
    if given and not dry_run:
        with operator(queue, before) as handle:
            settings = change_settings(handle, given)
    if as_json:
        # Not to_builtins, which leaves out what is as it is by default: the keys are always the same.
        one_json({"queue": queue, **asdict(settings), "retry": asdict(settings.retry)})
    else:
        _print(settings)
    if given:
        changed = "would change" if dry_run else "changed"
        remark(changed if settings != before else "nothing to change: so it was")


def _print(settings: Settings) -> None:
    timeout_s, retry = settings.lease_timeout_s, settings.retry
    data(f"lease timeout  {'never' if timeout_s is None else age(timeout_s)}")
    waits = f"{age(retry.first_s)}, {retry.backoff:g} times as long each time, up to {retry.jitter:.0%} more by chance"
    data(f"retry delay    {waits if retry.first_s else 'none'}")
    if settings.max_hold_s is not None:
        data(f"max hold       {age(settings.max_hold_s)}")
    data(f"lock           {settings.lock}")
    data(f"run            {settings.run_id or '-'}")
