"""Look at the page of `fsqueue report` in a real browser: wide, narrow, and in print.

    python benchmarks/report_picture.py --dir DIR

Makes a queue of 20,000 refs, with workers that are killed and work that fails, packs a part of what they did, reports
on it, and has headless Chromium, which finds no network, draw the page. Prints where the pictures are, for a
person to look at, and exits with 1 where the browser complained, or a picture is blank.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import get_context
from pathlib import Path

from fsqueue import FileSampleRefQueue, SampleRef
from measuring.environment import environment, one_line

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
REFS = 20_000
_BATCH = 128
_GUARD_S = 120.0
_LEAST_BYTES = 20_000  # of a picture on which there is anything


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", required=True, help="where the queue and the pictures go")
    parser.add_argument("--refs", type=int, default=REFS, help="how many refs the queue gets")
    given = parser.parse_args(arguments)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise SystemExit(f"none of {', '.join(BROWSERS)} is installed: on Debian, apt-get install chromium")
    print(one_line(environment(given.dir)))
    work = Path(tempfile.mkdtemp(prefix="report-", dir=given.dir))
    make_run(work / "queue", given.refs)
    began = time.monotonic()
    command = [sys.executable, "-m", "fsqueue", "report", str(work / "queue"), "-o", str(work / "run.html")]
    subprocess.run(command, check=True)
    size = (work / "run.html").stat().st_size
    print(f"{given.refs:,} refs reported in {time.monotonic() - began:.1f} s, {size:,} bytes")
    shutil.rmtree(work / "queue")
    return draw(browser, work)


def make_run(path: Path, refs: int) -> None:
    """Fill a queue with a run's remains."""
    with FileSampleRefQueue(path, lease_timeout_s=600, run_id="run-7", durable=False, owner="rollout-0") as queue:
        queue.put(
            [SampleRef(f"sample-{n:06}", "run-7", None, "file:///features", {}, {}, "eagle3") for n in range(refs)]
        )
        with queue.producer("rollout-0", expected=2):
            context = get_context("spawn")
            half = int(0.9 * refs) // _BATCH // 2
            limits = {"trainer-0": half // 2, "trainer-1": half, "trainer-2": half // 2}
            workers = [context.Process(target=work_on, args=(str(path), *each)) for each in limits.items()]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
    subprocess.run([sys.executable, "-m", "fsqueue", "pack", str(path), "--older-than", "4s", "--quiet"], check=True)


def work_on(path: str, name: str, batches: int) -> None:
    """Work as a trainer does on whom not all goes well; in the end it is killed with what it leases."""
    with FileSampleRefQueue(path, owner=name, durable=False) as queue, queue.consumer(name, expected=3):
        for step in range(1, batches + 1):
            refs = queue.get(_BATCH)
            if step % 17 == 0:
                queue.fail(refs[:3], f"CUDA out of memory: tried to allocate {step} MiB", retryable=False)
                queue.fail(refs[3:9], "its features are not there yet", retryable=True)
                refs = refs[9:]
            if step % 40 == 0:
                queue.fail(refs[:1], "<b>features</b> of another shape & dtype", retryable=False)
                refs = refs[1:]
            time.sleep(0.05 + 0.001 * step)
            queue.ack(refs, step=step)
        queue.get(_BATCH)
        os.kill(os.getpid(), signal.SIGKILL)


def draw(browser: str, work: Path) -> int:
    """Have the browser draw the page in several ways; return the exit code."""
    page, wrong = (work / "run.html").as_uri(), 0
    ways = {
        "wide.png": ["--window-size=1100,1900", f"--screenshot={work / 'wide.png'}"],
        "narrow.png": ["--window-size=480,2600", f"--screenshot={work / 'narrow.png'}"],
        "print.pdf": ["--no-pdf-header-footer", f"--print-to-pdf={work / 'print.pdf'}"],
    }
    for name, options in ways.items():
        profile = work / "profile"
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr",
            "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", *options, page,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GUARD_S, check=False)
        shutil.rmtree(profile, ignore_errors=True)
        complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        file = work / name
        size = file.stat().st_size if file.exists() else 0
        print(f"{file}: {size:,} bytes", *complaints)
        wrong += bool(complaints) or size < _LEAST_BYTES or done.returncode != 0
    print("look at them" if not wrong else "NOT as it must be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
