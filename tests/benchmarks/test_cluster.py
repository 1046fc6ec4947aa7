"""Recipes under what launches them here without a scheduler; the others are tried by `.ci/cluster`."""

from __future__ import annotations

import pytest

import cluster
from clustering.events import all_events, lacking


@pytest.mark.parametrize("event", ["torchrun: a rank raises", "pods: SIGKILL of a rollout, none given"])
def test_a_run_outlives(event: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends by itself, with each sample once."""
    (found,) = [each for each in all_events() if each.name == event]
    if lacks := lacking(found.under):
        pytest.skip(f"needs {lacks}")
    assert cluster.main(["--events", event]) == 0, capsys.readouterr()
    assert f"| {event} | 1 | 120 | 0 | 0 | 1 |" in capsys.readouterr().out


def test_a_loss_is_seen(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The account names a sample that is missing, one that was trained twice, and one that nobody was to make."""
    import json

    from clustering.process_events import Started
    from fsqueue import FileSampleRefQueue, SampleRef

    class Tiny(Started):
        rollouts, samples_each = 1, 2

    with Tiny(tmp_path_factory.mktemp("cluster") / "run") as run:
        from tests.support import refs

        with FileSampleRefQueue[SampleRef](run.queue_path, create=False) as queue:
            queue.put(refs("rollout-0-000000", "stranger"))
            queue.ack(queue.get(1), step=1)
        (run.folder / "trained").mkdir()
        for step in (1, 2):
            (run.folder / "trained" / f"{step:06d}-0.json").write_text(json.dumps(["rollout-0-000000"]))
        (run.folder / "checkpoint.json").write_text('{"step": 2}')
        account = run.account()
    assert (account.twice, account.missing) == (["rollout-0-000000"], ["rollout-0-000001"])
    assert account.trouble == ["stranger was never to be made"]


def test_the_quick_selection_holds_a_real_requeue() -> None:
    assert "slurm: requeue of a trainer, SIGTERM: withdraw" in {event.name for event in all_events() if event.quick}
