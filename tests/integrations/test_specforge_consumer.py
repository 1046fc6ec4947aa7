"""SpecForge's own `Trainer` over a run's directory: what it trains on, what a restart goes back to, what is removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import assert_clean
from tests.support.upstream import required

torch: Any = pytest.importorskip("torch")
required("specforge.runtime.contracts")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")

from fsqueue.integrations.specforge import (  # noqa: E402  # only where there is SpecForge
    ConsumerSetupError,
    RefChannel,
    SharedFeatureStore,
    build_online_consumer,
    channel,
)

strategies: Any = required("specforge.training.strategies.base")
optimizers: Any = required("specforge.optimizer")
dist: Any = torch.distributed

WINDOW = 4


@pytest.fixture(scope="module", autouse=True)
def process_group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One rank on the CPU, with the optimizer's state whole."""
    meeting = tmp_path_factory.mktemp("group") / "rendezvous"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("FSDP_SHARDING", "NO_SHARD")
        patched.setenv("SPECFORGE_DEVICE", "cpu")
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


class CrashError(Exception):
    """The trainer dies of this."""


class Draft(torch.nn.Module):  # type: ignore[misc]
    """The smallest model that a trainer takes."""

    def __init__(self) -> None:
        super().__init__()
        self.draft_model = torch.nn.Linear(3, 1)

    def forward(self, hidden: Any) -> Any:
        return self.draft_model(hidden).square().mean()


class Strategy(strategies.DraftTrainStrategy):  # type: ignore[misc]
    """Trains it, and notes what on; dies before a certain micro-batch."""

    name = "eagle3"
    required_features = {"hidden"}  # noqa: RUF012  # as theirs

    def __init__(self, module: Any, notes: list[tuple[int, list[str]]], dies_at: int | None, **_: Any) -> None:
        self.module = module
        self.notes = notes
        self.dies_at = dies_at

    def trainable_module(self) -> Any:
        return self.module

    def checkpoint_state_filter(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix("draft_model."): value for name, value in state_dict.items()}

    def forward_loss(self, batch: Any, ctx: Any = None) -> Any:
        if self.dies_at == len(self.notes):
            raise CrashError
        self.notes.append((ctx.global_step + 1, batch.sample_ids))
        return strategies.StepOutput(loss=self.module(batch.tensors["hidden"]), metrics={})


def collate(features: list[dict[str, Any]]) -> dict[str, Any]:
    return {"hidden": torch.stack([each["hidden"] for each in features])}


class Run:
    """A run whose producer has published so many samples and closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = SharedFeatureStore(path / "run" / "features", durable=False, retain_on_release=True)
        self.channels: list[RefChannel] = []

    def produce(self, count: int) -> None:
        refs = self.open("rollout")
        said = {"run_id": "run", "strategy": "eagle3"}
        for number in range(count):
            tensors = {"hidden": torch.full((3,), float(number))}
            refs.publish(self.store.put(tensors, sample_id=f"s{number:02d}", metadata=said))
        refs.close()

    def open(self, producer: str | None = None) -> RefChannel:
        self.channels.append(channel(self.path / "run", producer=producer, durable=False))
        return self.channels[-1]

    def build(self, dies_at: int | None = None, **options: Any) -> tuple[Any, list[tuple[int, list[str]]]]:
        """Build a trainer as another process would; returns it with its notes."""
        notes: list[tuple[int, list[str]]] = []
        step = SimpleNamespace(build=partial(Strategy, notes=notes, dies_at=dies_at), uses_external_target_head=False)
        streaming = SimpleNamespace(build_collator=lambda: collate)
        providers = SimpleNamespace(step=step, server_streaming_for=lambda modality: streaming)
        given: dict[str, Any] = {"total_steps": 100, "save_interval": 2, "feature_store": self.store} | options
        trainer = build_online_consumer(
            algorithm=SimpleNamespace(name="eagle3", providers=providers),
            channel=self.open(),
            draft_model=Draft(),
            optimizer_factory=partial(optimizers.BF16Optimizer, lr=0.1, total_steps=100),
            run_id="run",
            output_dir=str(self.path / "out"),
            batch_size=2,
            accumulation_steps=2,
            **given,
        )
        return trainer, notes

    def crash(self, steps: int, **options: Any) -> list[tuple[int, list[str]]]:
        """Train for so many steps, and die inside the next one."""
        trainer, notes = self.build(dies_at=2 * steps + 1, **options)
        with pytest.raises(CrashError):
            trainer.fit()
        return notes[: 2 * steps]

    def checkpoint(self, step: int) -> str:
        return str(self.path / "out" / f"run-step{step}")

    def features(self) -> int:
        found: int = self.store.files.health().samples
        return found


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    it = Run(tmp_path)
    yield it
    for each in it.channels:
        each.queue.close()
        each.ledger.close()
    it.store.close()
    assert_clean(tmp_path / "run" / "queue")


def ids(notes: list[tuple[int, list[str]]], up_to: int = 1000) -> list[str]:
    return [sample_id for step, batch in notes if step <= up_to for sample_id in batch]


def test_all_of_it_is_trained_once(run: Run) -> None:
    """In whole windows, with the ledger's steps those of the trainer; what is left is settled as asked."""
    run.produce(2 * WINDOW + 3)
    trainer, notes = run.build(rest="ack")
    watcher = run.open()
    assert (watcher.consumer_quantum(), watcher.consumer_stopped()) == (WINDOW, False)
    assert trainer.fit() == 2
    assert ids(notes) == [f"s{number:02d}" for number in range(2 * WINDOW)]
    every = [f"s{number:02d}" for number in range(2 * WINDOW + 3)]
    assert watcher.ledger.acked_steps(every) == {i: 1 + (int(i[1:]) >= WINDOW) for i in every}
    assert watcher.queue.counts() == (0, 0, 2 * WINDOW + 3, 0)
    assert watcher.queue.stream().all_closed("consumer")


def test_features_go_with_the_checkpoint_that_holds_them(run: Run) -> None:
    """Those of later samples stay, to go back to; in the end none are left."""
    run.produce(5 * WINDOW)
    run.crash(3)
    assert run.features() == 3 * WINDOW, "those of the first two steps are gone"
    trainer, _ = run.build(resume_from=run.checkpoint(2))
    assert trainer.fit() == 5
    assert run.features() == 0


def test_features_may_be_kept(run: Run) -> None:
    """Then any checkpoint will do to go back to."""
    run.produce(5 * WINDOW)
    run.build(keep_features=True)[0].fit()
    assert run.features() == 5 * WINDOW
    trainer, notes = run.build(keep_features=True, resume_from=run.checkpoint(2))
    assert trainer.fit() == 5
    assert len(ids(notes)) == len(set(ids(notes))) == 3 * WINDOW


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restart_goes_back_to_the_checkpoint(run: Run, workers: int) -> None:
    """What was trained after it, and what was leased, is trained again; what it holds is not."""
    run.produce(6 * WINDOW)
    before = run.crash(3, dataloader_num_workers=workers)
    assert not run.open().consumer_stopped()
    trainer, after = run.build(resume_from=run.checkpoint(2), dataloader_num_workers=workers)
    assert trainer.fit() == 6
    trained = ids(before, up_to=2) + ids(after)
    assert sorted(trained) == [f"s{number:02d}" for number in range(6 * WINDOW)]
    assert [step for step, _ in after] == [3, 3, 4, 4, 5, 5, 6, 6]


def test_before_the_first_checkpoint_a_restart_begins_anew(run: Run) -> None:
    run.produce(2 * WINDOW)
    run.crash(1, save_interval=0)
    trainer, notes = run.build()
    assert trainer.fit() == 2
    assert sorted(ids(notes)) == [f"s{number:02d}" for number in range(2 * WINDOW)]


def test_a_restart_without_its_checkpoint_is_refused(run: Run) -> None:
    """Or with an earlier one: features that it needs are gone. Nothing is changed by the attempt."""
    run.produce(6 * WINDOW)
    run.crash(5)
    for earlier, said in ((None, "from the beginning"), (run.checkpoint(2), "at step 2")):
        with pytest.raises(ConsumerSetupError, match=f"{said}, but has written a checkpoint of step 4"):
            run.build(resume_from=earlier)
    assert len(run.open().ledger.durable_marker()["acked"]) == 5 * WINDOW
    trainer, notes = run.build(resume_from=run.checkpoint(4))
    assert trainer.fit() == 6
    assert len(ids(notes)) == 2 * WINDOW


def change(checkpoint: str, **fields: Any) -> None:
    path = Path(checkpoint) / "training_state.pt"
    state = torch.load(path, weights_only=False) | fields
    torch.save({name: value for name, value in state.items() if value is not None}, path)


def test_another_number_of_ranks_goes_on(run: Run) -> None:
    """From the optimizer's state that all of them had."""
    run.produce(4 * WINDOW)
    run.crash(2)
    change(run.checkpoint(2), world_size=2)
    trainer, _ = run.build(resume_from=run.checkpoint(2))
    adam = trainer.core.backend.optimizer.optimizer.state_dict()["state"]
    assert {int(each["step"]) for each in adam.values()} == {2}
    assert trainer.fit() == 4


def test_another_number_of_ranks_is_refused_where_each_had_its_share(run: Run) -> None:
    run.produce(4 * WINDOW)
    run.crash(2)
    change(run.checkpoint(2), world_size=2, replicated_optimizer_state=None)
    with pytest.raises(ConsumerSetupError, match=r"was written by 2 ranks.*start 2 ranks"):
        run.build(resume_from=run.checkpoint(2))


def test_what_the_ledger_knows_as_trained_is_settled(run: Run) -> None:
    """Its trainer had no time to say so to the queue."""
    run.produce(WINDOW + 1)
    trainer, notes = run.build()
    run.open().ledger.record_train_ack(["s01"], global_step=1, optimizer_durable=True)
    assert trainer.fit() == 1
    assert ids(notes) == ["s00", "s02", "s03", "s04"]
    assert run.open().queue.counts().done == WINDOW + 1


def test_a_store_that_forgets_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="a store with retain_on_release=True"):
        run.build(feature_store=SharedFeatureStore(run.path / "run" / "features"))


def test_a_trainer_that_cannot_be_built_leaves_the_stream_as_one_that_failed(run: Run) -> None:
    run.produce(WINDOW)
    with suppress(TypeError):
        run.build(no_such_argument=True)
    (consumer,) = (member for member in run.open().queue.stream().members() if member.role == "consumer")
    assert consumer.standing == "failed" and "no_such_argument" in str(consumer.record.reason)
