"""What scale.py says of a cluster: paper and simulation agree, and an idle node asks for little."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import scale
from scaling.clients import cycle, restarted
from scaling.requests import Requests, Speed

SPEED = Speed(0.0003, 0.003)


def test_a_quick_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every measure with a goal meets it: in virtual time nothing depends on the host."""
    result = tmp_path / "result.json"
    arguments = ["--dir", str(tmp_path / "scratch"), "--only", "cluster", "--quick", "--json", str(result)]
    assert scale.main(arguments) == 0
    measures = json.loads(result.read_text())["measures"]
    assert [each["name"] for each in measures if each["met"] is False] == []
    assert sum(each["met"] is True for each in measures) == 3
    assert "samples/s" in capsys.readouterr().out
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_run_is_the_same_each_time() -> None:
    """Time is virtual, and clients take turns at file operations alone."""
    first, again = (restarted(3, SPEED, 3, 20.0, 10.0) for _ in range(2))
    assert first == again


def test_nobody_writes_a_record_who_leases_nothing() -> None:
    """Nodes that start together and find nothing pending neither lock nor modify."""
    opened, _ = restarted(3, SPEED, 0, 20.0, 10.0)
    assert (opened.modifies, opened.alone) == (0, {})


def test_each_sample_takes_three_renames() -> None:
    """Into pending/, into leased/, into done/: what a server does one after the other."""
    assert cycle(8, SPEED).alone["renames"] == 3 * 8


def test_a_request_waits_for_those_that_hold_its_directory_alone() -> None:
    """A file that is created is one modification there; its content goes with its close, and is held by nobody."""
    requests = Requests(lambda fd: {7: "tmp", 8: "pending"}[fd])
    created = requests.note("open", ("x", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), {"dir_fd": 7}, 9)
    assert (created.modifies, created.place) == (1, "tmp")
    assert requests.note("write", (9, b""), {}, 0).modifies == 0
    assert requests.note("close", (9,), {}, None).place == ""
    moved = requests.note("rename", ("x", "x"), {"src_dir_fd": 7, "dst_dir_fd": 8}, None)
    assert (moved.place, requests.alone) == ("renames", {"tmp": 1, "renames": 1})
