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
from collections.abc import Callable
from typing import Any

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
    found: dict[str, Any] = {}
    with session(parsed) as run:
        for part in parsed.only:
            found[part] = _PARTS[part](run, parsed)
    run.write(found)
    return 0


def _files(run: Session, parsed: argparse.Namespace) -> list[Row]:
    rows = [row for size in parsed.sizes for row in _files_of(run, size, parsed)]
    print(f"\nput and get, durability {'on' if parsed.durable else 'off'}, {parsed.rounds} interleaved rounds")
    print(table(rows))
    _judge(rows)
    return rows


def _loops(run: Session, parsed: argparse.Namespace) -> list[Row]:
    directory = os.path.join(run.directory, "loops")
    samples = 8 if parsed.quick else 64
    rows = loading.measure(directory, samples, _LOADED_BYTES, parsed.rounds)
    if not parsed.keep:
        shutil.rmtree(directory)
    print(f"\nbatches, {parsed.rounds} interleaved rounds\n{table(rows)}")
    slowest = min((row for row in rows if row["loop"] != "bare"), key=lambda row: float(row["x bare"]))
    what = f"loader: at least {loading.GOAL} of a bare loop over the same files"
    print(_verdict(what, slowest["x bare"], slowest["by CPU"], loading.GOAL))
    return rows


def _ends(run: Session, parsed: argparse.Namespace) -> Row:
    directory = os.path.join(run.directory, "ends")
    os.mkdir(directory)
    samples, size = (3, 1 << 20) if parsed.quick else (24, _END_BYTES)
    ends = pipeline.measure(directory, samples, size, parsed.rounds)
    print(f"\nfrom {ends['producers']} producers to {ends['ranks']} ranks, not durable\n{table([ends])}")
    print(
        _verdict(f"at least {pipeline.GOAL} of the same bytes through bare files", ends["x bare"], None, pipeline.GOAL)
    )
    return ends


_PARTS: dict[str, Callable[[Session, argparse.Namespace], Any]] = {"files": _files, "loops": _loops, "ends": _ends}


def _device() -> str:
    if torch.cuda.is_available():
        return f"a GPU is at hand: {torch.cuda.get_device_name()}"
    return "no GPU is at hand: all tensors are the host's"


def _files_of(run: Session, size: int, parsed: argparse.Namespace) -> list[Row]:
    directory = os.path.join(run.directory, f"files-{size}")
    os.mkdir(directory)
    rows = files.measure(files.Files(directory, size, parsed.durable), parsed.rounds)
    if not parsed.keep:
        shutil.rmtree(directory)  # the next one may need the room
    return rows


def _judge(rows: list[Row]) -> None:
    """Say of each target whether it was reached, at its worst size."""
    for target in files.TARGETS:
        found = [row for row in rows if row["way"] == target.way and row["bytes"] >= target.from_bytes]
        if found:
            slowest = min(found, key=lambda row: float(row["x safetensors"]))
            what = (
                f"{target.way}: at least {target.ratio} of {target.beside} from {files.size_shown(target.from_bytes)}"
            )
            print(_verdict(what, slowest["x safetensors"], min(row["by CPU"] for row in found), target.ratio))


def _verdict(what: str, found: float, by_cpu: float | None, wanted: float) -> str:
    by = "" if by_cpu is None else f" (by CPU {by_cpu:.2f})"
    return f"  {'met   ' if found >= wanted else 'missed'}  {what}: {found:.2f}{by}"


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
    found.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="parts to run (default: all)")
    found.add_argument("--durable", action=argparse.BooleanOptionalAction, default=True, help="fsync what is stored")
    found.add_argument("--rounds", type=int, help="interleaved rounds (default: 7)")
    found.add_argument("--quick", action="store_true", help="a few seconds: to see that it runs, not to measure")
    return found


if __name__ == "__main__":
    sys.exit(main())
