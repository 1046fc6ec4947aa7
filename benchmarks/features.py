"""Benchmark the feature store: put and get beside safetensors' own functions, the loader beside a bare loop, and
samples from process to process.

    python benchmarks/features.py --dir /mnt/shared/scratch

Exits with 1 when a process failed or samples were lost, whatever the figures are.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys

import torch

from control_sections.section import Row, table
from measuring.session import Session, parser, session
from storing import files, loading, pipeline

_UNITS = {"K": 1 << 10, "M": 1 << 20}
_END_BYTES = 16 << 20
_LOADED_BYTES = 4 << 20


def main(arguments: list[str] | None = None) -> int:
    parsed = _parser().parse_args(arguments)
    parsed.sizes = parsed.sizes or _sizes("64K" if parsed.quick else "64K,1M,32M,256M")
    parsed.rounds = parsed.rounds or (1 if parsed.quick else 7)
    print(f"torch {torch.__version__}, {_device()}")
    with session(parsed) as run:
        rows = [row for size in parsed.sizes for row in _files(run, size, parsed)]
        print(f"\nput and get, durability {'on' if parsed.durable else 'off'}, {parsed.rounds} interleaved rounds")
        print(table(rows))
        _judge(rows)
        loops = _loops(run, parsed)
        print(f"\nbatches, {parsed.rounds} interleaved rounds\n{table(loops)}")
        loader_s = [row["x bare"] for row in loops if row["loop"] != "bare"]
        print(
            _verdict(f"loader: at least {loading.GOAL} of a bare loop over the same files", min(loader_s), loading.GOAL)
        )
        ends = _ends(run, parsed)
        print(f"\nfrom {ends['producers']} producers to {ends['ranks']} ranks, not durable\n{table([ends])}")
        print(_verdict(f"at least {pipeline.GOAL} of the same bytes through bare files", ends["x bare"], pipeline.GOAL))
    run.write({"files": rows, "loops": loops, "ends": ends})
    return 0


def _device() -> str:
    if torch.cuda.is_available():
        return f"a GPU is at hand: {torch.cuda.get_device_name()}"
    return "no GPU is at hand: all tensors are the host's"


def _files(run: Session, size: int, parsed: argparse.Namespace) -> list[Row]:
    directory = os.path.join(run.directory, f"files-{size}")
    os.mkdir(directory)
    rows = files.measure(files.Files(directory, size, parsed.durable), parsed.rounds)
    if not parsed.keep:
        shutil.rmtree(directory)  # the next one may need the room
    return rows


def _loops(run: Session, parsed: argparse.Namespace) -> list[Row]:
    directory = os.path.join(run.directory, "loops")
    samples = 8 if parsed.quick else 64
    rows = loading.measure(directory, samples, _LOADED_BYTES, parsed.rounds)
    if not parsed.keep:
        shutil.rmtree(directory)
    return rows


def _ends(run: Session, parsed: argparse.Namespace) -> Row:
    directory = os.path.join(run.directory, "ends")
    os.mkdir(directory)
    samples, size = (3, 1 << 20) if parsed.quick else (24, _END_BYTES)
    return pipeline.measure(directory, samples, size, parsed.rounds)


def _judge(rows: list[Row]) -> None:
    """Say of each target whether it was reached, at its worst size."""
    for target in files.TARGETS:
        found = [row["x safetensors"] for row in rows if row["way"] == target.way and row["bytes"] >= target.from_bytes]
        if found:
            what = (
                f"{target.way}: at least {target.ratio} of {target.beside} from {files.size_shown(target.from_bytes)}"
            )
            print(_verdict(what, min(found), target.ratio))


def _verdict(what: str, found: float, wanted: float) -> str:
    return f"  {'met   ' if found >= wanted else 'missed'}  {what}: {found:.2f}"


def _sizes(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part[:-1]) * _UNITS[part[-1:]] for part in text.split(","))
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(f"expected sizes such as 64K,32M, found {text!r}") from None
    if min(found) < 16:
        raise argparse.ArgumentTypeError(f"expected sizes of 16 bytes and more, found {text!r}")
    return found


def _parser() -> argparse.ArgumentParser:
    found = parser(__doc__)
    found.add_argument("--sizes", type=_sizes, help="of a sample (default: 64K,1M,32M,256M)")
    found.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True, help="fsync what is stored")
    found.add_argument("--rounds", type=int, help="interleaved rounds (default: 7)")
    found.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    return found


if __name__ == "__main__":
    sys.exit(main())
