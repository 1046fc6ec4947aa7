"""First-hour mistakes are told in the caller's words."""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsqueue import (
    DataFlowController,
    FileMetadataStore,
    FileSampleRefQueue,
    InvalidArgumentError,
    InvalidRefError,
    MemorySampleRefQueue,
    QueueConfigError,
    SampleRef,
    TrainerView,
)
from tests.support import names_in, numbered, ref, refs


def controller(queue: Any) -> Any:
    return DataFlowController("r", sample_queue=queue)


def view_of(queue: Any, **arguments: Any) -> TrainerView[Any]:
    return TrainerView(queue, **arguments)


def store_at(root: Any, **arguments: Any) -> object:
    features = pytest.importorskip("fsqueue.features")
    return features.SharedDirFeatureStore(root, **arguments)


ledger_at: Any = FileMetadataStore
made: Any = DataFlowController
in_memory: Any = MemorySampleRefQueue

SLIPS: dict[str, tuple[Callable[[Any], object], str]] = {
    "one ref": (lambda q: q.put(ref("a")), r"put expected an iterable of refs, found SampleRef.*put\(\[ref\]\)"),
    "one dict": (lambda q: q.put({"sample_id": "x"}), "put expected an iterable of refs, found .*a dict"),
    "a string": (lambda q: q.put("abc"), "put expected an iterable of refs, found 'abc', a str"),
    "put None": (lambda q: q.put(None), "put expected an iterable of refs, found None"),
    "ack ids": (
        lambda q: q.ack(["s0"]),
        "ack expected refs, with a sample_id each, found 's0', a str: settle what get",
    ),
    "ack a ref": (lambda q: q.ack(ref("s0")), r"ack expected an iterable of refs.*ack\(\[ref\]\)"),
    "ack a string": (lambda q: q.ack("s0"), "ack expected an iterable of refs, found 's0'"),
    "ack None": (lambda q: q.ack([None]), "ack expected refs, with a sample_id each, found None"),
    "ack a number": (lambda q: q.ack(3), "ack expected an iterable of refs, found 3, a int"),
    "fail ids": (lambda q: q.fail(["s0"], "r", True), "fail expected refs"),
    "release ids": (lambda q: q.release(["s0"]), "release expected refs"),
    "renew ids": (lambda q: q.renew(["s0"]), "renew expected refs"),
    "a string as count": (lambda q: q.get("3"), r"get\(max_refs\) expected an integer, found '3', a str"),
    "no count": (lambda q: q.get(None), r"get\(max_refs\) expected an integer, found None"),
    "a fraction": (lambda q: q.get(1.5), r"get\(max_refs\) expected an integer, found 1.5"),
    "a string as time": (lambda q: q.get(1, "5"), r"get\(timeout_s=\) expected a number of seconds or None, found '5'"),
    "no number": (lambda q: q.get(1, float("nan")), r"get\(timeout_s=\) expected a number of seconds"),
    "one partition": (
        lambda q: q.get(1, partition=3),
        r"partition=\) expected \(index, count\), two integers, found 3",
    ),
    "partition 2 of 2": (lambda q: q.get(1, partition=(2, 2)), "0 <= index < count"),
}


def opened(kind: str, directory: Path) -> Any:
    return FileSampleRefQueue(directory / "q", durable=False) if kind == "file" else MemorySampleRefQueue()


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize(("slip", "words"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_explained(tmp_path: Path, kind: str, slip: Callable[[Any], object], words: str) -> None:
    """The text names the call, what it takes and what it got; nothing has happened to the queue."""
    with opened(kind, tmp_path) as queue:
        queue.put(refs("s0", "s1"))
        queue.get(1)
        with pytest.raises(InvalidArgumentError, match=words):
            slip(queue)
        assert tuple(queue.counts()) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        (lambda q: q.fail(refs("s0"), True, "out of memory"), "True or False as retryable, found 'out of memory'"),
        (lambda q: q.put_when_below(refs("a"), high="5"), r"put_when_below\(high=\) expected an integer, found '5'"),
        (lambda q: q.put_when_below(refs("a"), high=5, timeout_s="1"), "expected a number of seconds"),
        (lambda q: q.put_when_below(ref("a"), high=5), "expected an iterable of refs"),
        (lambda q: q.pack(older_than_s="1"), r"pack\(older_than_s=\) expected a number of seconds"),
        (lambda q: q.pack(older_than_s=None), r"pack\(older_than_s=\) expected a number of seconds, found None"),
        (lambda q: q.consume(retryable="no"), r"consume\(retryable=\) expected True or False, found 'no'"),
        (lambda q: q.consume(on_error="stop"), r"consume\(on_error=\) expected 'fail' or 'raise', found 'stop'"),
        (lambda q: q.producer("p", required="yes"), r"producer\(required=\) expected True or False, found 'yes'"),
        (lambda q: q.hand_over(["s0"], q.owner), "hand_over expected refs"),
        (lambda q: q.adopt(["s0"]), "adopt expected refs"),
        (
            lambda q: q.get(1, 0.01, stop_event=True),
            r"stop_event=\) expected an event with is_set\(\), found True",
        ),
        (lambda q: q.producer(3), r"producer\(name\) expected a name, a string that is not empty, found 3"),
        (lambda q: q.producer(""), r"found ''"),
        (lambda q: q.consumer("c", expected="2"), r"consumer\(expected=\) expected an integer, found '2'"),
        (lambda q: q.publish_quantum(dp_size="2", batch_size=1), r"publish_quantum\(dp_size=\) expected an integer"),
        (lambda q: view_of(q.path), r"TrainerView\(queue\) expected a FileSampleRefQueue, found '"),
        (lambda q: view_of(q, partition=0), r"TrainerView\(partition=\) expected \(index, count\)"),
        (lambda q: view_of(q, partition=(2, 2)), "0 <= index < count"),
        (lambda q: view_of(q, batch="4"), r"TrainerView\(batch=\) expected an integer, found '4'"),
        (lambda q: view_of(q, batch=0), "an integer of 1 or more, found 0"),
        (lambda q: view_of(q, idle_timeout_s="3"), "expected a number of seconds"),
        (lambda q: DataFlowController("r", sample_queue=q.path), r"sample_queue=\) expected an object with put\(\)"),
        (lambda q: DataFlowController("r", metadata_store=q), r"expected an object with is_committed\(\)"),
        (lambda q: controller(q).commit_samples("w", ref("a")), r"write commit_samples\(\[ref\]\)"),
        (
            lambda q: controller(q).ack_train_refs("t", "s0"),
            r"of sample ids, found 's0', a str: write ack_train",
        ),
        (lambda q: controller(q).ack_train_refs("t", refs("s0")), "which are strings, found SampleRef.*its sample_id"),
        (lambda q: controller(q).fail_refs("t", "s0", "x", True), "iterable of sample ids, found 's0'"),
        (lambda q: controller(q).train_lease("t").ack(["s0"]), "expected refs, with a sample_id each, found 's0'"),
    ],
)
def test_a_slip_on_a_queue_of_files(tmp_path: Path, slip: Callable[[Any], object], words: str) -> None:
    """The calls that only a queue of files has."""
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        with pytest.raises(InvalidArgumentError, match=words):
            slip(queue)
        assert queue.stream().members() == [], "nobody has joined"


@pytest.mark.parametrize("step", ["7", -1, 1.5])
def test_a_step_that_is_none_is_shown(tmp_path: Path, step: Any) -> None:
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue:
        with pytest.raises(QueueConfigError, match=re.escape(f"found {step!r}")):
            queue.ack([], step=step)
        with pytest.raises(QueueConfigError, match=re.escape(f"found {step!r}")):
            queue.rewind(after_step=step)


@pytest.mark.parametrize("slip", ["3", 0, -1])
def test_a_slip_in_a_view_s_get_is_told(tmp_path: Path, slip: Any) -> None:
    """A number of refs that nobody can wait for is refused, and not waited for."""
    with FileSampleRefQueue(tmp_path / "q", durable=False) as queue, TrainerView(queue) as view:
        with pytest.raises(InvalidArgumentError, match="ack expected an iterable of refs"):
            view.ack(ref("a"))  # type: ignore[arg-type]
        with pytest.raises(InvalidArgumentError, match=r"get\(max_refs\) expected an integer"):
            view.get_interruptible(slip)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"lease_timeout_s": "60"}, "lease_timeout_s expected a number of seconds or None, found '60', a str"),
        ({"heartbeat_s": "5"}, "heartbeat_s expected a number"),
        ({"poll_interval_s": "5"}, "poll_interval_s expected a number"),
        ({"max_attempts": "3"}, "max_attempts expected an integer, found '3'"),
        ({"owner": 5}, "owner expected a string, found 5"),
        ({"owner": "\ud83d"}, "owner expected a string, found .* half a surrogate"),
        ({"run_id": 4711}, r"run_id expected a string, found 4711, a int: str\(\) makes one of a job's number"),
        ({"run_id": b"4711"}, "run_id expected a string, found b'4711'"),
        ({"run_id": "\udcff"}, "run_id expected a string, found .* a byte that is no UTF-8"),
        ({"durable": "no"}, "durable expected True or False, found 'no'"),
        ({"durable": None}, "durable expected True or False, found None"),
        ({"keep_done": "no"}, "keep_done expected True or False, found 'no'"),
        ({"create": "no"}, "create expected True or False, found 'no'"),
        ({"clock": 5.0}, "clock expected a function or None, found 5.0"),
        ({"max_attempts": True}, "max_attempts expected an integer, found True"),
        ({"max_deliveries": "20"}, "max_deliveries expected an integer, found '20'"),
        ({"codec": 5}, "codec expected an object with wire_type"),
        ({"ref_type": ref("a")}, "ref_type expected a dataclass, the class itself, found SampleRef"),
        ({"ref_type": dict}, "ref_type expected a dataclass"),
    ],
    ids=str,
)
def test_a_slip_in_an_option_makes_no_queue(tmp_path: Path, option: dict[str, Any], words: str) -> None:
    """An option of the wrong kind is refused before anything is created."""
    with pytest.raises(InvalidArgumentError, match=words):
        FileSampleRefQueue(tmp_path / "q", **option)
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    "lock_or_retry",
    [
        {"lock": 5},
        {"lock": ["flock"]},
        {"retry_delay_s": "5"},
        {"retry_delay_s": True},
        {"retry_delay_s": 1, "retry_backoff": None},
        {"retry_delay_s": 1, "retry_jitter": 10**400},
        {"io_threads": "8"},
        {"lease_timeout_s": 10**400},
        {"heartbeat_s": float("inf")},
    ],
    ids=str,
)
def test_what_a_queue_cannot_store_makes_no_queue(tmp_path: Path, lock_or_retry: dict[str, Any]) -> None:
    with pytest.raises(QueueConfigError, match="needs"):
        FileSampleRefQueue(tmp_path / "q", **lock_or_retry)
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("seconds", [60, 60.0, Fraction(60), np.float32(60), np.int64(60)], ids=repr)
def test_whatever_number_is_taken_is_stored_so_that_it_can_be_read(tmp_path: Path, seconds: Any) -> None:
    with FileSampleRefQueue(tmp_path / "q", lease_timeout_s=seconds) as queue:
        queue.configure(lease_timeout_s=2 * seconds)
    assert FileSampleRefQueue(tmp_path / "q", create=False).lease_timeout_s == 120


def test_a_setting_that_nobody_could_read_again_changes_nothing(tmp_path: Path) -> None:
    with FileSampleRefQueue(tmp_path / "q") as queue:
        with pytest.raises(QueueConfigError, match="needs retry_delay_s"):
            queue.configure(retry_delay_s=True)
        with pytest.raises(InvalidArgumentError, match=r"rewind\(force=\) expected True or False"):
            queue.rewind(after_step=1, force="no")  # type: ignore[arg-type]
    FileSampleRefQueue(tmp_path / "q", create=False).close()


@pytest.mark.parametrize("path", [None, 5, "", b"q", "q\0r", Path, ["q"]], ids=repr)
@pytest.mark.parametrize("make", [FileSampleRefQueue, FileMetadataStore, store_at], ids=lambda it: it.__name__)
def test_what_is_no_path_is_told_and_the_current_directory_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Any], object], path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InvalidArgumentError, match=r"path expected a path, as a string that is not empty or an os\.PathL"
    ):
        make(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda at: ledger_at(at, durable="no"), "durable expected True or False, found 'no'"),
        (lambda at: ledger_at(at, lock_timeout_s="9"), "lock_timeout_s expected seconds from 0 .*found '9'"),
        (lambda at: ledger_at(at, lock_timeout_s=None), "lock_timeout_s expected seconds"),
        (lambda at: ledger_at(at, ref_type=dict), "ref_type expected a dataclass"),
        (lambda at: store_at(at, durable="no"), "durable expected True or False, found 'no'"),
        (lambda at: store_at(at, verify="no"), "verify expected True or False"),
        (lambda at: store_at(at, mapped="no"), "mapped expected True or False"),
        (lambda at: made(4711), r"DataFlowController\(run_id\) expected a string, found 4711"),
        (lambda at: made("r", enable_sample_queue="no"), "enable_sample_queue=.* True or False"),
        (lambda at: made("r", max_prompt_attempts="3"), "max_prompt_attempts=.* an integer"),
        (lambda at: made("r", max_prompt_attempts=0), "max_prompt_attempts=.* 1 or more"),
        (lambda at: made("r", backpressure=5), r"backpressure=.* with should_pause_prompts\(\)"),
        (lambda at: in_memory(keep_done="no"), "keep_done expected True or False"),
        (lambda at: in_memory(lease_timeout_s="60"), "lease_timeout_s expected a number"),
    ],
)
def test_a_slip_in_an_option_of_a_store_a_ledger_or_a_controller_makes_nothing(
    tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        make(tmp_path / "it")
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.parametrize(
    ("bad", "where"),
    [
        (ref("s617", metadata={"score": float("nan")}), "score"),
        (ref("s617", metadata={"text": "bad \ud83d half"}), "text"),
        (ref("s617", num_tokens="many"), "num_tokens"),
        (ref("s617", metadata={"x": {1, 2}}), "x"),
    ],
    ids=["nan", "surrogate", "type", "set"],
)
def test_a_bad_value_is_named_by_its_ref(tmp_path: Path, kind: str, bad: SampleRef, where: str) -> None:
    """Of a thousand refs, the error names the one, its place in the batch, and the path inside it."""
    batch = numbered(1_000)
    batch[617] = bad
    with opened(kind, tmp_path) as queue:
        with pytest.raises(InvalidRefError, match=rf"{where}.*refs\[617\], 's617'") as caught:
            queue.put(batch)
        assert (caught.value.sample_id, caught.value.index) == ("s617", 617)
        assert queue.depth() == 0


def test_an_unusable_id_is_named_by_its_place(tmp_path: Path) -> None:
    """A ref whose id says nothing is found by its place."""
    with FileSampleRefQueue(tmp_path / "q") as queue, pytest.raises(InvalidRefError, match=r"refs\[1\], ''"):
        queue.put(refs("a", ""))
    with FileSampleRefQueue(tmp_path / "q") as queue, pytest.raises(InvalidRefError, match=r"\(in refs\[0\]\)"):
        queue.put([None])  # type: ignore[list-item]
    assert names_in(tmp_path / "q", "pending") == []
