#!/usr/bin/env bash
# Versions: torch 2.13.0, Python 3 on Linux.
#
# A DataLoader with workers installs a SIGCHLD handler. When a worker is killed (out of memory, say), that handler raises
# in the main thread, at whatever line it has come to: not from next(), but in code that has nothing to do with loading.
# Here it is a function that writes a file and renames it, after the batch has been fetched: a `finally` runs, the line
# after the interrupted one does not.
#
# Seen:
#     RuntimeError in settle(), which touches no DataLoader: DataLoader worker (pid …) is killed by signal: Killed.
#
# Exits 1 where the error comes out of next(), or not at all.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5

cat > "$work/train.py" <<'PYTHON'
import os
import re
import signal
import sys
import time
import traceback

from torch.utils.data import DataLoader, IterableDataset


class Numbers(IterableDataset):
    def __iter__(self):
        yield from range(1_000_000)


def settle(path: str, until: float) -> None:
    while time.monotonic() < until:
        with open(f"{path}.new", "w") as file:
            file.write("acknowledged")
        os.replace(f"{path}.new", path)


if __name__ == "__main__":
    loader = DataLoader(Numbers(), batch_size=4, num_workers=1)
    batches = iter(loader)
    next(batches)
    os.kill(batches._workers[0].pid, signal.SIGKILL)
    try:
        settle(f"{sys.argv[1]}/state", time.monotonic() + 30)
    except RuntimeError as error:
        names = {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        first = re.sub(r"\d+", "…", str(error).splitlines()[0], count=1)
        if "settle" in names and not any("next" in name for name in names):
            print(f"RuntimeError in settle(), which touches no DataLoader: {first}")
            sys.exit(0)
    sys.exit(1)
PYTHON
"$work/venv/bin/python" "$work/train.py" "$work"
