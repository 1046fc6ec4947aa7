"""The recipes' programs, run as files by real processes: stopped or killed, and started again, they lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clustering.process_events import Started
from fsqueue import FileSampleRefQueue
from fsqueue.operate.show import entries
from tests.support import GUARD_S


@dataclass(frozen=True)
class Sample:
    """As in sample.py, which a test does not find."""

    sample_id: str
    uri: str = ""


class Small(Started):
    samples_each = 12


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Small]:
    """A run of two rollouts with 12 samples each, prepared and not started."""
    with Small(tmp_path / "run") as it:
        yield it


def rollout(run: Small, index: int, **more: str) -> subprocess.Popen[bytes]:
    return run.begin("python", "rollout.py", *run.of_rollout(index), **more)


def ranks(run: Small, world: int, batch: int = 2, **more: str) -> list[subprocess.Popen[bytes]]:
    """Start all ranks of a group, as torchrun does."""
    command = "python", "trainer.py", str(run.folder), f"--batch={batch}"
    return [run.begin(*command, RANK=str(rank), WORLD_SIZE=str(world), **more) for rank in range(world)]


def end(run: Small, process: subprocess.Popen[bytes], number: int) -> int:
    """Signal a process, reap it, and expect no more of it; return its exit code."""
    process.send_signal(number)
    run.forget(process)
    return process.wait(GUARD_S)


def put(run: Small) -> int:
    return len(entries(run.queue_path, ["pending", "leased", "done"]))


def test_an_undisturbed_run_trains_each_sample_once(run: Small) -> None:
    """Rollouts and ranks end by themselves; what is no full batch for every rank is trained too."""
    rollout(run, 0)
    rollout(run, 1)
    ranks(run, 2, batch=5)
    account = run.ended()
    assert account.is_well, account
    assert account.samples == 24


def test_a_rollout_that_was_killed_goes_on_with_the_first_that_is_missing(run: Small) -> None:
    rollout(run, 1)
    first = rollout(run, 0)
    run.wait_until(lambda: any(entry.id == "rollout-0-000004" for entry in entries(run.queue_path, ["pending"])), "4")
    end(run, first, signal.SIGKILL)
    rollout(run, 0)
    ranks(run, 1)
    account = run.ended()
    assert account.is_well, account


def test_a_rollout_asks_also_what_was_trained(run: Small) -> None:
    """Started once more when all is done, it puts nothing: a put of an acked id would have it trained twice."""
    rollout(run, 0)
    rollout(run, 1)
    ranks(run, 1)
    assert run.ended().is_well
    rollout(run, 0)
    account = run.ended()
    assert account.is_well, account


def test_a_rollout_that_is_told_to_stop_withdraws(run: Small) -> None:
    """It ends with 143, by which its launcher knows that it has not finished."""
    rollout(run, 1)
    first = rollout(run, 0)
    run.wait_until(lambda: put(run) > 2, "samples")
    assert end(run, first, signal.SIGTERM) == 128 + signal.SIGTERM
    assert {member.record.name: member.standing for member in run.members()}["rollout-0"] == "withdrawn"
    rollout(run, 0)
    ranks(run, 1)
    account = run.ended()
    assert account.is_well, account


@pytest.mark.parametrize("world", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_start_again_in_another_number(run: Small, world: int, number: int) -> None:
    """They go on from the checkpoint; what was acked after it comes again, and is in the final state once."""
    rollout(run, 0)
    rollout(run, 1)
    first = ranks(run, 2)
    run.wait_for_done(8)
    for process in first:
        end(run, process, number)
    ranks(run, world)
    account = run.ended()
    assert account.is_well, account


def test_what_was_trained_after_the_checkpoint_is_forgotten(run: Small) -> None:
    """Killed between the shard and the next checkpoint, a rank's shard is removed, and its samples come again."""
    with FileSampleRefQueue(run.queue_path, ref_type=Sample, create=False) as queue:
        queue.put([Sample(f"rollout-0-{n:06d}") for n in range(4)])
        queue.ack(queue.get(2), step=1)
        queue.ack(queue.get(2), step=2)
    shards = run.folder / "trained"
    shards.mkdir()
    for step in (1, 2):
        ids = [f"rollout-0-{n:06d}" for n in (2 * step - 2, 2 * step - 1)]
        (shards / f"{step:06d}-0.json").write_text(json.dumps(ids))
    (run.folder / "checkpoint.json").write_text('{"step": 1}')
    rollout(run, 0)
    rollout(run, 1)
    ranks(run, 1)
    account = run.ended()
    assert account.is_well, account


def test_a_rank_that_has_lost_a_lease_starts_again(run: Small) -> None:
    """Its samples are somebody else's by now: it leaves with 143 before they are in a checkpoint."""
    trained = '    shard = run / "trained" / f"{step:06d}-{rank}.json"\n'
    program = run.folder / "trainer.py"
    text = program.read_text()
    assert trained in text
    taken = (
        '    os.system(f"fsqueue release {run}/queue --owner {os.uname().nodename} --force") if step == 2 else None\n'
    )
    program.write_text(text.replace(trained, taken + trained))
    rollout(run, 0)
    rollout(run, 1)
    (rank,) = ranks(run, 1)
    run.forget(rank)
    assert rank.wait(GUARD_S) == 143
    program.write_text(text)
    ranks(run, 1)
    account = run.ended()
    assert account.is_well, account


def test_the_policy_is_what_prepare_was_told(run: Small) -> None:
    """Prepared again, in a run that goes on, it changes what it is told, and nothing else."""
    run.call("prepare.py", str(run.folder), "--restart-s=77")
    with FileSampleRefQueue(run.queue_path, create=False) as queue:
        policy = queue.stream().policy()
    assert (policy.restart_s, policy.await_s) == (77.0, 600.0)


def test_the_recipes_need_nothing_beside_them(run: Small) -> None:
    """Each is copied alone with what it imports: no path of the checkout is in them."""
    for recipe in run.folder.glob("*.*"):
        if recipe.is_file():
            assert os.fspath(Path(__file__).parents[2]) not in recipe.read_text()


@pytest.mark.parametrize(
    "program",
    [["rollout.py", "--index=0", "--rollouts=1", "--samples=2"], ["trainer.py"], ["ray_actors.py"]],
    ids=lambda program: program[0],
)
def test_on_a_node_without_the_share_a_program_says_so_and_makes_nothing(
    run: Small, tmp_path: Path, program: list[str]
) -> None:
    """The mount point is there, and bare: a queue made in it would be another one than the run's."""
    if program[0] == "ray_actors.py":
        pytest.importorskip("ray")
    bare = tmp_path / "bare"
    bare.mkdir()
    command = [sys.executable, program[0], str(bare / "run"), *program[1:]]
    done = subprocess.run(
        command, cwd=run.folder, env=run.full_environment, capture_output=True, text=True, timeout=GUARD_S, check=False
    )
    assert done.returncode == 1
    assert f"queue {bare / 'run' / 'queue'} does not exist" in done.stderr and "mounted on this node" in done.stderr
    assert list(bare.iterdir()) == []
