"""A member whose place another process has taken, though it runs, hears of it in its own calls, and leaves no mark."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fsqueue import FileSampleRefQueue, MemberReplacedError
from fsqueue.disk.directory import Directory
from fsqueue.engine.owners import OwnerRecord, describe_self
from fsqueue.stream.launch import Launch
from fsqueue.stream.members import Record, State, member_file
from fsqueue.stream.membership import Membership
from tests.support import GUARD_S, Queue, refs, wait_until


@pytest.fixture
def old(path: Path) -> Iterator[Queue]:
    with FileSampleRefQueue(path, durable=False) as it:
        yield it


@pytest.fixture
def new(path: Path) -> Iterator[Queue]:
    with FileSampleRefQueue(path, durable=False) as it:
        yield it


def members(path: Path) -> list[str]:
    return sorted(
        name.split("@")[2].removesuffix(".json") for name in os.listdir(path / "stream") if name.count("@") == 2
    )


@pytest.mark.parametrize("call", ["put", "put_when_below"])
def test_a_replaced_producer_puts_nothing_more(old: Queue, new: Queue, path: Path, call: str) -> None:
    """Not below the watermark either; and it leaves no mark."""
    with pytest.raises(MemberReplacedError), old.producer("rollout", attempt=1) as member:
        old.put_when_below(refs("s0"), high=9)
        new.producer("rollout", attempt=2)
        if call == "put":  # learns it from the heartbeat
            member.beat()
            old.put(refs("s1"))
        else:
            old.put_when_below(refs("s1"), high=9)
    assert old.counts().pending == 1
    assert members(path) == ["open"]


def test_a_replaced_producer_that_waits_for_room_hears_of_it(old: Queue, new: Queue) -> None:
    with pytest.raises(MemberReplacedError), old.producer("rollout", attempt=1) as member:
        old.put(refs("s0", "s1"))
        depth, looks = old.stream(), []

        def replaced(role: str) -> bool:
            looks.append(role)
            if len(looks) == 2:
                new.producer("rollout", attempt=2)
                member.beat()
            return False

        depth.some_had_closed = replaced  # type: ignore[method-assign]
        old.put_when_below(refs("s2"), high=2)
    assert len(looks) == 2


@pytest.mark.parametrize("role", ["producer", "consumer"])
@pytest.mark.parametrize("known", [False, True])
def test_the_end_of_a_replaced_members_block_says_so(
    old: Queue, new: Queue, path: Path, role: str, known: bool
) -> None:
    """Whether or not its heartbeat has seen it before; its successor's file alone is left."""
    with pytest.raises(MemberReplacedError), getattr(old, role)("m", attempt=1) as member:
        getattr(new, role)("m", attempt=2)
        if known:
            member.beat()
    assert members(path) == ["open"]
    member.close()  # it has been said


def test_who_was_told_may_join_again(old: Queue, new: Queue) -> None:
    """And puts as its own successor."""
    with pytest.raises(MemberReplacedError), old.producer("rollout", attempt=1):
        new.producer("rollout", attempt=2).close()
    with old.producer("rollout", attempt=3):
        old.put_when_below(refs("s0"), high=9)
    old.put(refs("s1"))


def test_the_error_of_the_work_is_not_hidden(old: Queue, new: Queue, path: Path) -> None:
    with pytest.raises(ValueError, match="NaN"), old.producer("rollout", attempt=1):
        new.producer("rollout", attempt=2)
        raise ValueError("NaN")
    assert members(path) == ["open"]


def test_a_close_that_was_done_and_answered_by_enoent_is_a_close(
    old: Queue, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where the request was sent again."""
    member = old.producer("rollout")
    rename = old.handle.ops.rename

    def twice(*names: Any, **within: Any) -> None:
        rename(*names, **within)
        rename(*names, **within)

    monkeypatch.setattr(old.handle.ops, "rename", twice, raising=False)
    member.close()
    assert members(path) == ["closed"]


@pytest.mark.parametrize("end", ["withdraw", "fail"])
@pytest.mark.parametrize("proof", [True, False])
@pytest.mark.parametrize("marked", [True, False])
def test_no_mark_stays_beside_a_successor_that_joins_while_it_is_made(
    old: Queue, new: Queue, path: Path, monkeypatch: pytest.MonkeyPatch, end: str, proof: bool, marked: bool
) -> None:
    """Before it is there, or after: in either order, the successor's file alone is left."""
    member = old.producer("rollout", attempt=1 if proof else None)
    write = Membership._write

    def meets_its_successor(it: Membership, state: State, record: Record) -> None:
        if it is member and not marked:
            new.producer("rollout", attempt=2 if proof else None)
        write(it, state, record)
        if it is member and marked:
            new.producer("rollout", attempt=2 if proof else None)

    monkeypatch.setattr(OwnerRecord, "liveness", lambda record: "dead")
    monkeypatch.setattr(Membership, "_write", meets_its_successor)
    getattr(member, end)("why")
    assert members(path) == ["open"]


def test_a_mark_beside_a_successor_with_proof_is_nobodys(old: Queue, new: Queue, path: Path) -> None:
    """While the process before it makes it, nobody stops."""
    new.producer("rollout", attempt=2)
    record = Record(name="rollout", process=describe_self("x.1.aaaaaa", 0.0, 5.0), launch=Launch("given", (1,)))
    (path / "stream" / member_file("producer", record, "failed")).write_bytes(msgspec.json.encode(record))
    old.stream().raise_failures("producer")
    assert [member.state for member in old.stream().members()] == ["open"]


def test_a_beat_that_comes_upon_the_rename_of_a_close_takes_it_for_no_successor_s(
    new: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heart's thread has found the file gone, and says what that means once the member has left."""
    member = new.consumer("trainer-0")
    asked, left, calls = threading.Event(), threading.Event(), list[int]()
    is_over, has_closed_in, leaves = member.is_over, member._has_closed_in, member._leaves

    def asking() -> bool:
        over = is_over()
        if threading.current_thread() is beating:
            calls.append(1)
            if len(calls) == 3:  # after the second look at the file
                asked.set()
                assert left.wait(GUARD_S)
        return over

    def closing(directory: Directory) -> bool:
        closed = has_closed_in(directory)
        beating.start()
        wait_until(lambda: asked.is_set() or not beating.is_alive(), "the beat")
        return closed

    def leaving() -> None:
        left.set()
        beating.join(GUARD_S)
        leaves()

    beating = threading.Thread(target=member.beat)
    monkeypatch.setattr(member, "is_over", asking)
    monkeypatch.setattr(member, "_has_closed_in", closing)
    monkeypatch.setattr(member, "_leaves", leaving)
    member.close()
    assert [found.state for found in new.stream().members()] == ["closed"]
