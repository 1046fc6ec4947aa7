"""A queue that lost its fsqueue.json: what commands say of it, and how it is restored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, NotAQueueError, QueueConfigError
from fsqueue.disk.fileops import FileOps
from fsqueue.engine.settings import Settings
from fsqueue.operate.check.restore import restore
from tests.cli.test_program import snapshot
from tests.support import assert_clean, refs
from tests.support.program import run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A queue with two pending refs, one done and one dead letter, whose fsqueue.json was removed."""
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=60.0, durable=False) as queue:
        queue.put(refs("a", "b", "c", "d"))
        queue.ack(queue.get(1))
        queue.fail(queue.get(1), "no good", retryable=False)
    (tmp_path / "q" / "fsqueue.json").unlink()
    return tmp_path / "q"


@pytest.mark.parametrize("command", ["status", "ls", "check", "init", "config"])
def test_it_is_said_what_is_lost_and_what_restores_it(path: Path, command: str) -> None:
    before = snapshot(path)
    result = run(command, path)
    assert result.exit_code == 3
    assert "has files in pending/ but no fsqueue.json: `fsqueue check --repair --lease-timeout TIME`" in result.stderr
    assert "does not exist" not in result.stderr
    assert command == "init" or snapshot(path) == before


def test_only_what_does_not_exist_is_said_not_to(path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty is no queue: there is no fsqueue.json" in run("status", tmp_path / "empty").stderr
    assert "nowhere does not exist: " in run("status", tmp_path / "nowhere").stderr
    with FileSampleRefQueue(tmp_path / "another") as queue:
        missing = run("audit", queue.path, "--store", tmp_path / "nowhere").stderr
        assert "nowhere does not exist" in missing
        assert "empty is no feature store" in run("audit", queue.path, "--store", tmp_path / "empty").stderr
        assert "empty is no ledger" in run("audit", queue.path, "--ledger", tmp_path / "empty").stderr


@pytest.mark.parametrize(("given", "timeout_s"), [("10m", 600.0), ("never", None)])
def test_repair_writes_it_anew(path: Path, given: str, timeout_s: float | None) -> None:
    dry = run("check", path, "--repair", "--lease-timeout", given, "--dry-run")
    assert dry.exit_code == 0 and "would write fsqueue.json" in dry.stderr
    assert not (path / "fsqueue.json").exists()
    result = run("check", path, "--repair", "--lease-timeout", given, "--run-id", "r")
    assert result.exit_code == 0 and "wrote fsqueue.json" in result.stderr and "clean" in result.stderr
    with FileSampleRefQueue(path, run_id="r", create=False) as queue:
        assert queue.lease_timeout_s == timeout_s
        assert [found.sample_id for found in queue.get(9)] == ["c", "d"]
        assert queue.counts()[2:] == (1, 1)
    assert_clean(path)


def test_missing_directories_are_made_too(path: Path) -> None:
    (path / "tmp").rmdir()
    (path / "leased").rmdir()
    assert run("check", path, "--repair", "--lease-timeout", "1m").exit_code == 0
    assert_clean(path)


def test_a_damaged_one_is_kept_beside(path: Path) -> None:
    (path / "fsqueue.json").write_text("{")
    assert run("check", path, "--repair").exit_code == 3
    assert run("check", path, "--repair", "--lease-timeout", "1m").exit_code == 0
    assert [file.read_text() for file in path.glob(".fsqueue.json.damaged-*")] == ["{"]
    assert json.loads((path / "fsqueue.json").read_text())["lease_timeout_s"] == 60.0
    assert_clean(path)


def test_what_is_whole_or_of_another_format_or_no_queue_s_is_left_alone(path: Path, tmp_path: Path) -> None:
    options = ("--repair", "--lease-timeout", "1m")
    (path / "fsqueue.json").write_text('{"format": 3}')
    assert run("check", path, *options).exit_code == 3
    assert (path / "fsqueue.json").read_text() == '{"format": 3}'
    (tmp_path / "empty").mkdir()
    assert run("check", tmp_path / "empty", *options).exit_code == 3
    assert list((tmp_path / "empty").iterdir()) == []
    assert run("check", tmp_path / "nowhere", *options).exit_code == 3
    FileSampleRefQueue(tmp_path / "whole").close()
    result = run("check", tmp_path / "whole", *options)
    assert result.exit_code == 1 and "`fsqueue config` changes it" in result.stderr


def test_while_somebody_uses_it_it_is_refused(tmp_path: Path) -> None:
    """Who has it open goes by the settings that he remembers; afterwards he is told to open it again."""
    path = tmp_path / "q"
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("a"))
        queue.get(1)
        (path / "fsqueue.json").unlink()
        result = run("check", path, "--repair", "--lease-timeout", "1m")
        assert result.exit_code == 1 and "stop it first" in result.stderr
        assert not (path / "fsqueue.json").exists()


@pytest.mark.parametrize("options", [["--lease-timeout", "1m"], ["--repair", "--lock", "none"], ["--run-id", "r"]])
def test_half_of_it_is_a_slip(path: Path, options: list[str]) -> None:
    assert run("check", path, *options).exit_code == 2


def test_opening_says_so_too(path: Path) -> None:
    with pytest.raises(NotAQueueError, match="writes it anew"):
        FileSampleRefQueue(path)


def test_a_dry_run_of_config_tells_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "q"
    FileSampleRefQueue(path, lease_timeout_s=60.0).close()
    before = snapshot(path)
    result = run("config", path, "--lease-timeout", "10m", "--dry-run", "--json")
    assert json.loads(result.stdout)["lease_timeout_s"] == 600.0 and result.stderr == "would change\n"
    assert snapshot(path) == before
    assert "nothing to change" in run("config", path, "--lease-timeout", "1m", "--dry-run").stderr
    assert run("config", path, "--retry-jitter", "-1", "--dry-run").exit_code == 1
    assert json.loads(run("config", path, "--json").stdout)["lease_timeout_s"] == 60.0


@pytest.mark.parametrize("at", ["rename", "link"])
def test_of_two_that_restore_at_once_one_writes_and_the_other_says_that_it_is_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The other one comes when the first has looked at the damaged file, and is about to move it or to write."""
    (path / "fsqueue.json").write_text("{x")
    real = getattr(FileOps, at)
    first: list[Settings] = []

    def meddle(*args: Any, **kwargs: Any) -> Any:
        if not first and "fsqueue.json" in str(args):
            monkeypatch.setattr(FileOps, at, staticmethod(real))
            first.append(restore(path, lease_timeout_s=5))
        return real(*args, **kwargs)

    monkeypatch.setattr(FileOps, at, staticmethod(meddle))
    with pytest.raises(QueueConfigError, match=r"has its fsqueue\.json: there is nothing to restore"):
        restore(path, lease_timeout_s=7)
    assert json.loads((path / "fsqueue.json").read_text())["queue_id"] == first[0].queue_id
    damaged = [file.read_text() for file in path.glob(".fsqueue.json.damaged-*")]
    assert damaged == ["{x"]
