"""`fsqueue metrics`: what Prometheus reads, by the library's own parsers."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fsqueue import FileSampleRefQueue
from fsqueue.disk.fileops import FileOps
from fsqueue.operate import metrics
from fsqueue.operate.metrics import OTHER, UNREAD, DeadLetters
from fsqueue.operate.status import status
from tests.cli.test_program import program, snapshot
from tests.support import ROOT, Queue, names_in, numbered, refs
from tests.support.program import PROGRAM, run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue in which every state has some, with a producer, and a lease timeout."""
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=60.0, run_id='the "run"', durable=False) as queue:
        queue.put(numbered(10))
        queue.ack(queue.get(2))
        queue.fail(queue.get(3), "CUDA out of memory: tried 17 MiB\nTraceback", retryable=False)
        queue.get(1)
        with queue.producer("p", expected=2):
            pass
    return tmp_path / "q"


def values(families: Any) -> dict[str, float]:
    """Return the samples by name and labels other than the queue's."""
    return {
        " ".join([sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "queue")]): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_a_scrape_sees(path: Path) -> None:
    """In OpenMetrics, as valid as the library's parser wants it, and without a change in the queue."""
    before = snapshot(path)
    result = run("metrics", path)
    assert (result.exit_code, snapshot(path)) == (0, before) and result.stdout.endswith("# EOF\n")
    found = values(parse_openmetrics(result.stdout))  # type: ignore[no-untyped-call]
    assert found.pop("fsqueue_oldest_pending_age_seconds") >= found.pop("fsqueue_oldest_lease_age_seconds") >= 0
    assert found == {
        "fsqueue_up": 1, 'fsqueue_queue_info flock the "run"': 1, "fsqueue_lease_timeout_seconds": 60,
        "fsqueue_refs pending": 4, "fsqueue_refs leased": 1, "fsqueue_refs done": 2, "fsqueue_refs failed": 3,
        "fsqueue_paused": 0, "fsqueue_delayed_refs": 0,
        "fsqueue_dead_letters CUDA out of memory: tried # MiB": 3,
        "fsqueue_owners alive": 1, "fsqueue_owners dead": 0, "fsqueue_owners unknown": 0,
        "fsqueue_members producer closed": 1, "fsqueue_members_expected producer": 2,
    }  # fmt: skip


def test_several_queues_of_which_one_is_down(path: Path, tmp_path: Path) -> None:
    """The others are told all the same; a person, and cron, hear of it."""
    result = run("metrics", path, tmp_path / "nowhere")
    assert result.exit_code == 1 and "nowhere does not exist" in result.stderr
    ups = re.findall(r'^fsqueue_up\{queue="(.*)"\} (.*)$', result.stdout, re.M)
    assert ups == [(str(path), "1.0"), (str(tmp_path / "nowhere"), "0.0")]


def test_a_textfile_is_for_node_exporter(path: Path, tmp_path: Path) -> None:
    """In Prometheus' older text, which that one reads, replaced at once, with nothing left beside it."""
    folder = tmp_path / "textfile"
    folder.mkdir()
    for _ in range(2):
        assert run("metrics", path, "--textfile", folder / "fsqueue.prom").exit_code == 0
    assert [file.name for file in folder.iterdir()] == ["fsqueue.prom"]
    assert values(parse_text((folder / "fsqueue.prom").read_text()))["fsqueue_refs pending"] == 4
    result = run("metrics", path, "--textfile", tmp_path / "nowhere" / "fsqueue.prom")
    assert result.exit_code == 1 and "cannot write" in result.stderr


@pytest.fixture
def served(path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves the metrics, and where."""
    command = [*PROGRAM, "metrics", str(path), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        match = re.search(r"http://\S+/metrics", line)
        assert match, line
        yield process, match[0]
        process.kill()


def test_it_listens_until_it_is_stopped(path: Path, served: tuple[subprocess.Popen[str], str]) -> None:
    """Each scrape looks anew; a queue that goes away is down, and comes back."""
    process, url = served

    def scraped() -> dict[str, float]:
        with urllib.request.urlopen(url, timeout=60) as reply:
            return values(parse_text(reply.read().decode()))

    assert scraped()["fsqueue_refs pending"] == 4
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("more"))
    assert scraped()["fsqueue_refs pending"] == 5
    path.rename(path.with_name("away"))
    assert scraped() == {"fsqueue_up": 0}
    path.with_name("away").rename(path)
    assert scraped()["fsqueue_up"] == 1
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


def test_a_dead_letter_that_cannot_be_read_takes_no_queue_down(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, read = names_in(path, "failed")[0], FileOps.read_file

    def read_file(ops: FileOps, dir_fd: int, name: str) -> bytes:
        if name == broken:
            raise OSError(errno.EIO, "the disk", name)
        return read(ops, dir_fd, name)

    monkeypatch.setattr(FileOps, "read_file", read_file)
    letters = DeadLetters(str(path))
    assert letters.count() == {"CUDA out of memory: tried # MiB": 2, UNREAD: 1}
    monkeypatch.undo()
    assert letters.count() == {"CUDA out of memory: tried # MiB": 3}


def test_scrapers_that_come_at_once_look_one_after_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one look notes, as which queues are down, is not another's."""
    exporter = metrics.Exporter([path])
    free: list[bool] = []

    def look(queue: str) -> Any:
        free.append(exporter._looking.acquire(blocking=False))
        return status(queue)

    monkeypatch.setattr(metrics, "status", look)
    assert len(list(exporter.collect())) == len(list(exporter.collect())) > 5
    assert free == [False, False]


def test_dead_letters_are_read_once_and_their_reasons_are_few(path: Path, queue: Queue) -> None:
    """As many are read in a look as a scrape has time for; what is frequent has a label of its own."""
    queue.put(numbered(1200, "n"))
    for number, ref in enumerate(queue.get(1200)):
        queue.fail([ref], f"reason {'abcdefghijklmnopqrstuvwxyz'[number % 26]} {number}", retryable=False)
    letters = DeadLetters(str(path))
    assert letters.count()[UNREAD] > 600
    letters.count()
    found = letters.count()
    assert found.total() == 1203 and len(found) == 21 and UNREAD not in found and found[OTHER] > 0
    assert found["reason a #"] > 40
    for name in names_in(path, "failed")[:-3]:
        (path / "failed" / name).unlink()
    assert letters.count().total() == 3


@pytest.mark.parametrize("name", ["prometheus_rules.yaml", "grafana_dashboard.json"])
def test_what_lies_beside_asks_for_metrics_that_exist(path: Path, name: str) -> None:
    text = (ROOT / "fsqueue" / "recipes" / name).read_text()
    asked = set(re.findall(r"fsqueue_[a-z_]+", text))
    offered = set(re.findall(r"^(fsqueue_[a-z_]+)", run("metrics", path).stdout, re.M))
    assert asked and asked <= offered
    if name.endswith(".json"):
        panels = json.loads(text)["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels) == 8


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--listen", "here"], "HOST:PORT"),
        (["--listen", "127.0.0.1:99999"], "HOST:PORT"),
        (["--listen", "127.0.0.1:0", "--textfile", "x"], "not both"),
    ],
)
def test_slips(path: Path, arguments: list[str], says: str) -> None:
    result = run("metrics", path, *arguments)
    assert result.exit_code == 2 and says in result.stderr
    assert "Name queues" in run("metrics").stderr


def test_without_the_library(path: Path, tmp_path: Path) -> None:
    """The text says what to install."""
    (tmp_path / "prometheus_client.py").write_text("raise ModuleNotFoundError(name='prometheus_client')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from fsqueue.cli.main import main; main()"
    command = [sys.executable, "-c", code, "metrics", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1 and "fsqueue-shared[metrics]" in result.stderr and "Traceback" not in result.stderr
    assert program("status", path).returncode == 0
