"""Train SpecForge's EAGLE-3 draft over one directory, kill ranks on the way, and account for every sample.

    python benchmarks/specforge_run.py                       # in a temporary directory
    python benchmarks/specforge_run.py --dir /mnt/shared/x   # on a filesystem of yours

SpecForge's own builder, `RolloutWorker`, loader and `Trainer` run in two producer processes and one to three ranks, on
CPUs (gloo; its reference loss in the place of its Triton kernels; a tiny random Llama). Rank 0 is killed inside an
optimizer window and restarted from a checkpoint while the producers live; a producer is killed and restarted; then all
ranks are killed, and another number of them goes on, twice. Needs Python 3.11 and the extra `demo`; SpecForge 0.2.0 is
put into a temporary directory where it is not installed, without what it requires. Exits with 1 where a sample was not
trained exactly once, where a step had more or fewer than its window, or where ledger, queue, store or producers say
otherwise.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from tempfile import mkdtemp

from measuring.environment import environment, one_line
from specforging.packages import NoPackageError, ready
from specforging.settings import Settings

_GUARD_S = 540.0


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    folder = Path(parsed.dir or mkdtemp(prefix="specforge-run-")).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        _parser().error(f"{folder} is not empty")
    print(one_line(environment(str(folder))), flush=True)
    try:
        paths = ready(folder / "packages")
    except NoPackageError as error:
        print(f"specforge_run: {error}", file=sys.stderr)
        return 1
    sys.path[:0] = paths
    settings = Settings(str(folder))
    deviations = _run(settings, paths, parsed.guard)
    if deviations:
        print(f"specforge_run: {len(deviations)} deviations; logs are in {folder}", file=sys.stderr)
        return 1
    if not parsed.keep:
        shutil.rmtree(folder)
    return 0


def _run(settings: Settings, paths: list[str], guard_s: float) -> list[str]:
    # They import SpecForge, which is there only now.
    from specforging.crew import Crew
    from specforging.model import save_target
    from specforging.story import play
    from specforging.verdict import judge

    save_target(settings.at("target"))
    with Crew(settings, paths) as crew:
        outcome = play(settings, crew, guard_s)
    if not outcome.deviations:
        print(judge(settings, outcome))
    for deviation in outcome.deviations:
        print(f"DEVIATION {deviation}")
    if not outcome.deviations:
        said = "each exactly once, in ledger, queue and the trainers' own notes"
        print(f"\n{settings.samples} samples, {said}; {outcome.seconds:.0f} s")
    return outcome.deviations


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", help="an empty or missing directory (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="keep run, checkpoints and logs, also when all is well")
    parser.add_argument("--guard", type=float, default=_GUARD_S, help="give up after so many seconds (default: 540)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
