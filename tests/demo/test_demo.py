"""The demo as a whole: its stages one after the other in this process, then real processes with real kills."""

# ruff: noqa: E402 - what needs torch is imported only once it is known to be there

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from fsqueue import FileSampleRefQueue, SampleRef
from fsqueue.control.ledger import FileMetadataStore
from fsqueue.demo.capture import Capture
from fsqueue.demo.checkpoint import TrainingState
from fsqueue.demo.demo_dir import DemoDirectory, Parent, Plan, Sample, ids_by_state, samples_of_rollout
from fsqueue.demo.evaluate import measure
from fsqueue.demo.generations import Generations
from fsqueue.demo.journal import Journal, JournalEvent, JournalReader
from fsqueue.demo.options import DemoOptions, missing_packages
from fsqueue.demo.prepare import prepare
from fsqueue.demo.rank_queue import RankQueue
from fsqueue.demo.rollout import Rollout
from fsqueue.demo.run import run_demo
from fsqueue.demo.training import Trainer
from fsqueue.demo.worker import Worker, opened
from fsqueue.features import SharedDirFeatureStore
from fsqueue.operate.check import check_queue
from tests.support.tiny_target import HIDDEN_SIZE

HANG_GUARD_S = 500.0


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
        self.demo.create(options)
        self.queue = FileSampleRefQueue(self.demo.queue, owner="stages")
        self.generations = Generations(self.demo)
        with closing(Journal(self.demo.log, "prepare", 1)) as journal:
            prepare(self.demo, options, journal)
        plan = self.demo.read_plan()
        assert plan is not None
        self.plan: Plan = plan
        self.samples = list(samples_of_rollout(options, 0))
        self.features = SharedDirFeatureStore(self.demo.features)
        self._starts = 0

    def worker(self, kind: str) -> AbstractContextManager[Worker]:
        """A worker's handles, in this process, as if it was started (again)."""
        self._starts += 1
        return opened(self.demo, kind, 0, self._starts, Parent(None))

    def roll_out(self) -> None:
        """Run the rollout to its end."""
        with self.worker("rollout") as worker, worker.queue.producer(worker.name):
            Rollout(worker, self.plan).run(self.samples)

    def train(self) -> None:
        """Run the trainer to the end of the stream, in a generation of its own."""
        self.generations.advance()
        with self.worker("trainer") as worker:
            Trainer(worker, self.plan).run()

    def feature_file(self, chunk: int) -> Path:
        """The file of a chunk's features."""
        return next(Path(self.demo.features).glob(f"*/chunk-{chunk:05d}.safetensors"))

    def events(self, kind: str) -> list[JournalEvent]:
        """Every event of a kind in any journal."""
        return [event for event in JournalReader(self.demo.log).read() if event.kind == kind]

    def ids(self, kind: str) -> list[str]:
        return [sample_id for event in self.events(kind) for sample_id in event.ids]

    def in_checkpoint(self) -> list[str]:
        """Return the ids that the last checkpoint says were trained into it."""
        state = TrainingState(self.plan)
        state.load(self.demo)
        return state.trained_ids()


@pytest.fixture
def stages(tmp_path: Path, tiny_target: str) -> Iterator[Callable[..., Stages]]:
    """Makes Stages with the given options."""
    made: list[Stages] = []

    def make(**changes: Any) -> Stages:
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
    assert sorted(it.in_checkpoint()) == everything
    assert it.queue.counts() == (0, 0, 24, 0)
    steps = [name.partition("@")[2] for name in os.listdir(os.path.join(it.demo.queue, "done"))]
    assert sorted(map(int, (step.removesuffix(".json") for step in steps))) == sorted([*range(1, 13)] * 2)
    assert it.generations.finished()
    assert "running the target model on held-out text, 3 of 4 chunks" in [it.note for it in it.events("preparing")]
    with closing(Journal(it.demo.log, "evaluate", 1)) as journal:
        measure(it.demo, it.plan, journal)
    before, after = (event.value for event in it.events("acceptance") if event.value is not None)
    assert 0 <= before <= 1 and 0 <= after <= 1
    assert sorted(it.ids("surviving")) == everything


def test_restarted_rollout_commits_exactly_what_is_missing(stages: Callable[..., Stages]) -> None:
    """Committed ids are left alone, but put where that was not done; stored features are used, the rest is captured."""
    it = stages(passes=1)
    it.roll_out()
    (pending := Path(it.demo.queue, "pending", f"{it.samples[9].sample_id}.json")).unlink()
    again = stages_without_the_last_two_commits(it)
    it.feature_file(11).write_bytes(b"half a file")
    written_ns = it.feature_file(10).stat().st_mtime_ns
    it.roll_out()
    assert it.ids("put")[12:] == [sample.sample_id for sample in again]
    assert it.feature_file(10).stat().st_mtime_ns == written_ns and pending.exists()
    assert it.queue.counts() == (12, 0, 0, 0)
    for ref in it.queue.get(12):
        assert it.features.get(ref)["hidden_state"].shape == (32, HIDDEN_SIZE)


def stages_without_the_last_two_commits(it: Stages) -> list[Sample]:
    """Leave the stages as if the rollout had been killed two samples before its end: the ledger has the first ten."""
    shutil.rmtree(it.demo.ledger)
    refs = {ref.sample_id: ref for ref in it.queue.get(12)}
    unput, missing = it.samples[9], it.samples[10:]
    for sample in missing:
        it.queue.fail([refs[sample.sample_id]], "not committed", retryable=False)
        os.unlink(os.path.join(it.demo.queue, "failed", f"{sample.sample_id}.json"))
    it.queue.release([ref for ref in refs.values() if ref.sample_id not in {s.sample_id for s in missing}])
    store: FileMetadataStore[SampleRef] = FileMetadataStore(it.demo.ledger)
    with store:
        capture = Capture(it.demo, it.plan)
        store.commit_samples([capture.ref(sample, "rollout-0") for sample in (*it.samples[:9], unput)])
    return missing


def test_ref_that_cannot_be_trained_ends_among_the_failed(stages: Callable[..., Stages]) -> None:
    """Damaged features are failed at once, missing ones after some attempts; the stream ends all the same."""
    it = stages(passes=1)
    it.roll_out()
    os.truncate(it.feature_file(3), 20)
    it.feature_file(5).unlink()
    it.train()
    damaged, missing = Sample(3, 0).sample_id, Sample(5, 0).sample_id
    assert ids_by_state(it.demo.queue)["failed"] == {damaged, missing}
    assert (it.ids("failed").count(damaged), it.ids("failed").count(missing)) == (1, 3)
    assert it.queue.counts() == (0, 0, 10, 2)
    assert len(it.in_checkpoint()) == 10


def test_after_the_loss_of_all_trainers_exactly_the_steps_after_the_checkpoint_are_trained_again(
    stages: Callable[..., Stages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that starts from a checkpoint takes back what was acked at later steps, and every sample is in once."""
    it = stages(passes=1, checkpoint_every_steps=4)
    it.roll_out()
    with monkeypatch.context() as killed:
        killed.setattr(Trainer, "_finish", lambda self, group: None)  # dead between the last ack and the checkpoint
        it.train()
    assert it.queue.counts() == (0, 0, 12, 0) and len(it.in_checkpoint()) == 8
    by_step = {event.step: set(event.ids) for event in it.events("acked")}
    before = it.ids("delivered")
    it.train()
    assert set(it.ids("rewound")) == by_step[5] | by_step[6]
    assert set(it.ids("delivered")[len(before) :]) == by_step[5] | by_step[6]
    assert sorted(it.in_checkpoint()) == sorted(sample.sample_id for sample in it.samples)
    assert it.queue.counts() == (0, 0, 12, 0)


def test_a_sample_that_is_in_the_state_and_comes_again_is_acknowledged_and_not_trained(
    stages: Callable[..., Stages], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leave the stages as after the kill of a trainer between the checkpoint and its acknowledgement."""
    it = stages(passes=1, checkpoint_every_steps=1)
    it.roll_out()
    with monkeypatch.context() as killed:
        killed.setattr(RankQueue, "ack", lambda self, refs, *, step=None: [])
        killed.setattr(RankQueue, "ended", lambda self: True)
        it.train()
    trained = it.in_checkpoint()
    assert trained and it.queue.counts().done == 0
    os.unlink(it.demo.at("rendezvous", "finished"))
    it.train()
    assert sorted(it.in_checkpoint()) == sorted(sample.sample_id for sample in it.samples)
    assert sorted(it.ids("acked")) == sorted(it.in_checkpoint())
    assert sorted(it.ids("step")) == sorted(it.in_checkpoint())


@pytest.mark.parametrize("seen", [1, 2])
def test_of_a_batch_in_hand_only_what_a_peer_s_state_has_seen_is_acknowledged_untrained(
    stages: Callable[..., Stages], seen: int
) -> None:
    """A rank that takes over another's state goes on with the rest of the batch that it holds."""
    it = stages(passes=1)
    it.roll_out()
    it.generations.advance()
    with it.worker("trainer") as worker:
        trainer = Trainer(worker, it.plan)
        trainer._batch = batch = trainer._next_batch()
        assert batch is not None and len(batch.ids) == 2
        trainer._state._counts += trainer._state.counts_of(batch.ids[:seen])
        trainer.run()
    everything = sorted(sample.sample_id for sample in it.samples)
    assert sorted(it.in_checkpoint()) == sorted(it.ids("acked")) == everything
    assert sorted([*it.ids("step"), *batch.ids[:seen]]) == everything


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
    options = quick(tmp_path / "demo", tiny_target, rollouts=1, trainers=3, kill=True)
    report = run_demo(options, lambda snapshot: messages.append(snapshot.message or ""))
    assert report.ok, report
    assert (report.put, report.trained, report.once, report.lost, report.put_twice) == (48, 48, 48, 0, 0)
    assert len(report.kills) == 2 and sum("killed" in message for message in messages) == 2
    assert sum(rank.starts for rank in report.ranks) == 4 and [it.starts for it in report.rollouts] == [2]
    assert next(kill.held for kill in report.kills if kill.worker.startswith("trainer")) > 0
    assert report.ranks_agree


def test_workers_do_not_outlive_the_supervisor(tmp_path: Path, tiny_target: str) -> None:
    """When the demo itself is SIGKILLed, its processes notice and end; the queue is left clean."""
    demo = DemoDirectory(str(tmp_path / "demo"))
    arguments = ["--samples", "400", "--passes", "50", "--tokens", "32", "--batch", "1", "--target", tiny_target]
    arguments += ["--rollouts", "1", "--trainers", "1"]
    supervisor = subprocess.Popen(
        [sys.executable, "-c", "from fsqueue.cli.demo import demo; demo()", demo.path, *arguments],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: os.path.isdir(demo.log) and any(e.kind == "step" for e in JournalReader(demo.log).read()))
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
            *("--samples", "16", "--passes", "2", "--batch", "2", "--tokens", "64", "--rollouts", "1"),
            *("--kill", "--json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HANG_GUARD_S,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["ok"] and (report["put"], report["trained"], report["once"]) == (32, 32, 32)
    assert report["check_violations"] == 0
    assert {kill["worker"].partition("-")[0] for kill in report["kills"]} == {"rollout", "trainer"}
    assert report["loss_last"] < report["loss_first"]
    assert report["acceptance_after"] > report["acceptance_before"]
    with FileSampleRefQueue(tmp_path / "demo" / "queue") as queue:
        assert queue.counts() == (0, 0, 32, 0)
    a_ref = one_ref(tmp_path / "demo" / "queue" / "done")
    features = SharedDirFeatureStore(tmp_path / "demo" / "features").get(a_ref)
    assert features["hidden_state"].shape == (64, 576)


def one_ref(done: Path) -> SampleRef:
    import msgspec

    return msgspec.json.decode(next(done.iterdir()).read_bytes(), type=SampleRef)
