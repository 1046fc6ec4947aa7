"""A paused queue: nobody leases, all else goes on, and those who wait say so."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fsqueue.operate as operate
from fsqueue import FileSampleRefQueue, StreamStalledError, TrainerView
from fsqueue.aio import AsyncSampleRefQueue
from fsqueue.cli.main import cli
from fsqueue.engine.pausing import LOOK_S, PAUSED, Paused
from tests.support import Child, InThread, Queue, Tap, assert_clean, content, ids, numbered, open_tapped, refs


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli, list(map(str, arguments)))


class Hours:
    """A monotonic clock that sleeps at once."""

    def __init__(self, tap: Tap) -> None:
        self.now = 1_000.0
        tap.ops.monotonic = lambda: self.now
        tap.ops.sleep = self.sleep
        self._resumed: tuple[Queue, float] | None = None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if self._resumed is not None and self.now > self._resumed[1]:
            self._resumed[0].resume()

    def resume_after(self, queue: Queue, seconds: float) -> float:
        """Have a queue resumed by the first sleep that ends later than so long from now; return what time it is now."""
        self._resumed = queue, self.now + seconds
        return self.now


def test_a_paused_queue_leases_nothing_and_goes_on_with_the_rest(path: Path, queue: Queue) -> None:
    queue.put(refs("a", "b", "c"))
    a, b = queue.get(2)
    queue.pause("the store moves")
    assert queue.get(5) == [] and queue.get(5, partition=(0, 1)) == []
    queue.put(refs("d"))
    assert queue.renew([a]) == queue.ack([a]) == queue.release([b]) == []
    assert queue.counts() == (3, 0, 1, 0)
    queue.resume()
    assert ids(queue.get(5)) == ["c", "d", "b"]


def test_what_the_file_says(path: Path, queue: Queue) -> None:
    """`ls` shows it; it says since when, by whom and why, and a second pause changes the reason alone."""
    first = queue.pause("the store moves")
    assert content(path / PAUSED) == {"at": first.at, "by": first.by, "reason": "the store moves"}
    assert first.by is not None and first.by.endswith(f"@{os.uname().nodename}")
    second = queue.pause()
    assert (second.at, second.reason) == (first.at, None) and queue.paused() == second
    assert queue.resume() == second and not (path / PAUSED).exists()
    assert queue.resume() is None and queue.paused() is None
    assert_clean(path)


def test_other_handles_heed_it_within_a_second(path: Path, queue: Queue) -> None:
    tap = Tap()
    hours = Hours(tap)
    other = open_tapped(tap, path)
    queue.put(numbered(9))
    assert len(other.get(1)) == 1
    queue.pause()
    hours.now += LOOK_S
    assert other.get(1) == []
    queue.resume()
    hours.now += LOOK_S
    assert len(other.get(1)) == 1
    other.close()


def test_a_get_that_waits_goes_on_within_a_second(path: Path, queue: Queue) -> None:
    """Also with a partition, whose gets do not wait otherwise where anything is pending."""
    for partition in (None, (0, 1)):
        tap = Tap()
        hours = Hours(tap)
        other = open_tapped(tap, path)
        queue.put(refs(f"a{partition}"))
        queue.pause()
        began = hours.now
        resumed: list[float] = []

        def resume_later(
            seconds: float, hours: Hours = hours, began: float = began, resumed: list[float] = resumed
        ) -> None:
            hours.now += seconds
            if hours.now - began > 600.0 and queue.resume():
                resumed.append(hours.now)

        tap.ops.sleep = resume_later
        assert ids(other.get(1, 3600.0, partition=partition)) == [f"a{partition}"]
        assert hours.now - resumed[0] <= LOOK_S + 0.2
        other.ack(other.get(1))
        other.close()


@pytest.mark.parametrize("mount", ["tmpfs", "nfs4"])
def test_looking_costs_nothing_but_one_look_a_second(path: Path, mount: str) -> None:
    """Gets and a waiting get look once a second at most; puts and acks never."""
    with FileSampleRefQueue(path, durable=False) as other:
        other.put(numbered(200))
    tap = Tap()
    tap.ops.filesystem_type = lambda path: mount
    real = tap.ops.open
    tap.ops.open = lambda path, flags, *rest, **named: real(path, flags & ~os.O_DIRECT, *rest, **named)
    hours = Hours(tap)
    queue = open_tapped(tap, path, durable=False)
    looks = Counter[int]()

    def count(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if PAUSED in args or (name == "listdir" and os.readlink(f"/proc/self/fd/{args[0]}") == str(path)):
            looks[int(hours.now)] += 1

    tap.before = count
    for _ in range(50):
        queue.ack(queue.get(2))
        hours.now += 0.1
    assert set(looks.values()) == {1} and 5 <= len(looks) <= 6
    looks.clear()
    queue.ack(queue.get(100))
    queue.get(1, 60.0)
    assert max(looks.values()) == 1
    queue.close()


def test_a_pause_by_hand_is_one(path: Path, queue: Queue) -> None:
    """`touch` and `rm` do; nobody is named."""
    queue.put(refs("a"))
    (path / PAUSED).touch()
    assert queue.paused() == Paused() and queue.get(1) == []
    assert operate.status(path).paused == Paused()
    assert "paused\n" in run("status", path).stdout
    (path / PAUSED).unlink()
    assert queue.paused() is None and ids(queue.get(1)) == ["a"]


def test_the_log_says_so_once(path: Path, queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fsqueue"):
        queue.pause("the store moves")
        for _ in range(3):
            queue.get(1)
        queue.resume()
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in said] == ["WARNING", "INFO"]
    assert "is paused by" in said[0][1] and "the store moves" in said[0][1]


def test_leases_expire_while_it_is_paused(path: Path) -> None:
    from tests.support import FakeClock, two_handles

    clock = FakeClock()
    first, second = two_handles(path, clock)
    first.put(refs("a"))
    first.get(1)
    second.pause()
    clock.advance(1_000.0)
    assert second.get(1) == [] and second.depth() == 1
    first.close()
    second.close()


def test_a_paused_queue_is_not_drained(path: Path, queue: Queue) -> None:
    with queue.producer("p"):
        queue.pause()
    assert not queue.drained()
    queue.resume()
    assert queue.drained()


def test_a_loop_waits_and_its_idle_time_does_not_run(path: Path, queue: Queue) -> None:
    """It goes on where the pause ends, after longer than idle_s."""
    queue.put(refs("a"))
    tap = Tap()
    hours = Hours(tap)
    other = open_tapped(tap, path)
    queue.pause()
    for idle_s in (0.0, 5.0):
        hours.resume_after(queue, 300.0)
        done = []
        for lease in other.consume(idle_s=idle_s):
            with lease as ref:
                done.append(ref.sample_id)
        assert done == (["a"] if not idle_s else ["b"])
        queue.put(refs("b"))
        queue.pause()
    other.close()


def test_a_loop_of_asyncio_waits_too(path: Path, queue: Queue) -> None:
    async def work() -> list[str]:
        done = []
        async with AsyncSampleRefQueue(FileSampleRefQueue(path, durable=False)) as it:
            await it.put(refs("a"))
            await it.pause("tests")
            assert (await it.paused()) is not None

            async def resume() -> None:
                await asyncio.sleep(0.05)
                await it.resume()

            resuming = asyncio.create_task(resume())
            async for lease in it.consume(idle_s=0):
                async with lease as ref:
                    done.append(ref.sample_id)
            await resuming
        return done

    assert asyncio.run(work()) == ["a"]


def test_a_view_waits_for_the_end_of_a_pause(path: Path, queue: Queue) -> None:
    """Its idle_timeout_s does not run meanwhile, but from the end of the pause on."""
    tap = Tap()
    hours = Hours(tap)
    trainer = open_tapped(tap, path, durable=False)
    queue.put(refs("a"))
    with queue.producer("p"), TrainerView(trainer, idle_timeout_s=30.0) as view:
        queue.pause()
        began = hours.resume_after(queue, 600.0)
        assert ids(view.get(1)) == ["a"] and hours.now - began > 600.0
        view.ack(refs("a"))
        with pytest.raises(StreamStalledError) as caught:
            view.get(1)
        assert "paused" not in str(caught.value)
    trainer.close()


def test_a_producer_at_a_watermark_is_told_of_the_pause(path: Path, queue: Queue) -> None:
    queue.put(refs("a", "b"))
    queue.pause("the store moves")
    with pytest.raises(StreamStalledError, match=r"the queue is paused by .*the store moves.*fsqueue resume"):
        queue.put_when_below(refs("c"), high=2, timeout_s=0.0)


def test_status_top_and_metrics_show_it(path: Path, queue: Queue) -> None:
    assert run("pause", path, "--reason", "the store moves").exit_code == 0
    seen = json.loads(run("status", path, "--json").stdout)["paused"]
    assert seen["reason"] == "the store moves" and set(seen) == {"at", "by", "reason"}
    for command in (("status", path), ("top", path, "--count", "1")):
        assert "paused for" in run(*command).stdout and ": the store moves" in run(*command).stdout
    assert f'fsqueue_paused{{queue="{path}"}} 1.0' in run("metrics", path).stdout
    assert run("resume", path).stderr == f"resumed {path}\n"
    assert json.loads(run("status", path, "--json").stdout)["paused"] is None
    assert f'fsqueue_paused{{queue="{path}"}} 0.0' in run("metrics", path).stdout


def test_the_commands_say_what_they_do(path: Path, queue: Queue) -> None:
    assert run("pause", path, "--dry-run").stderr == f"would pause {path}\n" and queue.paused() is None
    assert run("pause", path).stderr == f"paused {path}\n"
    assert run("resume", path, "--dry-run").stderr == f"would resume {path}\n" and queue.paused() is not None
    assert run("resume", path).exit_code == 0 and run("resume", path).stderr == f"{path} is not paused\n"
    for command in ("pause", "resume"):
        assert run(command, path / "typo").exit_code == 3 and not (path / "typo").exists()


def test_a_full_disk_can_be_paused(disk: Path) -> None:
    """The reserve is given up for it."""
    from tests.support import fill

    with FileSampleRefQueue(disk / "q") as queue:
        fill(disk)
        queue.pause()
        assert queue.paused() is not None and queue.resume() is not None


def pause_and_wait(pipe: Any, path: Path) -> None:
    with FileSampleRefQueue(path, durable=False) as queue:
        pipe.send(queue.get(1))
        pipe.send(ids(queue.get(1, 60.0)))


def test_another_process_waits_until_the_queue_goes_on(path: Path, queue: Queue) -> None:
    queue.pause()
    queue.put(refs("a"))
    with Child(pause_and_wait, path) as child:
        assert child.receive() == []
        assert not child.pipe.poll(0.2) and queue.depth() == 1
        operate.resume(path)
        assert child.receive() == ["a"]


def test_a_copy_of_a_handle_finds_the_pause(path: Path, queue: Queue) -> None:
    queue.put(refs("a"))
    queue.pause()
    with pickle.loads(pickle.dumps(queue)) as copy:
        assert copy.get(1) == []
        waiting = InThread(lambda: ids(copy.get(1, 60.0)))
        copy.resume()
        assert waiting.result() == ["a"]
