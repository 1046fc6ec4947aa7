"""The benchmark scripts, run as a user runs them, and the layer that makes file operations slow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from fsqueue import FileSampleRefQueue
from fsqueue.disk.fileops import CALLS, using
from slow.layer import SlowMount
from tests.support import GUARD_S, ROOT, InThread, numbered

FORMAT = (ROOT / "fsqueue" / "FORMAT.md").read_text(encoding="utf-8")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("durability", ["--durable", "--no-durable"])
def test_a_quick_run(tmp_path: Path, durability: str) -> None:
    """A run prints the environment first, loses and doubles nothing, leaves nothing behind, and writes its JSON."""
    result = tmp_path / "result.json"
    done = run("bench.py", "--dir", str(tmp_path / "scratch"), "--quick", durability, "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "filesystem" in done.stdout.splitlines()[0]
    assert "nothing lost or doubled" in done.stdout
    assert list((tmp_path / "scratch").iterdir()) == []
    found = json.loads(result.read_text())
    assert set(found) == {"environment", "options", "results", "wakeup", "targets", "verified"}
    assert {row["kind"] for row in found["results"]} == {"file", "floor", "sqlite", "sqlite-tuned", "memory"}
    assert {row["kind"] for row in found["wakeup"]} == {"file", "sqlite", "sqlite-tuned"}
    assert all(verdict["clean"] and verdict["put"] == verdict["delivered"] for verdict in found["verified"])


def test_a_quick_run_beside_another_build(tmp_path: Path) -> None:
    """Two builds, here one and the same, do every case; nothing is lost, and the ratios are there."""
    result = tmp_path / "result.json"
    options = ("--quick", "--no-durable", "--batch", "1,8", "--procs", "1,2", "--json", str(result))
    done = run("builds.py", "--dir", str(tmp_path / "scratch"), "--beside", str(ROOT), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "nothing lost or doubled" in done.stdout
    assert list((tmp_path / "scratch").iterdir()) == []
    rows = json.loads(result.read_text())["results"]
    assert [(row["processes"], row["batch"]) for row in rows] == [(1, 1), (1, 8), (2, 1), (2, 8)]
    assert all(row["times"] > 0 for row in rows)


@pytest.mark.parametrize("bad", ["0", "x", "1,,2"])
def test_bad_numbers_are_usage_errors(tmp_path: Path, bad: str) -> None:
    """A list of numbers that is none is refused before anything is written."""
    done = run("bench.py", "--dir", str(tmp_path), "--batch", bad)
    assert done.returncode == 2
    assert "expected numbers" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_slow_mount_costs_what_a_real_one_was_measured_to_cost(tmp_path: Path) -> None:
    """The naive protocol: 6.1, 5.1 and 2.0 round trips a ref at batch 64, and 14, 11 and 2 alone.

    A real client that was alone made 13, 10 and 2: it kept what its order file held from one lock to the next.
    """
    result = tmp_path / "result.json"
    options = ("--virtual", "--rounds", "2")
    done = run("slow_mount.py", "--dir", str(tmp_path / "scratch"), *options, "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "scratch").iterdir()) == []
    rows = {
        row["batch"]: row for row in json.loads(result.read_text())["results"] if "after the other" in row["subject"]
    }
    steps = ("put_trips", "get_trips", "ack_trips")
    assert [round(rows[64][step], 1) for step in steps] == [6.1, 5.1, 2.0]
    assert [rows[1][step] for step in steps] == [14, 11, 2]
    assert [round(rows[1][f"{step}_ms"], 1) for step in ("put", "get", "ack")] == [17.7, 11.4, 3.3]


def test_a_ref_takes_the_round_trips_that_format_states(tmp_path: Path) -> None:
    """On the slow mount a durable ref takes what FORMAT.md says for NFS 4.2, by batch, from put to ack."""
    result = tmp_path / "result.json"
    options = ("--read-ms", "0", "--modify-ms", "0", "--rounds", "2", "--json", str(result))
    done = run("slow_mount.py", "--dir", str(tmp_path / "scratch"), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    stated = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", FORMAT, re.MULTILINE)
    steps = ("put_trips", "get_trips", "ack_trips", "trips")
    found = {
        row["batch"]: [round(row[step], 1) for step in steps]
        for row in json.loads(result.read_text())["results"]
        if "after the other" not in row["subject"]
    }
    assert found == {int(batch): [float(number) for number in numbers] for batch, *numbers in stated}


def test_only_an_nfs_mount_can_be_counted(tmp_path: Path) -> None:
    """Asked to count the round trips of a directory that is not on NFS, the script says so."""
    done = run("slow_mount.py", "--dir", str(tmp_path / "scratch"), "--real")
    assert done.returncode != 0
    assert "expected nfs or nfs4" in done.stderr


def test_on_the_slow_mount_only_creates_and_renames_wait_for_each_other(tmp_path: Path) -> None:
    """Two stamps are on their way at once; of renames across directories, and of creates in one, only one is."""
    together = threading.Barrier(2)
    mount = SlowMount(sleep=lambda _: together.wait(GUARD_S))
    for name in ("a", "b"):
        (tmp_path / name).touch()
    stamps = [InThread(partial(mount.ops.utime, tmp_path / name)) for name in ("a", "b")]
    assert [stamp.result() for stamp in stamps] == [None, None]

    under_way = [0]

    def alone(_: float) -> None:
        under_way[0] += 1
        assert under_way[0] == 1
        threading.Event().wait(0.001)
        under_way[0] -= 1

    mount = SlowMount(sleep=alone)
    folders = [tmp_path / name for name in ("x", "y", "z")]
    for folder in folders:
        folder.mkdir()
    for number in range(20):
        (folders[0] / f"{number}").touch()
    fds = [os.open(folder, os.O_RDONLY) for folder in folders]
    x, y, z = fds
    works = [
        InThread(partial(mount.ops.rename, f"{n}", f"{n}", src_dir_fd=x, dst_dir_fd=to))
        for n, to in zip(range(20), [y, z] * 10, strict=True)
    ]
    assert [work.result() for work in works] == [None] * 20
    flags = os.O_CREAT | os.O_WRONLY

    def create(name: str) -> None:
        os.close(mount.ops.open(name, flags, dir_fd=x))

    works = [InThread(partial(create, f"new{n}")) for n in range(20)]
    assert [work.result() for work in works] == [None] * 20
    for fd in fds:
        os.close(fd)


def test_the_slow_mount_knows_every_file_operation() -> None:
    """One that is added to the table needs its price here."""
    assert [name for name in CALLS if not hasattr(SlowMount, f"_{name}")] == []


def test_a_queue_works_on_the_slow_mount(tmp_path: Path) -> None:
    """It takes the mount for a remote one, and every round trip of a call is counted."""
    mount = SlowMount(sleep=lambda _: None)
    with using(mount.ops), FileSampleRefQueue(tmp_path / "q") as queue:
        queue.put(numbered(4))
        taken = queue.get(1)
        mount.trips.clear()
        taken += queue.get(3)
        assert taken == numbered(4)
        assert mount.trips["RENAME"] == 3
        assert queue.ack(taken) == []
        assert queue.counts() == (0, 0, 4, 0)


def test_a_quick_run_of_the_scale_measures(tmp_path: Path) -> None:
    """Every measure is printed with its goal, and no ref is lost or doubled among the processes."""
    result = tmp_path / "result.json"
    done = run("scale.py", "--dir", str(tmp_path / "scratch"), "--quick", "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "scratch").iterdir()) == []
    measures = {row["name"]: row for row in json.loads(result.read_text())["measures"]}
    assert set(measures) >= {"listings to open it", "lock held, all of these", "a waiting consumer's CPU"}
    verified = [row for row in measures.values() if row["verifies"]]
    assert len(verified) == 7
    assert all(row["value"] == 0 for row in verified)
    assert measures["listings to open it"]["value"] == 0
    assert all(name in done.stdout for name in measures)


def test_a_quick_run_of_operators_work(tmp_path: Path) -> None:
    """Rates, ratios to another checkout, and the commands over one queue in each state; no ref is lost by them."""
    result, here = tmp_path / "result.json", Path(__file__).parents[2]
    options = ("--quick", "--only", "operators", "--wide", "200", "--backlog", "300", "--beside", str(here))
    done = run("scale.py", "--dir", str(tmp_path / "scratch"), *options, "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    measures = {row["name"]: row["value"] for row in json.loads(result.read_text())["measures"]}
    assert measures["refs lost by all of that"] == 0
    assert measures["rewind of packed refs: time of the other build"] > 0
    assert set(measures) >= {"reconcile_on_restart, 200 refs", "check, 300 packed", "requeue, 300 refs: peak memory"}
    assert all(name in done.stdout for name in measures)


def test_charts(tmp_path: Path) -> None:
    """Each is a PNG with its name; one that would show a single point is left out."""
    pytest.importorskip("matplotlib")
    charts = tmp_path / "charts"
    options = ("--quick", "--backlog", "50,100", "--plots", str(charts))
    done = run("bench.py", "--dir", str(tmp_path / "scratch"), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    names = {"throughput-backlog.png", "throughput-processes.png", "get-latency.png"}
    assert {path.name for path in charts.iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in charts.iterdir())
    done = run(
        "bench.py", "--dir", str(tmp_path / "scratch"), "--quick", "--procs", "1", "--plots", str(tmp_path / "few")
    )
    assert [path.name for path in (tmp_path / "few").iterdir()] == ["get-latency.png"]
