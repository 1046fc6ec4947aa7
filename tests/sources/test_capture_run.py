"""A capture run: every prompt's sample is in the queue once, whatever is killed, refused or found."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fsqueue import FileMetadataStore, FileSampleRefQueue, SampleRef
from fsqueue.control.controller import DataFlowController
from fsqueue.features import SharedDirFeatureStore
from fsqueue.sources import CaptureReport, CaptureRun, Progress, Prompt, PromptRefusedError, VllmSource
from fsqueue.sources.contract import CapturedTensors, Captures, OnRefused
from tests.support import InThread, assert_clean, ids, names_in, wait_until
from tests.support.dying import died
from tests.support.inference import LAYERS, FakeVllm, ids_of, states_of


class Plain:
    """A source without a server; it counts what it is asked for."""

    name, layers = "plain", ("normed",)

    def __init__(self, version: str | None = "v1") -> None:
        self.version = version
        self.asked: list[str] = []
        self.refuse: set[str] = set()

    def weight_version(self) -> str | None:
        return self.version

    def capture(self, prompts: Iterable[Prompt], *, on_refused: OnRefused | None = None) -> Captures:
        for prompt in prompts:
            self.asked.append(prompt.prompt_id)
            tokens = ids_of(prompt.text or "")
            if prompt.prompt_id in self.refuse:
                error = PromptRefusedError(self.name, prompt.prompt_id, "no")
                if on_refused is None:
                    raise error
                on_refused(error)
                continue
            tensors = {"token_ids": torch.tensor(tokens), "hidden_states": states_of(tokens, 1)}
            yield CapturedTensors(prompt, self.name, tuple(tokens), self.layers, "float32", "v1", tensors)

    def close(self) -> None:
        pass


def prompts(count: int) -> list[Prompt]:
    return [Prompt(f"p{number}", f"prompt number {number}", metadata={"n": number}) for number in range(count)]


def run_in(folder: Path, source: Any, asked: Iterable[Prompt], ledger: bool = False, **options: Any) -> CaptureReport:
    with FileSampleRefQueue(folder / "q", owner="capture", durable=False) as queue:
        store = SharedDirFeatureStore(folder / "features", durable=False)
        given = FileMetadataStore[SampleRef](folder / "ledger", durable=False) if ledger else None
        try:
            return CaptureRun(source, store, queue, ledger=given, run_id="r1", **options).run(asked)
        finally:
            if given is not None:
                given.close()


def drained(folder: Path) -> list[SampleRef]:
    with FileSampleRefQueue(folder / "q", durable=False) as queue:
        refs = queue.get(1000)
        queue.ack(refs)
        return refs


def test_refs_say_what_was_captured(tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = run_in(tmp_path, Plain(), prompts(3), strategy="dflash", on_progress=seen.append)
    refs = drained(tmp_path)
    assert ids(refs) == ["p0", "p1", "p2"]
    assert {ref.run_id for ref in refs} == {"r1"} and refs[1].source_task_id == "p1"
    assert (refs[1].strategy, refs[1].target_model_version, refs[1].num_tokens) == ("dflash", "v1", 15)
    assert refs[1].metadata == {"n": 1, "layers": ["normed"]}
    assert refs[1].feature_specs["hidden_states"].shape == (15, 1, 4)
    store = SharedDirFeatureStore(tmp_path / "features")
    assert torch.equal(store.get(refs[1])["hidden_states"], states_of(ids_of("prompt number 1"), 1))
    assert (report.captured, report.done, report.tokens) == (3, 3, 45) and seen[-1].captured == 3
    assert report.stored_bytes == sum(ref.estimated_bytes for ref in refs)


@pytest.mark.parametrize("ledger", [False, True])
def test_a_second_run_asks_for_nothing(tmp_path: Path, ledger: bool) -> None:
    """Pending, leased, acked, packed or failed: what is known is left alone, and only what is new is captured."""
    run_in(tmp_path, Plain(), prompts(8), ledger)
    queue = FileSampleRefQueue(tmp_path / "q", lease_timeout_s=None, durable=False)
    taken = queue.get(5)
    if ledger:
        with FileMetadataStore[SampleRef](tmp_path / "ledger") as store:
            controller = DataFlowController[SampleRef]("r1", sample_queue=queue, metadata_store=store)
            controller.ack_train_refs("t", ids(taken[:2]), global_step=1)
    else:
        queue.ack(taken[:2], step=1)
    queue.pack(older_than_s=0)
    queue.fail(taken[2:3], "bad", retryable=False)
    source = Plain()
    report = run_in(tmp_path, source, prompts(10), ledger)
    assert source.asked == ["p8", "p9"] and (report.known, report.captured, report.done) == (8, 2, 10)
    counts = queue.counts()
    assert (counts.pending, counts.leased, counts.done, counts.failed) == (5, 2, 2, 1)
    queue.close()


def test_what_only_the_store_has_is_put(tmp_path: Path) -> None:
    """As after a death between store and queue; not where nobody knows which weights gave it."""
    for _ in run_only(tmp_path, 2):
        pass
    source = Plain()
    report = run_in(tmp_path, source, prompts(3))
    assert source.asked == ["p2"] and (report.found, report.captured) == (2, 1)
    assert [ref.num_tokens for ref in drained(tmp_path)] == [15, 15, 15]
    (tmp_path / "b").mkdir()
    for _ in run_only(tmp_path / "b", 2):
        pass
    source = Plain(version=None)
    assert run_in(tmp_path / "b", source, prompts(3)).captured == 3 and ids(drained(tmp_path / "b")) == [
        "p0",
        "p1",
        "p2",
    ]


def run_only(folder: Path, count: int) -> Iterator[object]:
    """Store what a run would, and put nothing."""
    store = SharedDirFeatureStore(folder / "features")
    for captured in Plain().capture(prompts(count)):
        yield captured.store_in(store)


def test_a_damaged_file_is_captured_anew(tmp_path: Path) -> None:
    for _ in run_only(tmp_path, 1):
        pass
    (file,) = (tmp_path / "features").glob("??/*.safetensors")
    file.write_bytes(b"x")
    source = Plain()
    assert run_in(tmp_path, source, prompts(1)).captured == 1 and source.asked == ["p0"]


def test_refused_prompts_are_left_out_where_somebody_is_told(tmp_path: Path) -> None:
    source = Plain()
    source.refuse = {"p1"}
    with pytest.raises(PromptRefusedError):
        run_in(tmp_path, source, prompts(3))
    refused: list[PromptRefusedError] = []
    report = run_in(tmp_path, source, prompts(3), on_refused=refused.append)
    assert [error.prompt_id for error in refused] == ["p1"]
    assert (report.refused, report.known, report.captured, report.done) == (1, 1, 1, 3)


def test_the_source_is_held_back_at_the_watermark(tmp_path: Path) -> None:
    """Nothing is asked for while so many refs are pending; it goes on below the low watermark."""
    source, seen = Plain(), list[Progress]()
    work = InThread(lambda: run_in(tmp_path, source, prompts(10), high=4, low=2, on_progress=seen.append))
    wait_until(lambda: bool(seen) and seen[-1].waiting, "the run to wait")
    assert source.asked == ["p0", "p1", "p2", "p3"]
    taken: list[str] = []
    while len(taken) < 10:
        taken += ids(drained(tmp_path))
    assert work.result().captured == 10 and taken == [f"p{number}" for number in range(10)]
    assert not seen[-1].waiting


def test_prompts_from_an_iterator(tmp_path: Path) -> None:
    """They may come from anywhere, once."""
    for known in (0, 3):
        report = run_in(tmp_path, Plain(), iter(prompts(3)))
        assert (report.known, report.done) == (known, 3)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("ledger", [False, True])
def test_a_run_that_dies_at_any_file_operation_goes_on(
    tmp_path: Path, vllm: FakeVllm, states: Path, ledger: bool, step: int
) -> None:
    """After a death before or after each file operation the same run completes: every sample once, nothing left."""

    def work(folder: Path) -> CaptureReport:
        options: dict[str, Any] = {"layers": LAYERS, "in_flight": 1, "patience_s": 30.0, "label": "capture"}
        with VllmSource(vllm.url, states, **options) as source:
            return run_in(folder, source, prompts(2), ledger)

    number, finished = 0, False
    while not finished:
        folder = tmp_path / f"{number}"
        folder.mkdir()
        finished = not died(work, folder, number, after=bool(number % 2))
        asked = len(vllm.asked)
        report = work(folder)
        assert report.done == 2 and len(vllm.asked) - asked == report.captured
        assert names_in(folder / "q", "pending") == ["p0.json", "p1.json"]
        refs = drained(folder)
        store = SharedDirFeatureStore(folder / "features", verify=True)
        assert all(store.get(ref)["hidden_states"].shape == (15, 3, 4) for ref in refs) and len(refs) == 2
        assert_clean(folder / "q")
        assert os.listdir(states) == []
        number += step
    assert number > 100


def test_a_run_that_an_exception_ends_leaves_nothing_behind(tmp_path: Path, vllm: FakeVllm, states: Path) -> None:
    """What the server had written ahead of need is removed."""

    def stop(progress: Progress) -> None:
        if progress.captured == 3:
            raise KeyboardInterrupt

    with VllmSource(vllm.url, states, layers=LAYERS, in_flight=4, patience_s=30.0) as source:
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path, source, prompts(10), on_progress=stop)
        wait_until(lambda: os.listdir(states) == [], "what was under way to be removed")
    assert ids(drained(tmp_path)) == ["p0", "p1", "p2"]
