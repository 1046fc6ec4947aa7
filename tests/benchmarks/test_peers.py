"""The comparison with other queues: what is installed is measured and killed, what is not is skipped by name."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from against_peers.base import PeerSubject
from against_peers.kinds import PEERS
from tests.benchmarks.test_scripts import run
from tests.support import ROOT

INSTALLED = [kind for kind, peer in PEERS.items() if importlib.util.find_spec(peer.module.partition(".")[0])]


def compare(tmp_path: Path, *only: str) -> tuple[dict[str, Any], str]:
    """A quick run of some kinds; its JSON and what it printed."""
    result = tmp_path / "result.json"
    options = ("--quick", "--only", ",".join(only), "--json", str(result))
    done = run("peers.py", "--dir", str(tmp_path / "scratch"), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((tmp_path / "scratch").iterdir()) == []
    return json.loads(result.read_text()), done.stdout


def test_killing_a_consumer_tells_who_gives_its_refs_back(tmp_path: Path) -> None:
    """The queue and the SQLite queues do; the bare operations and a queue in memory lose them, and are seen to."""
    found, said = compare(tmp_path, "file", "floor", "sqlite", "sqlite-tuned", "memory")
    assert "filesystem" in said.splitlines()[0]
    gives = {row["kind"]: row for row in found["gives"]}
    assert {kind for kind, row in gives.items() if row["survives_sigkill"]} == {"file", "sqlite", "sqlite-tuned"}
    assert all((row["undelivered"], row["doubled"]) == (0, 0) for row in gives.values())
    assert found["failures"] == []


@pytest.mark.parametrize("kind", list(PEERS))
def test_a_peer(tmp_path: Path, kind: str) -> None:
    """An installed one is measured beside the queue; of a missing one, the command that installs it is printed."""
    found, said = compare(tmp_path, "file", kind)
    assert {row["kind"] for row in found["results"]} == {"file", *({kind} & set(INSTALLED))}
    assert found["missing"] == [missing for missing in (kind,) if missing not in INSTALLED]
    assert (f"pip install '{PEERS[kind].package}'" in said) == (kind not in INSTALLED)


@pytest.mark.parametrize("kind", INSTALLED)
def test_a_peer_carries_refs_unchanged(tmp_path: Path, kind: str) -> None:
    """What was put comes back equal and once, in whatever order, and nothing is left."""
    peer: PeerSubject = PEERS[kind](str(tmp_path), 60.0)
    refs, count = peer.plan([f"s{number}" for number in range(20)], 20)
    peer.put(refs)
    taken = peer.get(count)
    assert sorted(taken, key=lambda ref: ref.sample_id) == sorted(refs, key=lambda ref: ref.sample_id)
    peer.ack(taken)
    assert peer.get(1) == []
    assert peer.leftover() == 0
    peer.close()


def test_an_unknown_kind_is_a_usage_error(tmp_path: Path) -> None:
    """It is named, with those that there are, and nothing is written."""
    done = run("peers.py", "--dir", str(tmp_path), "--only", "file,rabbit")
    assert done.returncode == 2
    assert "rabbit" in done.stderr
    assert "dirq" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_extra_installs_what_the_script_asks_for() -> None:
    """The version ranges of the extra and those that the script prints are the same."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("peers = [", 1)[1].split("]", 1)[0].splitlines()
    assert {line.strip(' ",') for line in lines if line.strip()} == {peer.package for peer in PEERS.values()}
