"""The demo as a whole: its stages one after the other in this process, then real processes with real kills."""

# ruff: noqa: E402 - what needs torch is imported only once it is known to be there

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from tiny_target import make_tiny_target

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.check import check_queue
from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.directory import DemoDirectory, Parent, Plan, Sample, ids_by_state, samples_of_rollout
from fsqueue.demo.evaluate import measure
from fsqueue.demo.features import FeatureStore
from fsqueue.demo.journal import Event, Follower, Journal
from fsqueue.demo.options import DemoOptions, missing_packages
from fsqueue.demo.prepare import prepare
from fsqueue.demo.rendezvous import Rendezvous
from fsqueue.demo.rollout import Rollout
from fsqueue.demo.run import run_demo
from fsqueue.demo.trainer import Trainer

HANG_GUARD_S = 500.0
REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tiny_target(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_tiny_target(tmp_path_factory.mktemp("tiny-target"))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Torch uses one thread in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Stages:
    """A prepared demo directory with one rollout and one trainer, whose stages run in this process."""

    def __init__(self, path: Path, options: DemoOptions) -> None:
        self.demo = DemoDirectory(str(path))
        self.demo.create()
        self.queue = FileSampleRefQueue(self.demo.queue, owner="stages", max_attempts=3)
        self.rendezvous = Rendezvous(self.demo)
        with closing(Journal(self.demo.log, "prepare", 1)) as journal:
            prepare(self.demo, options, journal)
        plan = self.demo.read_plan()
        assert plan is not None
        self.plan: Plan = plan
        self.samples = list(samples_of_rollout(options, 0))
        self._starts = 0

    def roll_out(self) -> None:
        """Run the rollout to its end, as a process that was started (again) would."""
        self._starts += 1
        with closing(Journal(self.demo.log, "rollout-0", self._starts)) as journal:
            Rollout(self.demo, self.plan, self.queue, journal).run(self.samples, Parent(None))

    def train(self) -> None:
        """Run the trainer to the end of the stream, in a generation of its own."""
        self._starts += 1
        self.rendezvous.advance()
        with closing(Journal(self.demo.log, "trainer-0", self._starts)) as journal:
            Trainer(self.demo, self.plan, 0, self.queue, journal).run(Parent(None))

    def events(self, kind: str) -> list[Event]:
        """Every event of a kind in any journal."""
        return [event for event in Follower(self.demo.log).read() if event.kind == kind]

    def ids(self, kind: str) -> list[str]:
        return [sample_id for event in self.events(kind) for sample_id in event.ids]


@pytest.fixture
def stages(tmp_path: Path, tiny_target: str) -> Iterator[Callable[..., Stages]]:
    """Makes Stages with the given options."""
    made: list[Stages] = []

    def make(**changes: int) -> Stages:
        options = DemoOptions(
            "unused",
            samples=12,
            passes=2,
            tokens=32,
            held_out_samples=4,
            rollouts=1,
            trainers=1,
            batch_size=2,
            vocabulary=100,
            target=tiny_target,
        )
        made.append(Stages(tmp_path / "demo", replace(options, **changes)))
        return made[-1]

    yield make
    for it in made:
        it.queue.close()
        assert check_queue(it.demo.queue) == []


def test_stages_train_every_ref_once_at_its_step(stages: Callable[..., Stages]) -> None:
    """One rollout and one trainer: every ref is put, delivered and acked once, with the step in its name."""
    it = stages()
    it.roll_out()
    it.train()
    everything = sorted(sample.sample_id for sample in it.samples)
    assert sorted(it.ids("put")) == sorted(it.ids("delivered")) == sorted(it.ids("acked")) == everything
    assert it.queue.counts() == (0, 0, 24, 0)
    steps = [name.partition("@")[2] for name in os.listdir(os.path.join(it.demo.queue, "done"))]
    assert sorted(map(int, (step.removesuffix(".json") for step in steps))) == sorted([*range(1, 13)] * 2)
    assert it.rendezvous.finished()
    with closing(Journal(it.demo.log, "evaluate", 1)) as journal:
        measure(it.demo, it.plan, journal)
    before, after = (event.value for event in it.events("acceptance") if event.value is not None)
    assert 0 <= before <= 1 and 0 <= after <= 1


def test_restarted_rollout_puts_exactly_what_is_missing(stages: Callable[..., Stages]) -> None:
    """Ids in any state are left alone, features that were written but not put are used, the rest is produced."""
    it = stages(passes=1)
    it.roll_out()
    leased = it.queue.get(9)
    it.queue.ack(leased[:2], step=1)
    it.queue.fail(leased[2:4], "broken", retryable=False)
    unput, unwritten = it.samples[10], it.samples[11]
    os.unlink(os.path.join(it.demo.queue, "pending", f"{unput.sample_id}.json"))
    os.unlink(os.path.join(it.demo.queue, "pending", f"{unwritten.sample_id}.json"))
    features = Path(it.demo.features, "chunk-00010.safetensors")
    os.unlink(Path(it.demo.features, "chunk-00011.safetensors"))
    Path(it.demo.features, ".chunk-00011.safetensors.tmp").write_bytes(b"half a file")
    written_ns = features.stat().st_mtime_ns
    it.roll_out()
    assert it.ids("put")[12:] == [unput.sample_id, unwritten.sample_id]
    assert features.stat().st_mtime_ns == written_ns
    found = ids_by_state(it.demo.queue)
    assert {state: len(ids) for state, ids in found.items()} == {"pending": 3, "leased": 5, "done": 2, "failed": 2}


def test_ref_that_cannot_be_trained_ends_among_the_failed(stages: Callable[..., Stages]) -> None:
    """Damaged features are failed at once, missing ones after some attempts; the stream ends all the same."""
    it = stages(passes=1)
    it.roll_out()
    os.truncate(Path(it.demo.features, "chunk-00003.safetensors"), 20)
    os.unlink(Path(it.demo.features, "chunk-00005.safetensors"))
    it.train()
    damaged, missing = Sample(3, 0).sample_id, Sample(5, 0).sample_id
    assert ids_by_state(it.demo.queue)["failed"] == {damaged, missing}
    assert (it.ids("failed").count(damaged), it.ids("failed").count(missing)) == (1, 3)
    assert it.queue.counts() == (0, 0, 10, 2)


def test_after_the_loss_of_all_trainers_steps_after_the_checkpoint_are_trained_again(
    stages: Callable[..., Stages],
) -> None:
    """A trainer that starts from a checkpoint puts back the refs acked at later steps, and no others."""
    it = stages(passes=1, checkpoint_every_steps=4)
    it.roll_out()
    it.train()
    checkpoint = Path(it.demo.at("checkpoints", "latest.safetensors"))
    last = checkpoint.read_bytes()
    before = it.ids("delivered")
    by_step = {event.step: set(event.ids) for event in it.events("acked")}
    # As after a SIGKILL at step 6: the checkpoint is that of step 4, and the stream is not finished.
    it = rewound_to_step_four(it)
    it.train()
    assert set(it.ids("rewound")) == by_step[5] | by_step[6]
    assert set(it.ids("delivered")[len(before) :]) == by_step[5] | by_step[6]
    assert it.queue.counts() == (0, 0, 12, 0)
    assert len(checkpoint.read_bytes()) == len(last)


def rewound_to_step_four(it: Stages) -> Stages:
    """Make the checkpoint that of step 4, by training the same refs again up to there."""
    os.unlink(it.demo.at("rendezvous", "finished"))
    state = TrainingState(it.plan)
    for _ in range(4):
        state.apply(torch.zeros_like(state.gradient()))
    state.save(it.demo)
    return it


# --- real processes


def quick(path: Path, target: str, **changes: object) -> DemoOptions:
    """A run of seconds."""
    options = DemoOptions(
        str(path), samples=24, passes=2, tokens=32, held_out_samples=4, batch_size=2, vocabulary=100, target=target
    )
    return replace(options, **changes)  # type: ignore[arg-type]


def test_three_ranks_survive_the_kill_of_one(tmp_path: Path, tiny_target: str) -> None:
    """After a rank's SIGKILL the others keep their weights, hand them on, and all end with the same ones."""
    messages: list[str] = []
    options = quick(tmp_path / "demo", tiny_target, trainers=3, kill=True)
    report = run_demo(options, lambda snapshot: messages.append(snapshot.message or ""))
    assert report.ok, report
    assert (report.put, report.trained, report.lost, report.put_twice) == (48, 48, 0, 0)
    assert len(report.kills) == 2 and sum("killed" in message for message in messages) == 2
    assert sum(rank.starts for rank in report.ranks) == 4 and sum(it.starts for it in report.rollouts) == 3
    assert next(kill.held for kill in report.kills if kill.worker.startswith("trainer")) > 0
    assert report.ranks_agree


def test_workers_do_not_outlive_the_supervisor(tmp_path: Path, tiny_target: str) -> None:
    """When the demo itself is SIGKILLed, its processes notice and end; the queue is left clean."""
    demo = DemoDirectory(str(tmp_path / "demo"))
    arguments = ["--samples", "400", "--passes", "50", "--tokens", "32", "--batch", "1", "--target", tiny_target]
    supervisor = subprocess.Popen(
        [sys.executable, "-c", "from fsqueue.cli.demo import demo; demo()", demo.path, *arguments],
        cwd=REPOSITORY,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: os.path.isdir(demo.log) and any(e.kind == "step" for e in Follower(demo.log).read()))
    finally:
        supervisor.send_signal(signal.SIGKILL)
        supervisor.wait()
    wait_for(lambda: not processes_on(demo.path))
    assert check_queue(demo.queue) == []


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_GUARD_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_on(path: str) -> list[int]:
    """Processes whose command line names the directory."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            words = Path("/proc", entry, "cmdline").read_bytes().split(b"\0") if entry.isdigit() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
        if os.fsencode(path) in words:
            found.append(int(entry))
    return found


def test_real_model_loses_nothing_under_kills(tmp_path: Path) -> None:
    """SmolLM2 with one rollout and one trainer killed: nothing lost, and the held-out acceptance has risen."""
    assert missing_packages() == []
    run = subprocess.run(
        [
            *(sys.executable, "-m", "fsqueue.cli.main", "demo", str(tmp_path / "demo")),
            *("--samples", "16", "--passes", "2", "--batch", "2", "--kill", "--json"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=HANG_GUARD_S,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["ok"] and (report["put"], report["trained"], report["lost"]) == (32, 32, 0)
    assert report["check_violations"] == 0
    assert {kill["worker"].partition("-")[0] for kill in report["kills"]} == {"rollout", "trainer"}
    assert report["loss_last"] < report["loss_first"]
    assert report["acceptance_after"] > report["acceptance_before"]
    with FileSampleRefQueue(tmp_path / "demo" / "queue") as queue:
        assert queue.counts() == (0, 0, 32, 0)
    a_ref = one_ref(tmp_path / "demo" / "queue" / "done")
    features = FeatureStore(str(tmp_path / "demo" / "features")).read(a_ref)
    assert features["hidden_state"].shape == (128, 576)


def one_ref(done: Path) -> SampleRef:
    import msgspec

    return msgspec.json.decode(next(done.iterdir()).read_bytes(), type=SampleRef)
