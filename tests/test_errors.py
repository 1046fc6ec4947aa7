"""Errors: each carries its facts, pickles, is the built-in that fits, and says what to do."""

from __future__ import annotations

import copy
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import fsqueue
from fsqueue import (
    CorruptRefError,
    FileSampleRefQueue,
    FsQueueError,
    InvalidRefError,
    LockTimeoutError,
    LockUnsupportedError,
    NotAQueueError,
    QueueClosedError,
    QueueConfigError,
    QueueIOError,
    QueueReplacedError,
    TensorInRefError,
    UnsupportedFormatError,
    control,
    errors,
)
from tests.support import Tap, drain, folder_of, ids, names_in, numbered, open_tapped, ref, refs

CASES: list[tuple[FsQueueError, tuple[type, ...], dict[str, Any]]] = [
    (FsQueueError("plain"), (Exception,), {}),
    (InvalidRefError("<root>.metadata['x']", "no"), (ValueError,), {"where": "<root>.metadata['x']"}),
    (
        TensorInRefError("<root>.x", "torch.Tensor"),
        (ValueError, TypeError),
        {"where": "<root>.x", "type_name": "torch.Tensor"},
    ),
    (
        errors.NameTooLongError("/q", "s" * 60, 143, 48),
        (ValueError, OSError, InvalidRefError),
        {"path": "/q", "sample_id": "s" * 60, "limit": 143, "longest_id": 48, "errno": errno.ENAMETOOLONG},
    ),
    (
        errors.CaseCollisionError("/q", "a", "A", "pending"),
        (ValueError, InvalidRefError),
        {"path": "/q", "sample_id": "a", "other": "A", "state": "pending"},
    ),
    (CorruptRefError("cut short"), (ValueError,), {"reason": "cut short"}),
    (
        errors.UnreadableRefError("s", "m.Ref", "odd"),
        (ValueError, CorruptRefError),
        {"sample_id": "s", "ref_type": "m.Ref", "reason": "odd"},
    ),
    (errors.TooLongError("too long"), (ValueError, CorruptRefError), {"reason": "too long"}),
    (
        errors.InvalidArgumentError("get(max_refs)", "an integer", "3"),
        (TypeError, ValueError),
        {"call": "get(max_refs)", "expected": "an integer"},
    ),
    (
        errors.RefTypeError("/q", "m.Old", "m.New", "odd"),
        (TypeError, QueueConfigError),
        {"path": "/q", "stored": "m.Old", "given": "m.New"},
    ),
    (QueueConfigError("/q", "is odd"), (ValueError,), {"path": "/q"}),
    (NotAQueueError("/q", "is none"), (ValueError, QueueConfigError), {"path": "/q"}),
    (UnsupportedFormatError("/q", 2, 1), (ValueError, NotAQueueError), {"path": "/q", "found": 2, "reads": 1}),
    (
        QueueReplacedError("/q", "0123456789abcdef", None),
        (ValueError, QueueConfigError),
        {"path": "/q", "opened": "0123456789abcdef", "found": None},
    ),
    (errors.ReadOnlyError("/q", "put"), (ValueError, QueueConfigError), {"path": "/q", "call": "put"}),
    (QueueClosedError("/q"), (ValueError,), {"path": "/q"}),
    (
        QueueIOError("writing", "/q/tmp/x", OSError(errno.ENOSPC, "full")),
        (OSError,),
        {"path": "/q/tmp/x", "errno": errno.ENOSPC},
    ),
    (
        LockUnsupportedError("/q/order.lock", OSError(errno.ENOLCK, "no")),
        (OSError, QueueIOError),
        {"path": "/q/order.lock", "errno": errno.ENOLCK},
    ),
    (LockTimeoutError("/q/order.lease", 30.0), (TimeoutError,), {"path": "/q/order.lease", "waited_s": 30.0}),
    (errors.LeasesHeldError("/q", ["n.1.abcdef"]), (RuntimeError,), {"path": "/q", "owners": ["n.1.abcdef"]}),
    (errors.MemberFailedError("rank 0", "died", "Traceback"), (RuntimeError,), {"member": "rank 0", "reason": "died"}),
    (
        errors.MemberMissingError("rank 0", "withdrew", 30.0),
        (RuntimeError, errors.MemberFailedError),
        {"member": "rank 0", "reason": "withdrew", "waited_s": 30.0},
    ),
    (errors.MemberReplacedError("/q", "consumer", "rank 0"), (RuntimeError,), {"path": "/q", "name": "rank 0"}),
    (errors.OtherProcessError("the view", 7), (RuntimeError,), {"pid": 7}),
    (errors.StreamEndedError("over"), (RuntimeError,), {}),
    (errors.StreamStalledError("nothing came"), (TimeoutError,), {}),
]


@pytest.mark.parametrize(("error", "bases", "facts"), CASES, ids=lambda value: type(value).__name__)
def test_pickles_with_its_facts(error: FsQueueError, bases: tuple[type, ...], facts: dict[str, Any]) -> None:
    """Pickled by every protocol and copied, an error keeps its class, text and facts, and is its built-in too."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for back in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
            assert type(back) is type(error)
            assert str(back) == str(error) and repr(back)
            assert all(getattr(back, name) == value for name, value in facts.items())
            assert all(isinstance(back, base) for base in (FsQueueError, *bases))


def test_all_that_the_package_promises_is_there() -> None:
    """Lazily or not; the control plane's names are the same in both places."""
    assert [name for name in fsqueue.__all__ if not hasattr(fsqueue, name)] == []
    assert all(getattr(fsqueue, name) is getattr(control, name) for name in control.__all__)
    with pytest.raises(AttributeError, match="'fsqueue' has no attribute 'nothing'"):
        fsqueue.nothing  # noqa: B018


def test_no_error_class_is_left_out() -> None:
    """Every error class of the package is exported by it, and is in the table above."""
    classes = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, FsQueueError)}
    assert classes == {type(error) for error, _, _ in CASES}
    assert [c.__name__ for c in classes if getattr(fsqueue, c.__name__, None) is not c] == []


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.EIO]
)
def test_system_errors_say_what_to_do(code: int) -> None:
    """A filesystem error names what was tried, where, the symbol, the system's words, and a remedy."""
    text = str(QueueIOError("putting refs into", "/q", OSError(code, "x")))
    symbol = errno.errorcode[code]
    assert text.startswith("putting refs into /q failed: ") and symbol in text and os.strerror(code) in text
    assert text.rpartition("): ")[2]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_only_what_a_lock_failed_at_speaks_of_locks(code: int) -> None:
    """A sandbox without faccessat2, say, is no reason to mount anything with -o flock."""
    assert "flock" not in str(QueueIOError("putting refs into", "/q", OSError(code, "x")))
    assert "-o flock" in str(LockUnsupportedError("/q", OSError(code, "x")))


def test_raised_errors_pickle(tmp_path: Path) -> None:
    """Errors of the public methods cross a process boundary whole."""
    queue = FileSampleRefQueue(tmp_path / "q")
    for work in (
        lambda: queue.put([ref("a", metadata={"x": float("nan")})]),
        lambda: queue.put([ref("")]),
        lambda: queue.put(["no ref"]),  # type: ignore[list-item]
        lambda: queue.get(1, partition=(2, 2)),
        lambda: queue.ack([], step=-1),
        lambda: FileSampleRefQueue(tmp_path / "q", lease_timeout_s=5),
    ):
        with pytest.raises(FsQueueError) as caught:
            work()
        back = pickle.loads(pickle.dumps(caught.value))
        assert (type(back), str(back), vars(back)) == (type(caught.value), str(caught.value), vars(caught.value))


FAULTS: dict[str, Any] = {
    "put: create": ("open", "tmp", lambda q: q.put(refs("x"))),
    "put: write": ("write", None, lambda q: q.put(refs("x"))),
    "put: fsync": ("fsync", "x", lambda q: q.put(refs("x"))),
    "put: sync of pending": ("fsync", "pending", lambda q: q.put(refs("x"))),
    "put: publish": ("rename", "pending", lambda q: q.put(refs("x"))),
    "get: claim": ("rename", "leased", lambda q: q.get(1)),
    "get: stamp": ("utime", "pending", lambda q: q.get(1)),
    "ack: rename": ("rename", "done", lambda q: q.ack(refs("held"))),
    "ack: sync of done": ("fsync", "done", lambda q: q.ack(refs("held"))),
    "fail: write": ("pwrite", "held", lambda q: q.fail(refs("held"), "x", True)),
    "fail: rename": ("rename", "failed", lambda q: q.fail(refs("held"), "x", False)),
    "release: rename": ("rename", "pending", lambda q: q.release(refs("held"))),
    "renew: stamp": ("utime", "leased", lambda q: q.renew(refs("held"))),
    "depth: listing": ("listdir", "pending", lambda q: q.depth()),
    "counts: listing": ("listdir", "failed", lambda q: q.counts()),
}


def place(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The last path component of what an operation works in or on."""
    for key in ("dst_dir_fd", "dir_fd"):
        if kwargs.get(key) is not None:
            return folder_of(kwargs[key])
    if args and isinstance(args[0], int):
        return folder_of(args[0]).split("@")[0]
    return os.path.basename(str(args[0]))


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_path_and_cause_and_can_be_retried(tmp_path: Path, fault: str, code: int) -> None:
    """A failing system call gives a QueueIOError with a path inside the queue; the same call then works."""
    path, tap = tmp_path / "q", Tap()
    queue = open_tapped(tap, path)
    queue.put(refs("held"))
    queue.get(1)
    queue.put(refs("pending"))
    operation, where, work = FAULTS[fault]
    struck: list[str] = []

    def strike(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        at = place(name, args, kwargs)
        if name == operation and (where is None or at == where or (where == "x" and at.startswith(queue.owner))):
            struck.append(at)
            raise OSError(code, os.strerror(code))

    tap.before = strike
    with pytest.raises(QueueIOError) as caught:
        work(queue)
    tap.before = None
    assert struck
    assert caught.value.errno == code and errno.errorcode[code] in str(caught.value)
    assert caught.value.path.startswith(str(path)) and caught.value.path in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert pickle.loads(pickle.dumps(caught.value)).path == caught.value.path
    work(queue)
    assert names_in(path, "tmp") == []
    found = {name for state in ("pending", "leased", "done", "failed") for name in names_in(path, state)}
    stems = {name.split("@")[0].removesuffix(".json") for name in found}
    assert {"held", "pending"} <= stems and len(stems) == len(found)


def test_put_after_a_failed_sync_syncs_again(tmp_path: Path) -> None:
    """Repeating a put whose directory sync failed syncs the directory, though the refs are known by then."""
    tap, synced = Tap(), []
    queue = open_tapped(tap, tmp_path / "q")

    def strike(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "fsync":
            synced.append(folder_of(args[0]))
            if synced[-1] == "pending" and synced.count("pending") == 1:
                raise OSError(errno.EIO, "injected")

    tap.before = strike
    with pytest.raises(QueueIOError):
        queue.put(refs("a"))
    queue.put(refs("a"))
    assert synced.count("pending") == 2


def test_put_asks_a_caching_client_afresh(tmp_path: Path) -> None:
    """A client that still remembers a ref in pending/, as NFS does, puts an id again that was acked elsewhere."""
    path, tap = tmp_path / "q", Tap()
    tap.ops.filesystem_type = lambda path: "nfs4"
    queue = open_tapped(tap, path)
    remembered = {"a.json"}
    real_stat, real_access = tap.ops.stat, tap.ops.access

    def stat(name: Any, *args: Any, **kwargs: Any) -> Any:
        if name in remembered and folder_of(kwargs["dir_fd"]) == "pending":
            return os.stat(path)
        return real_stat(name, *args, **kwargs)

    def access(name: Any, *args: Any, **kwargs: Any) -> bool:
        if name in remembered and folder_of(kwargs["dir_fd"]) == "pending":
            return True
        return bool(real_access(name, *args, **kwargs))

    def forget(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "open" and args[0] == "pending":
            remembered.clear()

    tap.ops.stat, tap.ops.access = stat, access  # type: ignore[assignment]
    tap.before = forget
    queue.put(refs("a"))
    assert drain(queue) == ["a"]


def test_permission_errors_name_the_remedy(tmp_path: Path) -> None:
    """A file that this user may not touch gives an error about owners and modes, or is passed over; others come."""
    tap = Tap()
    queue = open_tapped(tap, tmp_path / "q")
    queue.put(refs("foreign", "mine"))

    def forbid(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name == "utime" and args[0] == "foreign.json":
            raise PermissionError(errno.EPERM, "injected")

    tap.before = forbid
    found: list[str] = []
    texts: list[str] = []
    for _ in range(4):
        try:
            found += ids(queue.get(2))
        except QueueIOError as error:
            texts.append(str(error))
    assert found == ["mine"]
    assert all("owner and mode" in text for text in texts)
    tap.before = None
    found += ids(queue.get(2, 1.0))
    assert sorted(found) == ["foreign", "mine"]


def test_put_refuses_a_batch_as_a_whole(tmp_path: Path) -> None:
    """One bad ref in a batch, whatever is wrong with it, and nothing of the batch is written anywhere."""
    path = tmp_path / "q"
    queue = FileSampleRefQueue(path)
    for bad in (ref("x", metadata={"v": float("inf")}), ref("x", metadata={"v": b"\0"}), ref(""), ref("\ud800"), None):
        with pytest.raises(FsQueueError):
            queue.put([*numbered(5), bad, ref("y")])  # type: ignore[list-item]
        assert names_in(path, "pending") == names_in(path, "tmp") == []
    assert queue.get(1) == []


def test_a_ref_too_long_to_read_back_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ref above the size that get reads is refused by put, so that all that it accepts comes back."""
    from fsqueue.disk import fileops

    monkeypatch.setattr(fileops, "REF_LIMIT_BYTES", 1 << 16)
    monkeypatch.setattr(fileops, "FILE_LIMIT_BYTES", 1 << 17)
    queue = FileSampleRefQueue(tmp_path / "q")
    big = ref("big", metadata={"text": "x" * (1 << 18)})
    try:
        queue.put([big])
    except FsQueueError as error:
        assert "big" in str(error) or "bytes" in str(error)
    else:
        assert queue.get(1) == [big]
