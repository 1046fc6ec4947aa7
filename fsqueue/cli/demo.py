"""`fsqueue demo`: train a draft head online, live on stderr, with a table or JSON on stdout."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click
from click.core import ParameterSource

from fsqueue.cli.arguments import F, as_json
from fsqueue.cli.ending import sigterm_as_exit
from fsqueue.cli.output import count, data, one_json, remark
from fsqueue.demo.demo_dir import DemoDirectory
from fsqueue.demo.options import DemoOptions, DemoReport, Preemption, Snapshot, how_to_install, missing_packages

_PLAIN_EVERY_S = 5.0
_COMMAND_LINE = ParameterSource.COMMANDLINE


def _option(flag: str, option: str, text: str | None) -> Callable[[F], F]:
    return click.option(flag, option, default=getattr(DemoOptions(""), option), show_default=True, help=text)


@click.command(epilog="Example:  fsqueue demo /tmp/demo --preempt")
@click.argument("directory", required=False, type=click.Path(file_okay=False))
@_option("--samples", "samples", "Chunks of text to capture.")
@_option("--passes", "passes", "How often each chunk is put.")
@_option("--tokens", "tokens", "Tokens in a chunk.")
@_option("--rollouts", "rollouts", "Rollout processes.")
@_option("--trainers", "trainers", "Trainer processes, one rank each.")
@_option("--batch", "batch_size", "Refs of a rank in one optimizer step.")
@_option("--high", "high_watermark", "Pending refs that pause rollouts.")
@_option("--low", "low_watermark", "Pending refs that resume them.")
@click.option("--target", type=click.Path(exists=True, file_okay=False), help="A local Hugging Face causal model.")
@click.option("--kill", is_flag=True, help="SIGKILL one rollout and one trainer in mid-run.")
@click.option("--preempt", is_flag=True, help="Preempt workers as a scheduler does: SIGTERM, SIGKILL, and again later.")
@_option("--seed", "seed", None)
@click.option("--resume", is_flag=True, help="Go on with the run in DIR, from its last checkpoint.")
@as_json
@click.pass_context
def demo(ctx: click.Context, /, directory: str | None, resume: bool, as_json: bool, **given: Any) -> None:
    """Train a draft head for a real language model, by processes that share nothing but DIR.

    Rollouts run the frozen target over English text, store its hidden states in DIR/features and commit refs;
    trainers lease the refs, train, and ack them at their step. DIR must be missing or empty; without it, a temporary
    directory is made and kept, and named at once. Nothing is downloaded. Where all processes were killed, or by Ctrl-C,
    --resume goes on: what was acked after the last checkpoint is trained again, and nothing else. Exits with 1 where a
    sample was lost, failed, committed twice or not trained exactly once, or the queue is left damaged.
    """
    target = _options_of(ctx, directory).target if resume else given["target"]
    missing = missing_packages(target)
    if missing:
        raise click.ClickException(how_to_install(missing))
    from fsqueue.demo.run import resume_demo, run_demo

    if directory is None:
        directory = tempfile.mkdtemp(prefix="fsqueue-demo-")
        remark(f"the run is in {directory}, which is kept")
    with _says_how_to_resume(ctx, directory, as_json), sigterm_as_exit(), _display() as show:
        report = resume_demo(directory, show) if resume else run_demo(DemoOptions(directory, **given), show)
    if as_json:
        one_json({**dataclasses.asdict(report), "ok": report.ok})
    else:
        _print_table(report)
    sys.exit(0 if report.ok else 1)


def _options_of(ctx: click.Context, directory: str | None) -> DemoOptions:
    """Read what the run in a directory was started with, and goes on with."""
    if directory is None:
        raise click.UsageError("--resume needs the DIR of the run.")
    typed = (each for each in ctx.command.params if ctx.get_parameter_source(each.name or "") is _COMMAND_LINE)
    others = sorted(each.opts[0] for each in typed if each.name not in ("directory", "resume", "as_json"))
    if others:
        raise click.UsageError(f"--resume takes the options that the run was started with: leave out {others[0]}.")
    return DemoDirectory(directory).read_options()


@contextmanager
def _says_how_to_resume(ctx: click.Context, directory: str, as_json: bool) -> Iterator[None]:
    """Name the command that goes on with a run which Ctrl-C or SIGTERM ends."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        words = [*ctx.command_path.split(), os.path.abspath(directory), "--resume", *["--json"] * as_json]
        if DemoDirectory(directory).holds_a_run():
            remark(f"\ninterrupted; what was trained is kept in {directory}. To go on:\n\n    {shlex.join(words)}")
        raise


@contextmanager
def _display() -> Iterator[Callable[[Snapshot], None]]:
    """Show a live display on a terminal, otherwise a line now and then; both on stderr."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _PlainLines()
        return
    from rich.live import Live

    with Live(console=console, refresh_per_second=4, transient=True) as live:

        def show(snapshot: Snapshot) -> None:
            if snapshot.message:
                live.console.print(f"[dim]{snapshot.elapsed_s:6.1f} s[/dim]  {snapshot.message}")
            live.update(_panel(snapshot))

        yield show


class _PlainLines:
    """Print a line every few seconds, one for each message, and one when something else is done or waited for."""

    def __init__(self) -> None:
        self._last = 0.0
        self._doing = ""

    def __call__(self, snapshot: Snapshot) -> None:
        if snapshot.message:
            remark(f"{snapshot.elapsed_s:6.1f} s  {snapshot.message}")
            return
        doing = re.sub(r"\d+", "", f"{snapshot.stage}: {snapshot.waits_for}")
        if doing != self._doing or time.monotonic() - self._last > _PLAIN_EVERY_S:
            self._last, self._doing = time.monotonic(), doing
            remark(f"{snapshot.elapsed_s:6.1f} s  {snapshot.stage}: {snapshot.waits_for or _one_line(snapshot)}")


def _one_line(snapshot: Snapshot) -> str:
    losses = " ".join(f"{loss:.2f}" for _, loss in sorted(snapshot.losses.items()))
    counts = f"pending {snapshot.pending}, leased {snapshot.leased}, done {snapshot.done} of {snapshot.total}"
    failed = f", failed {snapshot.failed}" if snapshot.failed else ""
    rate = f", {snapshot.samples_per_s:.1f} samples/s" if snapshot.samples_per_s else ""
    return counts + failed + rate + (f", step {snapshot.step}, loss by rank {losses}" if losses else "")


def _panel(snapshot: Snapshot) -> Any:
    """Lay out the live display's content."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_row(f"[bold]{snapshot.stage}", f"{snapshot.elapsed_s:.0f} s")
    if snapshot.waits_for:
        grid.add_row("waits for", snapshot.waits_for)
    grid.add_row("refs", f"{snapshot.pending} pending, {snapshot.leased} leased, {snapshot.failed} failed")
    grid.add_row("done", ProgressBar(total=snapshot.total, completed=snapshot.done, width=50))
    grid.add_row("", f"{snapshot.done} of {snapshot.total}, {snapshot.samples_per_s:.1f} samples/s")
    for rank, loss in sorted(snapshot.losses.items()):
        grid.add_row(f"rank {rank}", f"loss {loss:.3f}" + (f" at step {snapshot.step}" if rank == 0 else ""))
    return grid


def _print_table(report: DemoReport) -> None:
    rows = list(_rows(report))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        data(f"{click.style(name.ljust(width), bold=True)}  {value}")


def _rows(report: DemoReport) -> Iterator[tuple[str, str]]:
    yield (
        "committed",
        f"{report.put}   ({report.samples} chunks x {report.passes} passes, {report.put_twice} committed twice)",
    )
    yield "trained", f"{report.trained}   in {report.steps} steps, failed {report.failed}"
    each = ": each exactly once" if report.once == report.samples * report.passes else ""
    yield "in the final state", f"{report.once} once, {report.twice} more often, {report.never} not at all{each}"
    yield "delivered twice", f"{report.delivered_twice}, acknowledgements taken back {report.taken_back}"
    yield "lost", str(report.lost)
    yield "started", f"{report.starts} times" if report.starts != 1 else "once"
    yield "killed", ", ".join(f"{kill.worker} after {kill.after_s:.0f} s" for kill in report.kills) or "none"
    yield "preempted", ", ".join(map(_preempted, report.preemptions)) or "none"
    yield "loss", f"{_number(report.loss_first)} at the start, {_number(report.loss_last)} at the end"
    before, after = f"{report.acceptance_before:.1%}", f"{report.acceptance_after:.1%}"
    yield "top-1 acceptance", f"{before} before, {after} after   (held-out text)"
    yield "time", f"{report.seconds:.0f} s, {report.samples_per_s:.1f} samples/s while training"
    for rank in report.ranks:
        starts, loss = count(rank.starts, "start"), _number(rank.loss_last)
        yield f"trainer {rank.rank}", f"{rank.trained} trained of {rank.deliveries} delivered, loss {loss}, {starts}"
    for rollout in report.rollouts:
        starts = count(rollout.starts, "start")
        yield f"rollout {rollout.index}", f"{rollout.put} put, paused {rollout.pauses} times, {starts}"
    yield "ranks agree", "yes" if report.ranks_agree else "NO"
    yield "check", count(report.check_violations, "violation") if report.check_violations else "clean"
    yield "directory", report.directory


def _preempted(it: Preemption) -> str:
    back = "" if it.back_after_s is None else f", back after {it.back_after_s:.0f} s"
    return f"{it.worker} after {it.after_s:.0f} s ({it.how}{back})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
