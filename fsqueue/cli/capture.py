"""`fsqueue capture`: the rollout side of a run, from a file of prompts to refs in a queue."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

from fsqueue.cli.arguments import as_json, duration, takes_queue, words
from fsqueue.cli.output import count, one_json, remark, shown
from fsqueue.engine.contents import agree
from fsqueue.engine.listing import reading
from fsqueue.errors import InvalidArgumentError
from fsqueue.queue import FileSampleRefQueue
from fsqueue.records import SampleRef
from fsqueue.sources.errors import PromptRefusedError, SourceError

if TYPE_CHECKING:
    from fsqueue.sources import CaptureRun, FeatureSource, Progress, PromptFile

API_KEY = "FSQUEUE_API_KEY"
_PLAIN_EVERY_S = 5.0
_INTERRUPTED = 130
_NEEDED = {"vllm": ("endpoint", "shared_dir", "layers"), "sglang": ("endpoint",), "transformers": ("model",)}
_part = re.compile(r"([0-9]{1,6})/([0-9]{1,6})\Z").match


def _duration(ctx: click.Context, parameter: click.Parameter, text: str) -> float:
    return duration(text)


def _part_of(ctx: click.Context, parameter: click.Parameter, text: str) -> tuple[int, int]:
    match = _part(text)
    if match is None or int(match[1]) >= int(match[2]):
        raise click.BadParameter(f"{text!r} is no part: write 0/4 to 3/4 for the parts of four")
    return int(match[1]), int(match[2])


@click.command(
    epilog="Example:  fsqueue capture /shared/queue --source vllm --endpoint http://node1:8000 "
    "--shared-dir /shared/states --layers 2,16,29,last --prompts prompts.jsonl --store /shared/features"
)
@takes_queue
@click.option("--source", type=click.Choice(["vllm", "sglang", "transformers"]), required=True, help="What to ask.")
@click.option("--prompts", required=True, metavar="FILE", help="JSON Lines with text or token_ids, perhaps id.")
@click.option("--store", required=True, metavar="DIR", help="The feature store; created where it is missing.")
@click.option("--endpoint", metavar="URL", help="The server, such as http://node1:8000.")
@click.option("--layers", help="Which layers it gives, such as 2,16,29,last; normed unless given, but for vllm.")
@click.option("--shared-dir", metavar="DIR", help="vllm: its shared_storage_path, as it is mounted here.")
@click.option("--server-dir", metavar="DIR", help="vllm: what the server calls it, where that differs.")
@click.option("--model", help="vllm: the model's name there; transformers: a model's folder.")
@click.option("--norm-from", metavar="DIR", help="vllm: the model's folder, to store last_hidden_state too.")
@click.option("--dtype", help="sglang, transformers: what the model computes in.")
@click.option("--hidden-size", type=click.IntRange(min=1), help="sglang: the model's.")
@click.option("--weight-version", help="What to call the weights in refs.")
@click.option("--ledger", metavar="DIR", help="Commit here before putting; trainers then need a controller.")
@click.option(
    "--part", default="0/1", callback=_part_of, metavar="I/N", help="Of N such runs, this is number I, from 0."
)
@click.option("--name", help="This producer in the stream; capture-I unless given.")
@click.option("--run-id", type=words, default="run", show_default=True, help="Goes into refs.")
@click.option("--strategy", default="eagle3", show_default=True, help="Goes into refs.")
@click.option("--high", type=click.IntRange(min=1), default=1024, show_default=True, help="Pending refs that pause it.")
@click.option("--low", type=click.IntRange(min=0), help="Pending refs that resume it; half of --high unless given.")
@click.option("--in-flight", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts asked at once.")
@click.option("--timeout", default="2m", show_default=True, callback=_duration, help="How long an answer may take.")
@click.option("--patience", default="10m", show_default=True, callback=_duration, help="How long to try again.")
@click.option("--skip-refused", is_flag=True, help="Go on where the source refuses a prompt.")
@click.option("--quiet", is_flag=True, help="Say nothing while all goes well.")
@as_json
@click.pass_context
def capture(
    ctx: click.Context, /, queue: str, prompts: str, store: str, quiet: bool, as_json: bool, **given: Any
) -> None:
    """Have a target's hidden states over prompts captured, store them, and put refs to them.

    Every line of FILE is checked first. A run that was stopped or killed goes on when the same command is given again:
    prompts whose samples the queue, the ledger or the store has are not computed anew, and no sample is put twice. It
    waits while the trainers are behind, and while the server is away. An API key is taken from $FSQUEUE_API_KEY.
    Exits with 1 where prompts were refused.
    """
    with reading(queue) as layout:
        agree(layout, SampleRef, "put")
    _check_options(given)
    file, total = _checked(prompts, given["part"])
    run: CaptureRun | None = None
    try:
        with ExitStack() as stack:
            show = stack.enter_context(_display(total, quiet))
            run = _prepared(stack, queue, store, given, show)
            report = run.run(file)
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    except (KeyboardInterrupt, SystemExit) as ended:
        done = run.progress.done if run is not None else 0
        remark(f"interrupted: {done} of {count(total, 'prompt')} done; the same command goes on with the others")
        ctx.exit(_INTERRUPTED if isinstance(ended, KeyboardInterrupt) else ended.code)  # type: ignore[arg-type]
    found = {"prompts": total, **vars(report)}
    if as_json:
        one_json({key: value for key, value in found.items() if key != "waiting"})
    elif not quiet:
        remark(_summary(total, report))
    ctx.exit(1 if report.refused else 0)


def _checked(prompts: str, part: tuple[int, int]) -> tuple[PromptFile, int]:
    """Check every line of the file; returns it, and how many prompts it has for this run."""
    from fsqueue.sources import PromptFile

    file = PromptFile(prompts, part)
    try:
        total, bad = file.check()
    except OSError as error:
        raise click.ClickException(f"cannot read {prompts}: {error.strerror}") from None
    for line in bad:
        remark(f"{prompts}:{line.number}: {shown(line.problem)}")
    if bad:
        raise click.ClickException(f"captured nothing: {count(len(bad), 'bad line')} in {prompts}")
    return file, total


def _source(given: dict[str, Any]) -> FeatureSource:
    kind = given["source"]
    if kind == "transformers":
        return _in_process(given)
    options = {
        "weight_version": given["weight_version"],
        "in_flight": given["in_flight"],
        "timeout_s": given["timeout"],
        "patience_s": given["patience"],
        "api_key": os.environ.get(API_KEY),
    }
    if kind == "sglang":
        from fsqueue.sources import SglangSource

        layers = given["layers"] or "normed"
        size = given["hidden_size"]
        return SglangSource(given["endpoint"], layers=layers, dtype=given["dtype"], hidden_size=size, **options)
    from fsqueue.sources import FinalNorm, VllmSource

    return VllmSource(
        given["endpoint"],
        given["shared_dir"],
        layers=given["layers"],
        model=given["model"],
        server_directory=given["server_dir"],
        final_norm=FinalNorm.from_folder(given["norm_from"]) if given["norm_from"] else None,
        label=_name(given),
        **options,
    )


def _in_process(given: dict[str, Any]) -> FeatureSource:
    from fsqueue.sources import TransformersSource

    return TransformersSource(
        given["model"],
        layers=given["layers"] or "normed",
        dtype=given["dtype"] or "float32",
        weight_version=given["weight_version"],
    )


def _check_options(given: dict[str, Any]) -> None:
    missing = [f"--{name.replace('_', '-')}" for name in _NEEDED[given["source"]] if not given[name]]
    if missing:
        raise click.UsageError(f"--source {given['source']} needs {' and '.join(missing)}.")


def _name(given: dict[str, Any]) -> str:
    return str(given["name"] or f"capture-{given['part'][0]}")


def _prepared(stack: ExitStack, queue: str, store: str, given: dict[str, Any], show: Callable[..., None]) -> CaptureRun:
    """Open what the run needs, and join the stream; the stack closes all of it.

    The source comes last: it removes what an earlier life of this name left, and only a member knows that it is over.
    """
    from fsqueue.control.ledger import FileMetadataStore
    from fsqueue.features import SharedDirFeatureStore
    from fsqueue.sources import CaptureRun

    name = _name(given)
    features = stack.enter_context(SharedDirFeatureStore(store))
    handle: FileSampleRefQueue[SampleRef] = stack.enter_context(FileSampleRefQueue(queue, owner=name, create=False))
    ledger = stack.enter_context(FileMetadataStore[SampleRef](given["ledger"])) if given["ledger"] else None
    stack.enter_context(_producing(handle, name, given["part"][1]))
    source = _source(given)
    stack.callback(source.close)
    return CaptureRun(
        source,
        features,
        handle,
        ledger=ledger,
        run_id=given["run_id"],
        strategy=given["strategy"],
        high=given["high"],
        low=given["low"],
        on_progress=show,
        on_refused=_tell if given["skip_refused"] else None,
    )


@contextmanager
def _producing(queue: FileSampleRefQueue[Any], name: str, expected: int) -> Iterator[None]:
    """Take part in the stream as a producer; whatever ends the source, the others wait for the next start."""
    with queue.producer(name, expected=expected, on_sigterm="withdraw") as member:
        try:
            yield
        except (SourceError, InvalidArgumentError, ImportError) as error:
            member.withdraw(str(error))
            raise


def _tell(error: PromptRefusedError) -> None:
    remark(str(error))


def _summary(total: int, report: Progress) -> str:
    parts = [f"{report.captured:,} captured"]
    others = {"found in the store": report.found, "there already": report.known, "refused": report.refused}
    parts += [f"{number:,} {what}" for what, number in others.items() if number]
    return f"{count(total, 'prompt')}: {', '.join(parts)}; {_rates(report)}"


def _rates(report: Progress) -> str:
    seconds = max(report.seconds, 1e-3)
    return f"{report.captured / seconds:.1f} prompts/s, {report.tokens / seconds:,.0f} tokens/s"


@contextmanager
def _display(total: int, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Show a progress bar on a terminal, otherwise a line now and then; both on stderr."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if quiet:
        yield lambda progress: None
    elif not console.is_terminal:
        yield _PlainLines(total)
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        what, rates = TextColumn("{task.description}"), TextColumn("{task.fields[rates]}")
        columns = (what, BarColumn(), MofNCompleteColumn(), rates, TimeRemainingColumn())
        with Bars(*columns, console=console, transient=True) as bars:
            task = bars.add_task("capturing", total=total, rates="")

            def show(progress: Progress) -> None:
                what = "waiting for room" if progress.waiting else "capturing"
                bars.update(task, completed=progress.done, description=what, rates=_rates(progress))

            yield show


class _PlainLines:
    """Print a line every few seconds, and when the run begins and ends to wait."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._last = time.monotonic()
        self._waiting = False

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.waiting == self._waiting and now - self._last < _PLAIN_EVERY_S:
            return
        self._last, self._waiting = now, progress.waiting
        what = "waiting for room in the queue" if progress.waiting else _rates(progress)
        with suppress(BrokenPipeError):
            remark(f"{progress.seconds:6.1f} s  {progress.done} of {count(self._total, 'prompt')}, {what}")
