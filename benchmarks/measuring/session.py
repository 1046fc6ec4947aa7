"""What every benchmark script does: take --dir, print the environment, work in a scratch directory, write JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measuring.environment import environment, one_line


class Session:
    """One run of a script.

    Attributes:
        environment: where it runs.
        directory: a fresh directory, removed at the end unless --keep.
    """

    def __init__(self, parsed: argparse.Namespace, found: dict[str, Any], directory: str) -> None:
        self._parsed = parsed
        self.environment = found
        self.directory = directory

    @property
    def title(self) -> str:
        return one_line(self.environment)

    def write(self, result: dict[str, Any]) -> None:
        """Write the result, the environment first, where --json asks for it."""
        if self._parsed.json:
            text = json.dumps({"environment": self.environment, **result}, indent=1)
            Path(self._parsed.json).write_text(text + "\n", encoding="utf-8")


def parser(doc: str | None, directory: str | None = None) -> argparse.ArgumentParser:
    """The arguments that all scripts have.

    Args:
        doc: the script's docstring, whose first line is the description.
        directory: the default of --dir, which is required where there is none.
    """
    found = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    found.add_argument(
        "--dir", required=directory is None, default=directory, help="a directory on the filesystem to measure"
    )
    found.add_argument("--json", help="write everything measured to this file")
    found.add_argument("--keep", action="store_true", help="leave the queues that were made in --dir")
    return found


@contextmanager
def session(parsed: argparse.Namespace) -> Iterator[Session]:
    """Prints the environment and removes what was made, also after SIGTERM."""
    Path(parsed.dir).mkdir(parents=True, exist_ok=True)
    found = environment(parsed.dir)
    print(one_line(found), flush=True)
    directory = tempfile.mkdtemp(prefix="fsqueue-bench-", dir=parsed.dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield Session(parsed, found, directory)
    finally:
        if not parsed.keep:
            shutil.rmtree(directory, ignore_errors=True)


def counts(text: str) -> tuple[int, ...]:
    """``1,64`` to ``(1, 64)``."""
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, found {text!r}") from None
    if found[0] < 1:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 1, found {found[0]}")
    return found


def progress(line: str) -> None:
    """One line on stderr, overwritten in place; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()
