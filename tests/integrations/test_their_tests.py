"""The command that runs SpecForge's own tests over fsqueue's classes, over a checkout of a test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.their_tests import run
from tests.support.upstream import required

required("specforge.runtime.contracts")

THEIRS = """
import pytest
from specforge.runtime.control_plane import DataFlowController, DPAckController, SQLiteMetadataStore
from specforge.runtime.data_plane import SharedDirFeatureStore
from specforge.runtime.data_plane.sample_ref_queue import SampleRefQueue

def test_theirs(tmp_path):
    queue, ledger = SampleRefQueue(), SQLiteMetadataStore(str(tmp_path / "db"))
    assert queue.get(1) == [] and ledger.all_committed_ids() == []
    assert DPAckController("run", is_authority=True, metadata_store=ledger).status()["queue_depth"] == 0
    store = SharedDirFeatureStore(str(tmp_path / "features"), store_id="st")
    assert store.health()["resident_samples"] == 0 and store.health()["auth_required"] is False

def test_the_insides_of_theirs(tmp_path):
    SQLiteMetadataStore(str(tmp_path / "db"))._conn.execute("SELECT 1")

@pytest.mark.parametrize("one", [DataFlowController, DPAckController.__base__, SampleRefQueue, SharedDirFeatureStore])
def test_whose_it_is(one):
    assert one.__module__.startswith("specforge")

def test_that_wants_something_else():
    assert False
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone has packages `tests` and `specforge` of its own; the latter is not what is run."""
    for name in ("specforge", "tests", "tests/test_runtime"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "tests" / "test_runtime" / "test_control.py").write_text(THEIRS)
    return tmp_path


def test_what_passes_with_ours_in_the_place_of_theirs(checkout: Path) -> None:
    """All of it is replaced, wherever it was imported; a test that fails with theirs is none."""
    only = ["tests/test_runtime"]
    theirs, ours = (run.passed(checkout, only, parts) for parts in ("", "controller queue ledger store"))
    assert {name.rpartition("::")[2] for name in ours} == {"test_theirs"}
    assert len(theirs) == 6 and not any("something_else" in name for name in theirs)


def test_what_is_told(checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A test that looks at insides is told with the reason; any other that fails makes the command fail."""
    known = next(iter(run.INSIDES))
    found = {
        "": {"a::test_a", f"a::{known}", "a::test_b"},
        "queue": {"a::test_a", "a::test_b"},
        "ledger": {"a::test_a"},
    }
    monkeypatch.setattr(run, "passed", lambda checkout, only, parts: found[parts])
    monkeypatch.setattr(run, "WAYS", {"a queue": "queue"})
    assert run.main([str(checkout)]) == 0
    assert f"2 of 3 with a queue\n    a::{known}: {run.INSIDES[known]}\n" in capsys.readouterr().out
    monkeypatch.setattr(run, "WAYS", {"a ledger": "ledger"})
    assert run.main([str(checkout)]) == 1
    assert "1 of 3 with a ledger\n" in (out := capsys.readouterr().out) and "a::test_b: FAILED" in out


def test_a_folder_without_tests_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main([str(tmp_path)])
    assert f"{tmp_path} has no tests/test_runtime" in capsys.readouterr().err
