"""Members that leave, fall silent, and come back: who is waited for, for how long, and who takes whose place."""

from __future__ import annotations

import errno
import json
import os
import signal
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fsqueue import (
    FileSampleRefQueue,
    InvalidArgumentError,
    MemberFailedError,
    MemberMissingError,
    MemberReplacedError,
    PartialWindowWarning,
    QueueConfigError,
    QueueIOError,
    StreamStalledError,
    TrainerView,
)
from fsqueue.engine import owners
from fsqueue.operate.check import check_queue
from fsqueue.stream.agreement import Rendezvous
from fsqueue.stream.launch import Launch, launch
from fsqueue.stream.membership import Membership
from fsqueue.stream.policy import StreamPolicy
from tests.support import GUARD_S, Queue, Tap, backdate, open_tapped, ref, refs
from tests.support.ranks import Group


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, members look as if they ran on another host."""
    described = owners.describe_self

    def move() -> None:
        monkeypatch.setattr(owners, "describe_self", lambda *given: replace(described(*given), host="elsewhere"))

    return move


def states(path: Path) -> list[str]:
    """The states that the members' files name, by name."""
    parts = (name.removesuffix(".json").split("@") for name in os.listdir(path / "stream") if "er@" in name)
    return sorted(f"{name.rpartition('-')[0]} {state}" for _, name, state in parts)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_leaving_is_not_failing(queue: Queue, path: Path, error: BaseException) -> None:
    """The leases come back without an attempt counted, the stream goes on, and a successor takes the place."""
    queue.put(refs("s0", "s1"))
    with pytest.raises(type(error)), queue.consumer("trainer"):
        queue.get(2)
        raise error
    assert states(path) == ["trainer withdrawn"]
    assert queue.counts() == (2, 0, 0, 0)
    queue.stream().raise_failures("consumer")
    assert not queue.stream().all_closed("consumer")
    with queue.consumer("trainer"):
        assert states(path) == ["trainer open"]
        assert {each.sample_id for each in queue.get(2)} == {"s0", "s1"}
    assert check_queue(path) == []


def test_a_member_that_is_withdrawing_is_seen_once(queue: Queue, path: Path) -> None:
    """Also where it died half way, with both files there."""
    with pytest.raises(SystemExit), queue.producer("rollout"):
        (file,) = (path / "stream").glob("producer@*")
        opened = file.read_bytes()
        raise SystemExit
    file.write_bytes(opened)
    assert [member.standing for member in queue.stream().members()] == ["withdrawn"]
    with queue.producer("rollout"):
        assert states(path) == ["rollout open"]


def test_a_producer_that_withdrew_does_not_end_the_stream(queue: Queue) -> None:
    with pytest.raises(SystemExit), queue.producer("rollout"):
        raise SystemExit
    assert not queue.drained()
    with queue.producer("rollout"):
        pass
    assert queue.drained()


def test_who_stops_because_of_another_leaves_no_failure_of_its_own(queue: Queue, path: Path) -> None:
    """Also where the user's code wraps that error in one of its own."""
    with pytest.raises(ValueError), queue.producer("rollout"):
        raise ValueError("NaN")
    with pytest.raises(MemberFailedError), queue.consumer("trainer"):
        queue.stream().raise_failures("producer")
    with pytest.raises(RuntimeError), queue.consumer("other"):
        try:
            queue.stream().raise_failures("producer")
        except MemberFailedError as error:
            raise RuntimeError("the epoch did not end") from error
    assert states(path) == ["other withdrawn", "rollout failed", "trainer withdrawn"]


@pytest.mark.parametrize("handler", ["default", "own"])
def test_sigterm_withdraws(queue: Queue, path: Path, handler: str) -> None:
    """By SystemExit, or, where the process has a handler, after that; which is there again behind the block."""
    called: list[int] = []
    before = signal.signal(signal.SIGTERM, (lambda *_: called.append(1)) if handler == "own" else signal.SIG_DFL)
    try:
        mine = signal.getsignal(signal.SIGTERM)
        if handler == "own":
            with queue.producer("rollout", on_sigterm="withdraw"):
                os.kill(os.getpid(), signal.SIGTERM)
        else:
            with pytest.raises(SystemExit) as ended, queue.producer("rollout", on_sigterm="withdraw"):
                os.kill(os.getpid(), signal.SIGTERM)
            assert ended.value.code == 143
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    assert called == [1] * (handler == "own")
    assert states(path) == ["rollout withdrawn"]


def test_a_second_sigterm_cuts_nothing_short(queue: Queue, path: Path) -> None:
    """Slurm sends one when a job is preempted, and one more at the end of its time of grace: a checkpoint is saved."""
    saved: list[int] = []
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit), queue.producer("rollout", on_sigterm="withdraw"):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                saved.append(1)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved == [1]
    assert states(path) == ["rollout withdrawn"]


def test_sigterm_is_handled_in_the_main_thread_alone(queue: Queue, path: Path) -> None:
    import threading

    caught: list[BaseException] = []

    def work() -> None:
        try:
            with queue.producer("rollout", on_sigterm="withdraw"):
                pass
        except InvalidArgumentError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(GUARD_S)
    assert len(caught) == 1 and states(path) == []


def test_a_required_member_that_is_missing_stops_the_others_at_once(queue: Queue) -> None:
    with pytest.raises(SystemExit), queue.producer("rollout", required=True):
        raise SystemExit
    with pytest.raises(MemberMissingError, match=r"'rollout'.*withdrew.*it is required"):
        queue.stream().raise_failures("producer")


def test_a_member_that_was_awaited_stops_only_those_who_need_it(queue: Queue, path: Path, elsewhere: Any) -> None:
    """Of two producers one is gone for good: the trainers go on while the other one is at work, and not after it."""
    queue.configure_stream(await_s=0.0)
    with queue.producer("left"):
        with pytest.raises(SystemExit), queue.producer("gone"):
            raise SystemExit
        backdate(next((path / "stream").glob("*withdrawn*")), 5.0)
        queue.stream().opened_at -= 10.0
        queue.stream().raise_failures("producer")
    with pytest.raises(MemberMissingError, match=r"'gone'.*to wait longer, configure_stream"):
        queue.stream().raise_failures("producer")


def test_a_quorum_ends_the_stream_without_the_others(queue: Queue) -> None:
    """So many producers have closed, and no other one is at work."""
    queue.configure_stream(quorum=1)
    with queue.producer("a", expected=3):
        with queue.producer("b", expected=3):
            pass
        assert not queue.drained()
    assert queue.drained()
    assert queue.configure_stream(await_s=5.0) == StreamPolicy(await_s=5.0, quorum=1)
    assert queue.configure_stream(quorum=0).quorum == 0
    assert not queue.drained()


def test_a_failed_member_is_awaited_where_the_run_says_so(queue: Queue, path: Path) -> None:
    """torchrun starts it again: until then nobody stops."""
    queue.configure_stream(restart_s=100.0)
    with pytest.raises(ValueError), queue.producer("rollout"):
        raise ValueError("NaN")
    queue.stream().raise_failures("producer")
    queue.stream().opened_at -= 1_000.0
    backdate(next((path / "stream").glob("*failed*")), 101.0)
    with pytest.raises(MemberFailedError, match="NaN"):
        queue.stream().raise_failures("producer")


@pytest.mark.parametrize(
    "wrong", [{"silence_s": 0}, {"await_s": -1}, {"restart_s": float("nan")}, {"quorum": -1}, {"silence_s": "30"}]
)
def test_a_policy_that_can_mean_nothing_is_refused(queue: Queue, wrong: dict[str, Any]) -> None:
    with pytest.raises(QueueConfigError, match=next(iter(wrong))):
        queue.configure_stream(**wrong)
    assert queue.stream().policy() == StreamPolicy()


def test_a_launcher_s_count_proves_that_the_namesake_is_gone(
    queue: Queue, path: Path, elsewhere: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same Slurm job, one restart later: the place is taken at once, and the former process is told."""
    elsewhere()
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    with FileSampleRefQueue(path, durable=False) as other:
        former = other.producer("rollout")
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with queue.producer("rollout"):
            assert states(path) == ["rollout open"]
            former.beat()
            with pytest.raises(MemberReplacedError, match="rollout"):
                former.raise_if_replaced()
            with pytest.raises(MemberReplacedError):
                former.close()
            assert states(path) == ["rollout open"]


@pytest.mark.parametrize(
    ("environment", "known"),
    [
        ({}, Launch()),
        ({"SLURM_JOB_ID": "7"}, Launch("slurm 7", (0,))),
        ({"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "2"}, Launch("slurm 7", (2,))),
        ({"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "2"}, Launch()),
        (
            {"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "r", "TORCHELASTIC_RESTART_COUNT": "2"},
            Launch("slurm 7, torchrun r", (0, 2)),
        ),
    ],
)
def test_what_launchers_say(environment: dict[str, str], known: Launch) -> None:
    assert launch(environment=environment) == known


def test_a_restart_by_the_outer_launcher_counts_for_more() -> None:
    """torchrun counts from 0 again in a job that Slurm has started again."""
    assert Launch("slurm 7, torchrun r", (1, 0)).succeeds(Launch("slurm 7, torchrun r", (0, 3)))
    assert not Launch("slurm 7", (1,)).succeeds(Launch("slurm 8", (0,)))
    assert not Launch().succeeds(Launch())


def test_without_proof_a_namesake_has_to_fall_silent(queue: Queue, path: Path, elsewhere: Any) -> None:
    """On another host, killed or not, nobody can tell: whoever joins waits, and is refused as soon as it beats."""
    queue.configure_stream(silence_s=1.0)
    elsewhere()
    with FileSampleRefQueue(path, durable=False) as other:
        former = other.producer("rollout")
        with pytest.raises(QueueConfigError, match="another name"):
            queue.producer("rollout")
        former._end()  # as if its process had been killed
        with queue.producer("rollout"):
            assert states(path) == ["rollout open"]


def test_a_member_that_was_replaced_leaves_no_mark(queue: Queue, path: Path) -> None:
    """Its process runs all the same, and fails: the run goes on with the one that has its place."""
    with FileSampleRefQueue(path, durable=False) as other:
        former = other.producer("rollout", attempt=0)
        with queue.producer("rollout", attempt=1):
            former.fail("NaN")
            assert states(path) == ["rollout open"]
            with pytest.raises(MemberReplacedError):
                former.raise_if_replaced()
            queue.stream().raise_failures("producer")


def test_marks_of_another_run_concern_nobody(queue: Queue, path: Path) -> None:
    """Where both say which run they belong to."""
    from fsqueue.stream.stream import Stream

    one, two = (Stream(queue.handle, queue.stream().opened_at, run) for run in ("run-1", "run-2"))
    joined: list[Membership] = []
    one.join("producer", "rollout", joined)
    joined[0].fail("NaN")
    two.raise_failures("producer")
    with pytest.raises(MemberFailedError):
        one.raise_failures("producer")


def train(pipe: Connection, path: Path, rank: int, world: int) -> None:
    """One rank: tell each batch, and go on when told to."""
    warnings.simplefilter("ignore", PartialWindowWarning)
    with (
        FileSampleRefQueue(path, durable=False, heartbeat_s=0.2) as queue,
        TrainerView(queue, partition=(rank, world) if world > 1 else None, batch=2, session="run") as view,
    ):
        step = 0
        while batch := view.get():
            step += 1
            view.ack(batch, step=step)
            pipe.send([each.sample_id for each in batch])
            pipe.recv()
    pipe.send("ended")


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_that_is_started_again_goes_on_where_the_others_are(queue: Queue, path: Path, killed: int) -> None:
    """The other one has waited for it, whichever of the two leads; every sample is trained once."""
    with queue.producer("rollout"):
        queue.put([ref(f"s{number:02d}") for number in range(24)])
    group = Group(train, path, 2)
    try:
        trained = [group.batches() for _ in range(2)]
        group.kill(killed)
        group.restart(killed)
        while "ended" not in (said := group.batches()):
            trained.append(said)
    finally:
        group.end()
    assert said == ["ended", "ended"]
    assert queue.counts() == (0, 0, 24, 0)
    assert check_queue(path) == []


@pytest.mark.parametrize("world", [1, 3])
def test_a_group_comes_back_with_another_number_of_ranks(queue: Queue, path: Path, world: int) -> None:
    """Under the same session name; whoever is no rank any more is missed by nobody."""
    producer = queue.producer("rollout")
    queue.put([ref(f"s{number:02d}") for number in range(24)])
    group = Group(train, path, 2)
    try:
        group.batches()
        for rank in range(2):
            group.kill(rank)
        group.end()
        group = Group(train, path, world)
        group.batches()
        queue.put_when_below([ref("late")], high=1_000)
        producer.close()
        while "ended" not in (said := group.batches()):
            pass
    finally:
        group.end()
    assert said == ["ended"] * world
    assert [state for state in states(path) if state.startswith("run")] == [f"run-{k} closed" for k in range(world)]
    assert queue.counts().leased == 0 and queue.counts().pending < 2 * world


def test_a_member_that_cannot_be_asked_is_awaited_once_silent(queue: Queue, path: Path, elsewhere: Any) -> None:
    """Silence alone ends nothing until `await_s` is over."""
    elsewhere()
    with FileSampleRefQueue(path, durable=False) as other:
        former = other.producer("rollout")
        former._end()
        backdate(next((path / "stream").glob("producer@*")), 40.0)
        (seen,) = queue.stream().members()
        assert seen.standing == "silent"
        queue.stream().raise_failures("producer")


def test_ranks_whose_windows_have_come_apart_meet_again(path: Path) -> None:
    """Rank 1 has followed a predecessor of rank 0 to window 2, and rank 2 has spoken on window 0 before rank 0 did."""
    names = [f"run-{rank}" for rank in range(3)]
    with ExitStack() as stack:
        queues = [stack.enter_context(FileSampleRefQueue(path, durable=False)) for _ in range(4)]
        gone = queues[3].consumer(names[0])
        decided = json.dumps({"owners": [queues[3].owner, "x.1.aaaaaa", "x.2.bbbbbb"]})
        (path / "stream" / f"verdict@run.{queues[3].owner}@1.go.json").write_text(decided)
        for number in (1, 2):
            stack.enter_context(queues[number].consumer(names[number]))
        ranks = [Rendezvous(each.handle, each.stream(), k, names, "run") for k, each in enumerate(queues[:3])]
        (path / "stream" / f"rank@run.0.3.{queues[3].owner}@2.ready.json").write_text(
            json.dumps({"owner": queues[3].owner, "leader": queues[3].owner})
        )
        ranks[1].post("ready")
        gone.vanish()
        with queues[0].consumer(names[0]):
            ranks[2].post("ready")
            for _ in range(2):
                for rank in (ranks[1], ranks[0], ranks[2]):
                    rank.look_for_leader()
                    rank.post("ready")
                    rank.verdict()
            assert [rank.window for rank in ranks] == [2, 2, 2]
            assert [rank.verdict() for rank in ranks] == ["go", "go", "go"]
            for _ in range(2):  # however far rank 0 has come, the others take what was decided for them
                ranks[0].next_window()
                ranks[0].post("ready")
                ranks[2].post("ready")
                assert (ranks[2].window, ranks[2].verdict()) == (2, "go")


def test_a_rank_that_comes_back_after_the_others_had_come_to_the_end_is_told_so(queue: Queue, path: Path) -> None:
    """It has a batch, and nobody will agree on it: this ends when the others could have come back, too."""
    queue.configure_stream(await_s=0.3)
    with queue.producer("rollout"), FileSampleRefQueue(path, durable=False) as other:
        queue.put([ref(f"s{number}") for number in range(4)])
        TrainerView(other, partition=(1, 2), batch=2, session="run").close()
        backdate(next((path / "stream").glob("consumer@*closed*")), 100.0)
        with FileSampleRefQueue(path, durable=False) as late, pytest.raises(StreamStalledError, match="has left"):
            TrainerView(late, partition=(0, 2), batch=2, session="run").get()


@pytest.mark.parametrize("look", ["members", "drained", "get"])
def test_errors_of_a_stream_name_the_queue(
    queue: Queue, path: Path, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    with TrainerView(queue, batch=1) as view:
        stream = queue.stream()

        def stale(*_: object) -> None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        with monkeypatch.context() as broken:
            broken.setattr(stream.directory, "listing", stale)
            view._share._looked_at -= 100.0
            with pytest.raises(QueueIOError, match=str(path)):
                (view.get if look == "get" else getattr(stream, look))()


def test_a_join_that_was_cut_short_can_be_repeated(tmp_path: Path) -> None:
    """Its file was published when the server stopped to answer, and could not be removed; a living namesake stays."""
    tap = Tap()
    published = False

    def dead(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal published
        if published and name not in ("close", "unlock"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        published = published or (
            name == "fsync" and (tmp_path / "q" / "stream").exists() and bool(members_in(tmp_path))
        )

    with open_tapped(tap, tmp_path / "q") as queue:
        queue.stream()
        tap.before = dead
        with pytest.raises(QueueIOError, match="EIO"):
            queue.consumer("trainer-0", attempt=1)
        tap.before = None
        assert len(members_in(tmp_path)) == 1
        with queue.consumer("trainer-0", attempt=1):
            assert len(members_in(tmp_path)) == 1
            with pytest.raises(QueueConfigError, match="'trainer-0'"):
                queue.consumer("trainer-0", attempt=1)


def members_in(path: Path) -> list[str]:
    return [name for name in os.listdir(path / "q" / "stream") if name.startswith("consumer@")]
