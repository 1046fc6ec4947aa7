"""Have a real Prometheus scrape a queue, ask it for the metrics, and see an alert of the rules fire and end.

    python benchmarks/prometheus.py --dir DIR

Takes Debian's package of Prometheus, unpacked in DIR, unless one is on the PATH. Checks by promtool, too, that the
rules parse. Prints what was asked and answered, and exits with 1 where something is not as it must be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsqueue
from fsqueue import FileSampleRefQueue, SampleRef
from measuring.environment import environment, one_line

_PACKAGE = "prometheus=2.42.0+ds-5+deb12u1"
_RULES = Path(fsqueue.__path__[0]) / "recipes" / "prometheus_rules.yaml"
_GUARD_S = 120.0
_CONFIGURATION = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: fsqueue
    static_configs: [{{targets: ["{target}"]}}]
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dir", required=True, help="where the queue, the package and Prometheus' data go")
    given = parser.parse_args(arguments)
    print(one_line(environment(given.dir)))
    work = Path(tempfile.mkdtemp(prefix="prometheus-", dir=given.dir))
    try:
        return _run(work)
    finally:
        shutil.rmtree(work)


def _run(work: Path) -> int:
    prometheus, promtool = _programs(work)
    checked = subprocess.run([promtool, "check", "rules", str(_RULES)], capture_output=True, text=True, check=False)
    print(f"promtool check rules: {checked.stdout.strip().splitlines()[-1].strip() or checked.stderr.strip()}")
    if checked.returncode:
        return 1
    path = work / "queue"
    with FileSampleRefQueue(path, lease_timeout_s=600.0, run_id="run-7") as queue, _exporter(path) as target:
        queue.put([_ref(number) for number in range(20)])
        queue.ack(queue.get(5))
        with _server(prometheus, work, target) as ask:
            return _look(queue, ask)


def _look(queue: FileSampleRefQueue[SampleRef], ask: Callable[[str, str], Any]) -> int:
    """Ask for what is there, bury two refs, see the alert fire, and see it end."""
    wrong = 0
    for query, expected in (
        ("fsqueue_up", ["1"]),
        ('fsqueue_refs{state="pending"}', ["15"]),
        ("sum(fsqueue_refs)", ["20"]),
        ('fsqueue_queue_info{run_id="run-7"}', ["1"]),
    ):
        found = _wait_for(lambda query=query: [s["value"][1] for s in ask("query", query)["result"]], expected)  # type: ignore[misc]
        print(f"{query}: {', '.join(found)}")
        wrong += found != expected
    queue.fail(queue.get(2), "CUDA out of memory on 3", retryable=False)

    def firing() -> list[str]:
        return sorted(a["labels"]["alertname"] for a in ask("alerts", "")["alerts"] if a["state"] == "firing")

    fired = _wait_for(firing, ["FsqueueDeadLetters"])
    print(f"firing once two refs have failed: {', '.join(fired) or 'none'}")
    reasons = [s["metric"]["reason"] for s in ask("query", "fsqueue_dead_letters > 0")["result"]]
    print(f"by their reason: {', '.join(reasons)}")
    wrong += fired != ["FsqueueDeadLetters"] or reasons != ["CUDA out of memory on #"]
    print("well" if not wrong else "NOT as it must be")
    return 1 if wrong else 0


def _wait_for(look: Callable[[], list[str]], expected: list[str]) -> list[str]:
    deadline = time.monotonic() + _GUARD_S
    while (found := look()) != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def _ref(number: int) -> SampleRef:
    return SampleRef(f"s{number}", "run-7", None, "file:///features", {}, {}, "eagle3")


def _programs(work: Path) -> tuple[str, str]:
    """Return the paths of prometheus and promtool."""
    if shutil.which("prometheus") and shutil.which("promtool"):
        return "prometheus", "promtool"
    download = work / "download"
    download.mkdir(mode=0o777)
    subprocess.run(["apt-get", "download", "-qq", _PACKAGE], cwd=download, check=True, stderr=subprocess.DEVNULL)
    (package,) = download.glob("*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(work / "installed")], check=True)
    return str(work / "installed/usr/bin/prometheus"), str(work / "installed/usr/bin/promtool")


@contextmanager
def _exporter(path: Path) -> Iterator[str]:
    """Run ``fsqueue metrics --listen``; yields where it serves."""
    command = [sys.executable, "-m", "fsqueue", "metrics", str(path), "--listen", "127.0.0.1:0"]
    with _ended(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        match = re.search(r"http://([^/]+)/metrics", line)
        if match is None:
            raise SystemExit(f"the exporter did not start: {line}{process.stderr.read()}")
        yield match[1]


@contextmanager
def _server(prometheus: str, work: Path, target: str) -> Iterator[Callable[[str, str], Any]]:
    """Run Prometheus; yields what asks its API: a call, and a query for it."""
    (work / "prometheus.yaml").write_text(_CONFIGURATION.format(rules=_RULES, target=target))
    log = work / "prometheus.log"
    command = [
        prometheus, f"--config.file={work}/prometheus.yaml", f"--storage.tsdb.path={work}/data",
        "--web.listen-address=127.0.0.1:0", "--log.level=info",
    ]  # fmt: skip
    with open(log, "wb") as file, _ended(subprocess.Popen(command, stdout=file, stderr=file)) as process:
        base = _address(process, log)

        def ask(call: str, query: str) -> Any:
            asked = f"{base}/api/v1/{call}?{urllib.parse.urlencode({'query': query})}"
            with urllib.request.urlopen(asked, timeout=60) as reply:
                return json.load(reply)["data"]

        yield ask


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Return where a Prometheus that was told to choose a port listens, as its log says, once it is ready."""
    deadline = time.monotonic() + _GUARD_S
    while time.monotonic() < deadline and process.poll() is None:
        text = log.read_text(errors="replace")
        match = re.search(r"[Ll]istening on.*address=(127\.0\.0\.1:\d+)", text)
        if match and "Server is ready" in text:
            return f"http://{match[1]}"
        time.sleep(0.2)
    raise SystemExit(f"Prometheus did not start:\n{log.read_text(errors='replace')[-2000:]}")


@contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[Any]:
    """End a process with its block, and reap it."""
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
