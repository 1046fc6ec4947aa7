"""The order hint: it decides nothing but the order, and it keeps every call's cost apart from the backlog."""

from __future__ import annotations

import errno
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fsqueue import FileSampleRefQueue, QueueIOError, dp_partition
from fsqueue.engine import unnamed
from fsqueue.engine.claim import Claimer
from fsqueue.engine.layout import HEADER_BYTES
from fsqueue.engine.order import Header
from fsqueue.format import lines as order_lines
from fsqueue.format.lines import DEAD, stems_in
from tests.support import FakeClock, Tap, assert_clean, drain, ids, names_in, numbered, open_tapped, ref, refs

Damage = Callable[[Path], None]


def rewrite(change: Callable[[bytes], bytes]) -> Damage:
    """A damage done in place, to the same inode."""

    def damage(order: Path) -> None:
        data = change(order.read_bytes())
        with open(order, "r+b") as file:
            file.truncate(0)
            file.write(data)

    return damage


def replace_by(data: bytes) -> Damage:
    def damage(order: Path) -> None:
        order.with_name("new").write_bytes(data)
        order.with_name("new").replace(order)

    return damage


def middle(data: bytes) -> int:
    return HEADER_BYTES + (len(data) - HEADER_BYTES) // 2


DAMAGES: dict[str, Damage] = {
    "deleted": Path.unlink,
    "emptied": rewrite(lambda data: b""),
    "replaced by an empty file": replace_by(b""),
    "replaced by garbage": replace_by(random.Random(1).randbytes(5000)),
    "cut inside the header": rewrite(lambda data: data[:30]),
    "cut after the header": rewrite(lambda data: data[:HEADER_BYTES]),
    "cut inside a line": rewrite(lambda data: data[: middle(data) + 3]),
    "filled with NULs": rewrite(lambda data: b"\0" * len(data)),
    "NULs in the lines": rewrite(lambda data: data[: middle(data)] + b"\0" * (len(data) - middle(data))),
    "a NUL in each line": rewrite(lambda data: data[:HEADER_BYTES] + data[HEADER_BYTES:].replace(b"0001", b"00\x001")),
    "every line twice": rewrite(lambda data: data + data[HEADER_BYTES:]),
    "no line feeds": rewrite(lambda data: data[:HEADER_BYTES] + data[HEADER_BYTES:].replace(b"\n", b"")),
    "carriage returns": rewrite(lambda data: data[:HEADER_BYTES] + data[HEADER_BYTES:].replace(b"\n", b"\r\n")),
    "marked as handed out": rewrite(lambda data: data[:HEADER_BYTES] + data[HEADER_BYTES:].replace(b"\ns", b"\n#")),
    "cursor past the end": rewrite(lambda data: b"%016d" % 10**12 + data[16:]),
    "cursor at the end": rewrite(lambda data: b"%016d" % len(data) + data[16:]),
    "cursor inside a line": rewrite(lambda data: b"%016d" % (HEADER_BYTES + 3) + data[16:]),
    "cursor in the header": rewrite(lambda data: b"%016d" % 5 + data[16:]),
    "negative numbers": rewrite(lambda data: b"%016d %016d %016x %012d\n" % (-7, -7, 0, -7) + data[HEADER_BYTES:]),
    "swept in the future": rewrite(lambda data: b"%016d %016d %016x %012d\n" % (64, 0, 0, 10**12 - 1)),
    "dead bytes without end": rewrite(lambda data: b"%016d %016d" % (HEADER_BYTES, 10**15) + data[33:]),
    "foreign names": rewrite(lambda data: data + b"../../etc/passwd\n/etc/passwd\n.hidden\na@b\n" + b"x" * 70_000),
}


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("partitioned", [False, True])
@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_hint_hides_no_ref(path: Path, name: str, partitioned: bool, when: str) -> None:
    """Every ref is handed out exactly once, whatever happens to the hint, by a get that never says "none" before."""
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(numbered(30))
        found = [] if when == "before" else ids(queue.get(7))
        DAMAGES[name](path / "order.lock")
        partitions = [(0, 2), (1, 2)] if partitioned else [None]
        for partition in partitions:
            while batch := queue.get(4, 0.2, partition=partition):
                found += ids(batch)
                assert partition is None or all(dp_partition(i, 2) == partition[0] for i in ids(batch))
        assert sorted(found) == ids(numbered(30))
        queue.put(refs("later"))
        assert ids(queue.get(1)) == ["later"]


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_behind_a_handle_that_has_been_idle_for_long(path: Path, name: str) -> None:
    """A handle that has known pending/ for long, unchanged, finds its refs within the documented two minutes."""
    tap, now = Tap(), [1_000.0]
    tap.ops.monotonic = tap.ops.time = lambda: now[0]
    queue = open_tapped(tap, path, durable=False)
    mine = [r for r in numbered(40) if dp_partition(r.sample_id, 2) == 1]
    queue.put(mine)
    for _ in range(10):
        assert queue.get(1, partition=(0, 2)) == []
        now[0] += 5.0
    DAMAGES[name](path / "order.lock")
    found: list[str] = []
    for _ in range(120):
        found += ids(queue.get(4, partition=(1, 2)))
        now[0] += 1.0
    assert sorted(found) == sorted(ids(mine))


SCRAPS = (b"", b"\n", b"\0", b"#", b"9", b"s00003\n")


def test_random_bytes(path: Path) -> None:
    """Fuzzed hints: no crash, no hang, nothing lost and nothing twice, over 60 seeds."""
    for seed in range(60):
        chance = random.Random(seed)
        queue = FileSampleRefQueue(path / str(seed), durable=False)
        queue.put(numbered(12))
        found = ids(queue.get(chance.randrange(6)))
        order = path / str(seed) / "order.lock"
        data = bytearray(order.read_bytes())
        for _ in range(chance.randrange(1, 40)):
            at = chance.randrange(len(data))
            data[at : at + chance.randrange(3)] = chance.choice([*SCRAPS, chance.randbytes(2)])
        order.write_bytes(data)
        while (batch := queue.get(chance.randrange(1, 6))) or queue.depth():
            found += ids(batch)
        assert sorted(found) == ids(numbered(12)), f"seed {seed}"
        queue.close()


def test_intact_hint_keeps_fifo(path: Path) -> None:
    """Several producers' refs come in the order of their puts, whatever their names and however they are taken."""
    a, b = FileSampleRefQueue(path, durable=False), FileSampleRefQueue(path, durable=False)
    expected: list[str] = []
    for number in range(30):
        batch = [ref(f"{(number * 7) % 30:02d}-{k}") for k in (2, 0, 1)]
        (a if number % 2 else b).put(batch)
        expected += ids(batch)
    found: list[str] = []
    for number in range(12):
        found += ids((b if number % 3 else a).get(number % 5 + 1))
    found += ids(a.get(sys.maxsize))
    assert found == expected


def test_get_takes_any_number(path: Path) -> None:
    """max_refs may be as large as an int gets."""
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(numbered(5))
        assert len(queue.get(sys.maxsize)) == 5
        assert queue.get(0) == [] == queue.get(-1)


def test_fifo_over_compactions(path: Path) -> None:
    """Order is kept while the hint is compacted again and again, and the file stays small."""
    with FileSampleRefQueue(path, durable=False) as queue:
        long = "x" * 100
        expected: list[str] = []
        found: list[str] = []
        for number in range(60):
            batch = [ref(f"{long}{number:03d}-{k:02d}") for k in range(40)]
            queue.put(batch)
            expected += ids(batch)
            found += ids(queue.get(38))
        found += ids(queue.get(1_000))
        assert found == expected
        assert (path / "order.lock").stat().st_size < 400_000


@pytest.mark.parametrize(
    ("behind", "handed_out", "stays"), [(10_000, 11_000, False), (30_000, 31_000, True), (30_000, 130_000, False)]
)
def test_a_long_backlog_is_moved_seldom(path: Path, behind: int, handed_out: int, stays: bool) -> None:
    """Moving many lines takes longer than a hold of the lock may: so a good deal more has to be handed out first."""
    line = b"x" * 95 + b" ....\n"
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put([ref("there")])
        header = Header(HEADER_BYTES + handed_out * len(line)).encode()
        order = b"".join([header, handed_out * line, b"there ....\n", behind * line])
        (path / "order.lock").write_bytes(order)
        assert ids(queue.get(1)) == ["there"]
        assert ((path / "order.lock").stat().st_size == len(order)) == stays


def test_partitions_share_one_order(path: Path) -> None:
    """Each partition gets its own refs in FIFO order, and a get without one takes the rest in order."""
    with FileSampleRefQueue(path, durable=False) as queue:
        todo = numbered(400)
        queue.put(todo)
        mine = {k: [i for i in ids(todo) if dp_partition(i, 3) == k] for k in range(3)}
        assert ids(queue.get(50, partition=(1, 3))) == mine[1][:50]
        assert ids(queue.get(1000, partition=(0, 3))) == mine[0]
        assert ids(queue.get(1000)) == [i for i in ids(todo) if i in {*mine[1][50:], *mine[2]}]
        assert queue.get(1, partition=(2, 3)) == []


def test_a_wrong_mark_hides_no_ref_for_long(path: Path) -> None:
    """A ref whose line says that it is another partition's is found by its own within two minutes, and by no other."""
    tap, now = Tap(), [1_000.0]
    tap.ops.monotonic = tap.ops.time = lambda: now[0]
    queue = open_tapped(tap, path, durable=False)
    mine = [each for each in ids(numbered(20)) if dp_partition(each, 2) == 1]
    others = [each for each in ids(numbered(20)) if dp_partition(each, 2) == 0]
    queue.put(numbered(20))
    found = ids(queue.get(1, partition=(1, 2)))
    order = path / "order.lock"
    header, *lines = order.read_bytes().split(b"\n")
    mark = next(line[-5:] for line in lines if line[:-5].decode() in others)
    wrong = [line[:-5] + mark if line and line[0] != DEAD else line for line in lines]
    order.write_bytes(b"\n".join([header, *wrong]))
    assert queue.get(20, partition=(1, 2)) == []
    for _ in range(120):
        now[0] += 1.0
        found += ids(queue.get(20, partition=(1, 2)))
    assert sorted(found) == mine
    assert sorted(ids(queue.get(20, partition=(0, 2)))) == others


def test_an_order_of_ids_alone_is_read_as_ever(path: Path) -> None:
    """Lines without room for marks, as other programs write them, come in order, also to partitions, among others."""
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(numbered(20))
        order = path / "order.lock"
        order.write_bytes(order.read_bytes().replace(b" ....", b""))
        queue.put(refs("t1", "t2"))
        every = [*ids(numbered(20)), "t1", "t2"]
        taken = [each for each in every if dp_partition(each, 2) == 1][:3]
        assert ids(queue.get(3, partition=(1, 2))) == taken
        assert ids(queue.get(50)) == [each for each in every if each not in taken]


def test_each_id_is_hashed_once_for_all_partitions(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first partition to come to a line leaves its mark; the others find their lines by that."""
    hashed: list[str] = []
    honest = order_lines.mark_of

    def mark_of(sample_id: str) -> bytes:
        hashed.append(sample_id)
        return honest(sample_id)

    monkeypatch.setattr(order_lines, "mark_of", mark_of)
    handles = [FileSampleRefQueue(path, durable=False) for _ in range(8)]
    handles[0].put(numbered(200))
    found = [each for index, handle in enumerate(handles) for each in ids(handle.get(100, partition=(index, 8)))]
    assert sorted(found) == sorted(hashed) == ids(numbered(200))


@pytest.mark.parametrize("count", [0, 30])
def test_a_sweep_reads_a_long_order_in_pieces(path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """No hold reads more than a piece; what no line names comes behind all that one does."""
    monkeypatch.setattr(unnamed, "_PIECE_BYTES", 100)
    monkeypatch.setattr(unnamed, "_SMALL_BYTES", 50)
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(numbered(40))
    for number in range(count):
        (path / "pending" / f"by-hand-{number:02d}.json").write_bytes((path / "pending" / "s00000.json").read_bytes())
    reads: list[int] = []

    def note(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        reads.extend([args[1]] if name == "pread" else [])

    tap.before = note
    Claimer(queue.handle).name_stranded()
    assert max(reads) == 100
    stems = [*ids(numbered(40)), *(f"by-hand-{number:02d}" for number in range(count))]
    assert list(stems_in((path / "order.lock").read_bytes()[HEADER_BYTES:])) == stems


def test_changing_the_number_of_partitions(path: Path) -> None:
    """Partitions of another width, asked by the same handle, see all that is pending."""
    with FileSampleRefQueue(path, durable=False) as queue:
        todo = numbered(100)
        queue.put(todo)
        found = ids(queue.get(10, partition=(0, 2)))
        for count in (3, 4, 1):
            for index in range(count):
                found += ids(queue.get(7, partition=(index, count)))
        while batch := [r for index in range(2) for r in queue.get(50, partition=(index, 2))]:
            found += ids(batch)
        assert sorted(found) == ids(todo)


def test_partitioned_get_does_not_wait_while_anything_is_pending(path: Path) -> None:
    """A partitioned get returns empty-handed at once when only other partitions' refs are pending."""
    tap = Tap()
    queue = open_tapped(tap, path)
    other = next(i for i in ids(numbered(9)) if dp_partition(i, 2) == 1)
    queue.put(refs(other))
    slept: list[object] = []
    tap.ops.sleep = slept.append
    assert queue.get(1, 1e6, partition=(0, 2)) == []
    assert slept == []


def test_long_ids_in_partitions(path: Path) -> None:
    """An id that its file name cannot hold is handed out by the partition of the id inside."""
    with FileSampleRefQueue(path, durable=False) as queue:
        todo = [ref("ü/" * 200 + str(k)) for k in range(20)]
        queue.put(todo)
        for index in range(2):
            assert ids(queue.get(20, partition=(index, 2))) == [i for i in ids(todo) if dp_partition(i, 2) == index]


def test_long_id_that_was_away(path: Path) -> None:
    """A ref with a cut name that somebody moved away and back is handed out by its partition, each time."""
    for number in range(8):
        with FileSampleRefQueue(path / str(number), durable=False) as queue:
            away = ref("x" * 300 + str(number))
            queue.put([away])
            (name,) = names_in(queue_path := path / str(number), "pending")
            (queue_path / "pending" / name).rename(queue_path / "failed" / name)
            mine = (dp_partition(away.sample_id, 2), 2)
            assert queue.get(1, partition=mine) == []
            (queue_path / "failed" / name).rename(queue_path / "pending" / name)
            assert queue.get(1, 0.2, partition=mine) == [away], f"id number {number}"


def test_bad_bytes_in_a_cut_name(path: Path) -> None:
    """A file whose name is cut and whose content is garbage does not stop partitioned gets."""
    with FileSampleRefQueue(path) as queue:
        for number, data in enumerate((b"\xff\xfe", b'{"sample_id":"\xff"}', b"[" * 100_000, b"", b"\0")):
            (path / "pending" / f"{'y' * 120}~{number:032x}.json").write_bytes(data)
        queue.put(refs("a", "b"))
        found = ids(queue.get(10, 1.0, partition=(0, 2))) + ids(queue.get(10, 1.0, partition=(1, 2)))
        assert sorted(found) == ["a", "b"]


def test_two_handles_with_a_damaged_hint(path: Path) -> None:
    """Damage between the turns of two handles costs no ref and doubles none."""
    a, b = FileSampleRefQueue(path, durable=False), FileSampleRefQueue(path, durable=False)
    chance = random.Random(7)
    todo, found = numbered(120), []
    a.put(todo)
    names = list(DAMAGES)
    for _ in range(25):
        found += ids(chance.choice([a, b]).get(chance.randrange(1, 5), 0.2))
        DAMAGES[chance.choice(names)](path / "order.lock") if (path / "order.lock").exists() else None
    found += drain(a)
    assert sorted(found) == ids(todo)
    assert_clean(path)


def test_torn_lines_do_not_stop_a_partition(path: Path) -> None:
    """Lines that only look like long or escaped names, with NULs inside or endlessly long, are skipped."""
    with FileSampleRefQueue(path, durable=False) as queue:
        queue.put(refs("a"))
        with open(path / "order.lock", "ab") as order:
            order.write(b"x\0\0~y\n%ff%fe\n../%41\n" + b"z" * 300 + b"~" + b"0" * 300 + b"\n")
        queue.put(refs("b"))
        assert sorted(ids(queue.get(5, partition=(0, 2)) + queue.get(5, partition=(1, 2)))) == ["a", "b"]
    assert_clean(path)


def test_without_the_lock_a_ref_that_cannot_be_claimed_holds_nothing_up(path: Path) -> None:
    """A get that goes on from a listing leases the other refs, and does not list again and again for this one."""
    tap, now = Tap(), [1_000.0]
    tap.ops.monotonic = lambda: now[0]
    tap.ops.sleep = lambda pause_s: now.__setitem__(0, now[0] + pause_s)
    queue = open_tapped(tap, path, durable=False)
    queue.put(refs("bad", "good"))
    tap.ops.lock = lambda fd: False

    def refuse(name: str, args: tuple[Any, ...], _: dict[str, Any]) -> None:
        if name == "utime" and args[0] == "bad.json":
            raise PermissionError(errno.EACCES, "Permission denied")

    tap.before = refuse
    tap.counts.clear()
    assert ids(queue.get(2)) == ["good"]
    assert tap.counts["listdir"] < 10
    tap.before = None
    queue.close()


def test_a_sweep_leaves_places_alone_that_another_handle_has_just_taken(path: Path) -> None:
    """Between taking places and claiming them the refs are unnamed, not stranded: naming them again hands out twice."""
    with FileSampleRefQueue(path, durable=False) as busy:
        busy.put(numbered(3))
        places = busy.handle.order
        with busy.handle.order_file.surely:
            assert len(places.take_locked(3)) == 3

        def take_all(_: float) -> None:
            for file in (path / "pending").iterdir():
                file.unlink()

        tap = Tap()
        tap.ops.sleep = take_all
        sweeping = open_tapped(tap, path, durable=False)
        before = (path / "order.lock").read_bytes()
        assert sweeping.get(3) == []
        assert (path / "order.lock").read_bytes()[HEADER_BYTES:] == before[HEADER_BYTES:]


def test_of_many_that_wait_those_that_come_too_late_list_nothing(path: Path) -> None:
    """A waiting get that sees the order grow, and finds the refs taken, goes on waiting for one look's price."""
    tap, clock, first = Tap(), FakeClock(), FileSampleRefQueue(path, durable=False)
    taken: list[str] = []

    def put_and_take(seconds: float) -> None:
        if len(taken) < 20:
            first.put(refs(f"r{len(taken)}"))
            taken.extend(ids(first.get(1)))
        clock.now += seconds

    tap.ops.monotonic = clock
    tap.ops.sleep = put_and_take
    late = open_tapped(tap, path, durable=False)
    late.get(1)
    tap.counts.clear()
    assert late.get(1, timeout_s=0.9) == []
    assert len(taken) == 20
    assert tap.counts["lock"] <= 3 and tap.counts["listdir"] <= 6, tap.counts


def test_a_get_finds_what_another_handle_named_during_its_own_sweep(path: Path) -> None:
    """Two handles find the order gone; the slower one hands out what the faster one has named again."""
    tap = Tap()
    with FileSampleRefQueue(path, durable=False) as faster, open_tapped(tap, path, durable=False) as slower:
        faster.put(numbered(6))
        (path / "order.lock").unlink()

        def get_first(_: float) -> None:
            faster.get(2)

        tap.ops.sleep = get_first
        assert len(slower.get(2)) == 2


def test_a_waiting_get_looks_fully_in_time_though_it_is_woken_all_the_while(path: Path) -> None:
    """A ref that was moved by hand is found within seconds, though others grow the order and take it all."""
    tap, clock, first = Tap(), FakeClock(), FileSampleRefQueue(path, durable=False)

    def put_and_take(seconds: float) -> None:
        clock.now += seconds
        order.append_locked(["x"])
        if clock.now > 1_000.5 and not moved:
            (path / "moved.json").rename(path / "pending" / "moved.json")
            moved.append(clock.now)

    moved: list[float] = []
    first.put(refs("moved"))
    first.ack(first.get(1))
    (path / "done" / "moved.json").rename(path / "moved.json")
    with first.handle.order_file.surely:
        pass
    order = first.handle.order
    tap.ops.monotonic = clock
    tap.ops.sleep = put_and_take
    late = open_tapped(tap, path, durable=False)
    assert ids(late.get(1, timeout_s=30.0)) == ["moved"]
    assert clock.now - moved[0] < 5.0


def test_refs_that_cannot_be_claimed_do_not_wedge_the_others(path: Path) -> None:
    """With half of the refs untouchable every other one is handed out, and an error is raised a few times only."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put([ref(f"{'bad' if number % 2 else 'good'}{number:03d}") for number in range(80)])

    def refuse(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "utime" and str(args[0]).startswith("bad"):
            raise PermissionError(errno.EACCES, "injected")

    tap.before = refuse
    got, raised = list[str](), 0
    for _ in range(40):
        try:
            found = queue.get(8)
            got += ids(found)
            queue.ack(found)
        except QueueIOError:
            raised += 1
    assert sorted(got) == sorted(f"good{number:03d}" for number in range(0, 80, 2)) and raised <= 4
    assert names_in(path, "leased") == []
    tap.before = None
    assert len(drain(FileSampleRefQueue(path, durable=False))) == 40, "another handle finds the rest at once"


def test_a_full_disk_under_the_order_costs_no_call(path: Path) -> None:
    """Every write of the order fails: puts, gets, retries and sweeps go on, and each ref is handed out once."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(numbered(30))

    def full(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "pwrite":
            raise OSError(errno.ENOSPC, "injected")

    tap.before = full
    queue.put(refs("later"))
    first = queue.get(5)
    queue.release(first[:2])
    queue.ack(first[2:])
    (path / "pending" / "s00010.json").rename(path / "s00010.json")
    (path / "s00010.json").rename(path / "pending" / "s00010.json")
    rest = drain(queue)
    assert sorted(ids(first[2:]) + rest) == sorted([*ids(numbered(30)), "later"])


def test_what_a_handle_has_read_ahead_counts_for_it_alone(path: Path) -> None:
    """Handles that take places in turn, each after a few of its own, get every ref once and in order.

    So does one whose order was put anew while it had some of the former one's lines.
    """
    todo = numbered(60)
    with FileSampleRefQueue(path, durable=False) as first, FileSampleRefQueue(path, durable=False) as second:
        first.put(todo)
        taken = [ref for handle in (first, second, first, second) for _ in range(5) for ref in handle.get(2)]
        assert taken == todo[:40]
        (path / "order.lock").unlink()
        second.put(numbered(3, "late"))
        left = ids(first.get(3)) + ids(first.get(20) + second.get(5))
        assert left == [*ids(numbered(3, "late")), *ids(todo[40:])]
    assert_clean(path)


def test_a_lone_consumer_reads_its_lines_once_for_many_gets(path: Path) -> None:
    """A get of one that follows a get of the same handle reads the header and no lines, until those it has are used."""
    tap = Tap()
    queue = open_tapped(tap, path, durable=False)
    queue.put(numbered(50))
    queue.get(1)
    queue.get(1)
    tap.counts.clear()
    assert ids(queue.get(1)) == ids(numbered(50)[2:3])
    assert tap.counts["pread"] == 1
    queue.close()


@pytest.mark.parametrize("partition", [None, (0, 2)])
def test_a_large_get_lets_others_in_between(path: Path, partition: tuple[int, int] | None) -> None:
    """A get that reads 210 KiB of lines does so in several holds of the lock, of some milliseconds each."""
    tap, todo = Tap(), numbered(2_500, "x" * 80)
    mine = [each for each in ids(todo) if partition is None or dp_partition(each, 2) == 0]
    queue = open_tapped(tap, path, durable=False)
    queue.put(todo)
    read_bytes: list[int] = []

    def note(name: str, args: Any, kwargs: Any) -> None:
        if name == "lock":
            read_bytes.append(0)
        elif name == "pread":
            read_bytes[-1] += args[1]

    tap.before = note
    taken = queue.get(len(mine), partition=partition)
    tap.before = None
    assert ids(taken) == mine
    assert max(read_bytes) < 210_000
    queue.close()
