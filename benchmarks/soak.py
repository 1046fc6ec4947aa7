"""Run a queue for long under everything that goes wrong in practice, and account for every ref.

    python benchmarks/soak.py --dir /mnt/shared/soak --minutes 10 --kill-every 2 --nodes 2
    python benchmarks/soak.py --dir /mnt/shared/soak --kill-every 2 --join   # on another node

Real processes put and get in all ways there are, while they are killed, stopped for longer than the lease, and
restarted, refs are moved by hand, the order hint is damaged, and with --fill a small disk fills up and empties.
At the end the queue is drained, every call of every process goes to the checker of histories, and the queue to
`fsqueue check`. Exits with 0 when nothing was lost, doubled without an explanation, leased twice or damaged.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

from fsqueue import FileSampleRefQueue
from measuring.environment import environment, one_line
from soaking.chaos import Chaos
from soaking.crew import Crew
from soaking.disk import DiskError, SmallDisk
from soaking.interrupts import deferred, install
from soaking.report import Report
from soaking.site import Clock, Settings, Site, wait_until

_TICK_S = 0.02
_PROGRESS_S = 10.0
_DRAIN_S = 180.0
_JOIN_S = 120.0
_JOIN_BEFORE_S = 1.0
_BEHIND_S = 60.0


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.join and parsed.fill:
        parser.error("--fill mounts a disk of this host's own: nobody can join on it")
    if not parsed.join and os.path.isdir(parsed.dir) and os.listdir(parsed.dir):
        parser.error(f"{parsed.dir} is not empty")
    os.makedirs(parsed.dir, exist_ok=True)
    found = environment(parsed.dir)
    print(one_line(found), flush=True)
    install()
    try:
        return _join(parsed) if parsed.join else _lead(parsed, found)
    except KeyboardInterrupt:
        print("soak: interrupted; all processes are reaped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", required=True, help="an empty or missing directory on the filesystem to try")
    parser.add_argument("--minutes", type=_positive, default=1.0, help="for how long (default: 1)")
    parser.add_argument("--producers", type=int, default=2, help="processes that put (default: 2)")
    parser.add_argument("--consumers", type=int, default=2, help="processes that get (default: 2)")
    parser.add_argument("--kill-every", type=_positive, default=2.0, help="seconds between kills (default: 2)")
    parser.add_argument("--lease-timeout", type=_positive, default=2.0, help="of the queue, seconds (default: 2)")
    parser.add_argument("--fill", type=int, metavar="MIB", help="mount a disk of this size (as root) and fill it")
    parser.add_argument("--nodes", type=int, default=1, help="begin once so many take part, this one included")
    parser.add_argument("--join", action="store_true", help="take part in the soak that another node runs in --dir")
    parser.add_argument("--seed", type=int, help="of everything random but the scheduling (default: a new one)")
    parser.add_argument("--keep", action="store_true", help="keep queue and logs, also when all is well")
    parser.add_argument("--json", metavar="FILE", help="write everything that was found to this file")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number, found {text}")
    return value


def _lead(parsed: argparse.Namespace, found: dict[str, Any]) -> int:
    """The first node: settles the settings, and judges at the end."""
    site = Site(parsed.dir)
    site.make()
    clock = Clock.measured(site.directory)
    with ExitStack() as stack:
        disk = _small_disk(parsed, site, stack)
        queue = "disk/queue" if disk else "queue"
        seed = random.SystemRandom().randrange(2**32) if parsed.seed is None else parsed.seed
        settings = Settings(queue, parsed.lease_timeout, seed)
        FileSampleRefQueue(site.queue_of(settings), lease_timeout_s=settings.lease_timeout_s).close()
        site.announce(unsure_s=clock.unsure_s, begun=False, done=False)
        site.publish(settings)
        report = Report(site, settings, {"environment": found, "options": vars(parsed), "seed": seed})
        _run(parsed, site, settings, clock, report, disk)
        for problem in _wait_for_others(site):
            report.problem(problem)
        report.judge()
        if disk and (report.problems or parsed.keep):
            shutil.copytree(site.queue_of(settings), site.directory / "queue")
    print(report.text())
    if parsed.json:
        with open(parsed.json, "w", encoding="utf-8") as file:
            json.dump(report.facts(), file, indent=1, default=str)
    _leave(parsed, site, report)
    return 1 if report.problems else 0


def _small_disk(parsed: argparse.Namespace, site: Site, stack: ExitStack) -> SmallDisk | None:
    if not parsed.fill:
        return None
    try:
        with deferred():
            disk = stack.enter_context(SmallDisk(site.disk, parsed.fill))
    except DiskError as error:
        print(f"soak: the disk does not fill up in this run: {error}", file=sys.stderr)
        return None
    print(f"the queue is on a tmpfs of {parsed.fill} MiB, which fills up and empties")
    return disk


def _join(parsed: argparse.Namespace) -> int:
    """Another node: the same chaos for its own workers, and on the same queue; the first node judges."""
    site = Site(parsed.dir)
    if not wait_until(lambda: site.settings() is not None, _JOIN_S):
        print(f"soak: nobody has begun a soak in {parsed.dir}", file=sys.stderr)
        return 1
    settings = site.settings()
    assert settings is not None
    site.make()
    clock = Clock.measured(site.logs)
    ends_at = site.ends_at()
    if ends_at is not None and clock() > ends_at - _JOIN_BEFORE_S:
        print(f"soak: the soak in {parsed.dir} is over, or almost", file=sys.stderr)
        return 1
    site.announce(unsure_s=clock.unsure_s, begun=False, done=False)
    report = Report(site, settings, {})
    try:
        _run(parsed, site, settings, clock, report, None)
    except BaseException:
        report.problem("it was interrupted")
        raise
    finally:
        site.announce(unsure_s=clock.unsure_s, begun=True, done=True, doings=report.counts, problems=report.problems)
    print("\n".join([report.doings(), *report.problems]))
    return 1 if report.problems else 0


def _run(
    parsed: argparse.Namespace, site: Site, settings: Settings, clock: Clock, report: Report, disk: SmallDisk | None
) -> None:
    """Workers and chaos until the time is over; in the first node then the drain, once the others have left."""
    with Crew(site, settings, clock) as crew:
        crew.start("producer", parsed.producers)
        crew.start("consumer", parsed.consumers)
        ends_at = _begin(parsed, site, crew, clock, report)
        chaos = Chaos(site, settings, crew, clock, parsed.kill_every, first=not parsed.join, disk=disk)
        try:
            shown_at = clock()
            while (now := clock()) < ends_at or (_is_behind(crew, chaos, ends_at) and now < ends_at + _BEHIND_S):
                crew.tend()
                chaos.tick()
                if clock() - shown_at >= _PROGRESS_S:
                    shown_at = clock()
                    report.progress(ends_at - shown_at, crew.tally, chaos.counts)
                time.sleep(_TICK_S)
        finally:
            chaos.end()
        crew.finish()
        if not parsed.join:
            _wait_for_others(site)
            if not crew.drain(_DRAIN_S):
                report.problem(f"stranded: the queue was not empty after {_DRAIN_S:.0f} s of draining")
        report.note(asdict(crew.tally), chaos.counts)


def _is_behind(crew: Crew, chaos: Chaos, ends_at: float) -> bool:
    return chaos.owes(ends_at) or not crew.is_whole()


def _begin(parsed: argparse.Namespace, site: Site, crew: Crew, clock: Clock, report: Report) -> float:
    """Wait until the workers of all nodes that are to take part have begun; return when the soak ends.

    The time counts from here: on a busy machine a worker may need longer to start than a short soak lasts.
    """

    def begun() -> bool:
        at_work = [node for node, facts in site.nodes().items() if facts["begun"]]
        return len(at_work) >= int(parsed.nodes)

    if not wait_until(crew.is_at_work, _JOIN_S):
        report.problem(f"the workers of {site.node} have not begun within {_JOIN_S:.0f} s")
    site.announce(unsure_s=clock.unsure_s, begun=True, done=False)
    if parsed.join:
        wait_until(lambda: site.ends_at() is not None, 2 * _JOIN_S)
        return site.ends_at() or clock()
    if not wait_until(begun, _JOIN_S):
        report.problem(f"fewer than {parsed.nodes} nodes have joined within {_JOIN_S:.0f} s")
    ends_at: float = clock() + 60 * parsed.minutes
    site.publish_end(ends_at)
    return ends_at


def _wait_for_others(site: Site) -> list[str]:
    """Wait until the nodes that have joined are done; what is wrong with them."""

    def others() -> dict[str, dict[str, Any]]:
        return {node: facts for node, facts in site.nodes().items() if node != site.node}

    if not wait_until(lambda: all(facts["done"] for facts in others().values()), _JOIN_S):
        return [f"node {node} has not finished within {_JOIN_S:.0f} s" for node, f in others().items() if not f["done"]]
    return [f"{node}: {problem}" for node, facts in others().items() for problem in facts["problems"]]


def _leave(parsed: argparse.Namespace, site: Site, report: Report) -> None:
    """Remove what this run has made, unless there is something to look into."""
    if parsed.keep or report.problems:
        print(f"queue and logs are kept in {site.directory}", file=sys.stderr)
        return
    for path in site.directory.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
