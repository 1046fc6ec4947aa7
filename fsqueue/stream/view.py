"""Give a training loop exactly n refs at a time, or the end of a drained stream."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Literal, NoReturn, TypeVar, get_args

from fsqueue.engine import arguments
from fsqueue.engine.engine import reaching
from fsqueue.engine.holding import begin, wait_since
from fsqueue.engine.renewing import Renewer
from fsqueue.engine.waiting import StopEvent
from fsqueue.errors import InvalidArgumentError, OtherProcessError
from fsqueue.format import names
from fsqueue.records import id_of_ref
from fsqueue.stream.agreement import Rendezvous
from fsqueue.stream.membership import Membership
from fsqueue.stream.posts import Grammar
from fsqueue.stream.share import Share, StreamedQueue
from fsqueue.stream.sieve import Accept, Sieve
from fsqueue.stream.sigterm import OnSigterm

R = TypeVar("R")
Ending = Literal["release", "ack", "fail", "return"]


class PartialWindowWarning(UserWarning):
    """Warn that refs of a last, incomplete global window were given back to pending/."""


class TrainerView(Generic[R]):
    """View a queue as one data-parallel rank.

    `get` returns exactly the refs asked for, or none once the stream has ended. All ranks get the same number of
    windows, of as many batches each. A window opens once every rank has leased all of its share, so no stream ends
    within one. The last refs, too few for a window of all ranks, go back to pending/ from all of them, with a
    `PartialWindowWarning`, unless `rest` says otherwise, and the stream ends there. Where the queue object keeps no
    heartbeat, a thread renews what this rank leases, until the view is closed or dropped. The view is a consumer of the
    stream from its making to its close, in the process that made it: after a fork, the child's use of it is an
    `OtherProcessError`, and its close leaves all to the parent.

    Args:
        queue: the queue.
        partition: (rank, world size); None for a single rank. A rank takes refs of its own partition first, and
            others where none of its own is pending. For ids are never spread quite evenly: ranks that take equal
            numbers would leave ever more of some partition behind, up to the producers' watermark, where all wait
            for each other.
        batch: refs in a batch, for all ranks alike.
        window: batches in a window, for all ranks alike: those whose gradients are accumulated for an optimizer step.
        rest: settles what this rank has leased at the stream's end and is too little for a window of all ranks. A
            function is called as rest(view, refs), and settles them through the view; what it leaves is released.
            "release", "ack" and "fail" do that with all of them, "fail" for good. "return" lets get return them, the
            last batch short, to a loader that settles it.
        session: names the group of all ranks, such as a launcher's run id. Ranks that are started again, as many of
            them or another number, take the places of those before them, once these are gone.
        idle_timeout_s: how long to wait for a ref before `StreamStalledError` says who was last seen when; it does not
            run while the queue is paused.
        max_age_s: refs that were put, or leased before, longer ago go to failed/, instead of being returned. It costs a
            stat of each ref that this queue object leases from now on.
        accept: returns True for a ref that is to be trained on; False, or a string that says why not, for one that
            goes to failed/.
        required, attempt, on_sigterm: as for `FileSampleRefQueue.consumer`.

    Attributes:
        step: the optimizer step of an ack that names none. A training loop that acknowledges through others, by ids
            alone, sets it at every step, so that `rewind` finds what was acknowledged after a checkpoint.
    """

    loader_close_retryable = True

    def __init__(
        self,
        queue: StreamedQueue[R],
        *,
        partition: tuple[int, int] | None = None,
        batch: int = 1,
        window: int = 1,
        rest: Ending | Callable[[TrainerView[R], list[R]], object] = "release",
        session: str = "",
        idle_timeout_s: float | None = None,
        max_age_s: float | None = None,
        accept: Accept[R] | None = None,
        required: bool = False,
        attempt: int | None = None,
        on_sigterm: OnSigterm = None,
    ) -> None:
        arguments.with_call("TrainerView(queue)", "a FileSampleRefQueue", queue, "stream", "renew")
        if partition is not None:
            arguments.partition("TrainerView", partition)
        arguments.at_least("TrainerView(batch=)", batch, 1)
        arguments.at_least("TrainerView(window=)", window, 1)
        arguments.patience("TrainerView(idle_timeout_s=)", idle_timeout_s)
        arguments.patience("TrainerView(max_age_s=)", max_age_s)
        if accept is not None and not callable(accept):
            raise InvalidArgumentError("TrainerView(accept=)", "a function of a ref", accept)
        attempt = arguments.attempt("TrainerView", attempt)
        required = arguments.flag("TrainerView(required=)", required)
        if not isinstance(session, str):
            raise InvalidArgumentError("TrainerView(session=)", "a name, a string", session)
        if not (callable(rest) or rest in get_args(Ending)):
            expected = f"a function of the view and refs, or one of {', '.join(map(repr, get_args(Ending)))}"
            raise InvalidArgumentError("TrainerView(rest=)", expected, rest)
        self.step: int | None = None
        self._queue = queue
        self._pid = os.getpid()
        self._batch = batch
        self._window = window
        self._rest = rest
        rank, self._world = (int(partition[0]), int(partition[1])) if partition is not None else (0, 1)
        self._handle = handle = queue.handle
        if len(Grammar(session, self._world).longest_name(handle.owner)) > names.FILE_NAME_LIMIT:
            raise InvalidArgumentError("TrainerView(session=)", "a shorter name, since file names hold it", session)
        stream = queue.stream()
        group = session or "trainer"
        members = [f"{group}-{k}" for k in range(self._world)]
        self._sieve = Sieve(queue, max_age_s, accept)
        self._out: dict[str, R] = {}
        self._secured: list[R] = []  # leased, and not handed out yet
        self._size = 0  # refs in each batch of the window that is open
        self._owed = 0  # refs that are still to be handed out in it
        self._at_rest = False  # what is secured is the rest
        self._ended = False
        self._closed = threading.Event()
        self._renewer: Renewer[R] | None = None
        joined: list[Membership] = []
        try:
            with reaching("joining as consumer", handle.layout):
                stream.join(
                    "consumer",
                    members[rank],
                    joined,
                    expected=self._world,
                    required=required,
                    attempt=attempt,
                    group=group,
                    ranks=members,
                    on_sigterm=on_sigterm,
                )
                self._membership = joined[0]
                self._rendezvous = Rendezvous(handle, stream, rank, members, session)
                self._share = Share(
                    queue,
                    self._membership,
                    self._rendezvous,
                    partition,
                    members,
                    idle_timeout_s,
                    self._closed,
                    self._sieve,
                )
            self._renewer = Renewer(queue, self._held)
            self._renewer.start()
        except BaseException:
            self._closed.set()
            if self._renewer is not None:
                self._renewer.stop()
            for membership in joined:
                membership.vanish()
            raise

    @property
    def discarded(self) -> int:
        """Return how many refs this rank has leased that went to failed/: too old, or not accepted."""
        return self._sieve.discarded

    def get(
        self,
        max_refs: int | None = None,
        timeout_s: float | None = None,
        *,
        stop_event: StopEvent | None = None,
        **_: Any,
    ) -> list[R]:
        """Return the next batch: exactly max_refs refs (the view's batch unless given), or [] at the stream's end.

        timeout_s is accepted for the loaders' sake; how long to wait is the view's idle_timeout_s. Once stop_event is
        set, this returns [] too, after giving back what it has leased.

        Raises:
            MemberFailedError: a producer, or another rank, failed or died.
            StreamStalledError: nothing came for idle_timeout_s seconds.
            QueueClosedError: the view was closed, or its queue object.
        """
        return self.get_interruptible(max_refs or self._batch, stop_event=stop_event)

    def get_interruptible(self, max_refs: int, *, stop_event: StopEvent | None = None) -> list[R]:
        """Do as `get`, as the loaders call it."""
        self._refuse_in_child()
        arguments.at_least("get(max_refs)", max_refs, 1)
        if self._secured or self._owed:
            self._refuse_another_size(max_refs)
            with reaching("taking part in the stream of", self._handle.layout):
                going_on = self._at_rest or self._share.keep(self._owed, self._secured, max_refs, stop_event)
        else:
            going_on = not self._ended and self._open_window(max_refs, stop_event)
        return self._hand_out(max_refs) if going_on else []

    def _refuse_another_size(self, max_refs: int) -> None:
        if max_refs != self._size and not self._at_rest:
            expected = f"{self._size}, as for the first of the {self._window} batches of this window"
            raise InvalidArgumentError("TrainerView.get(max_refs)", expected, max_refs)

    def _open_window(self, max_refs: int, stop_event: StopEvent | None) -> bool:
        """Secure a window of so many refs a batch; False when the stream has ended, or on the stop event."""
        refs: list[R] = []
        try:
            with reaching("taking part in the stream of", self._handle.layout):
                secured = self._share.secure(max_refs * self._window, refs, stop_event)
            if secured:
                self._secured, self._size, self._owed = refs, max_refs, len(refs)
                self._rendezvous.next_window()
                return True
            if stop_event is not None and stop_event.is_set():
                self._queue.release(refs)
                return False
            self._ended = self._world > 1
            if refs:
                self._settle_rest(refs)
            return bool(self._secured)
        except BaseException:
            self._take_back(refs)
            raise

    def _hand_out(self, max_refs: int) -> list[R]:
        """Hand out the next batch of what is secured; where an exception cuts that short, it stays the next one."""
        batch, left = self._secured[:max_refs], self._secured[max_refs:]
        try:
            self._out.update((id_of_ref(ref), ref) for ref in batch)
            self._secured, self._owed = left, len(left)
            self._begin(batch, left)
            return batch
        except BaseException:
            self._secured, self._owed = batch + left, len(batch + left)
            raise

    def _begin(self, batch: list[R], left: list[R]) -> None:
        """Let the time to hold a batch begin, and anew that of what is left for later ones."""
        held, now = self._handle.held, self._handle.ops.monotonic()
        wait_since(held.claims_on(left), now)
        begin(held.claims_on(batch), now)

    def _settle_rest(self, refs: list[R]) -> None:
        if self._rest == "return":
            self._secured, self._at_rest = refs, True
            return
        self._out.update((id_of_ref(ref), ref) for ref in refs)  # where the view's own calls look for them
        self._begin(refs, [])
        if callable(self._rest):
            self._rest(self, refs)
        elif self._rest == "ack":
            self.ack(refs)
        elif self._rest == "fail":
            self.fail(refs, f"the stream ended with an incomplete window: {self._too_few(refs)}", retryable=False)
        left = [ref for ref in refs if self._out.get(id_of_ref(ref)) is ref]
        if left:
            self.release(left)
        if self._rest == "release":
            warnings.warn(
                f"the stream of {self._queue.path} ended with an incomplete window: {self._too_few(refs)}; they were "
                "given back to pending/",
                PartialWindowWarning,
                stacklevel=5,
            )

    def _too_few(self, refs: list[R]) -> str:
        wanted = f"{self._window} batches of {self._batch} for each of {self._world} ranks"
        return f"{len(refs)} refs of this rank, too little for {wanted}"

    def _take_back(self, refs: list[R]) -> None:
        """Release what a get that was cut short has leased; nobody has it."""
        self._secured, self._owed = [], 0
        for ref in refs:
            self._out.pop(id_of_ref(ref), None)
        self._queue.release(refs)

    def ack(self, refs: Iterable[R], *, step: int | None = None) -> list[str]:
        """Acknowledge refs, at an optimizer step, `step` unless given; return the ids whose lease was lost."""
        at = self.step if step is None else step
        return self._settle("ack", refs, lambda batch: self._queue.ack(batch, step=at))

    def ack_ids(self, sample_ids: Iterable[str], *, step: int | None = None) -> list[str]:
        """Acknowledge refs that this view handed out, by id; ids that it does not have out are ignored."""
        return self.ack([self._out[i] for i in sample_ids if i in self._out], step=step)

    def fail(self, refs: Iterable[R], reason: str, retryable: bool) -> list[str]:
        """Give refs back as failed; see `FileSampleRefQueue.fail`."""
        return self._settle("fail", refs, lambda batch: self._queue.fail(batch, reason, retryable))

    def release(self, refs: Iterable[R]) -> list[str]:
        """Give refs back without counting an attempt; return the ids whose lease was lost."""
        return self._settle("release", refs, self._queue.release)

    def _settle(self, call: str, refs: Iterable[R], settle: Callable[[list[R]], list[str]]) -> list[str]:
        self._refuse_in_child()
        batch = list(arguments.batch(call, refs))
        lost = settle(batch)
        for ref in batch:
            # A late settlement of an earlier lease says nothing about the one that is out by now.
            if id_of_ref(ref) not in lost or self._out.get(id_of_ref(ref)) is ref:
                self._out.pop(id_of_ref(ref), None)
        return lost

    def _refuse_in_child(self) -> None:
        if os.getpid() != self._pid:
            raise OtherProcessError(f"a TrainerView of queue {self._queue.path}", self._pid)

    def close(self) -> None:
        """Give back what is still out, and leave the stream, also where giving back fails."""
        self.__exit__(None, None, None)

    def _stop(self) -> None:
        """Release what is out; who is interrupted in here completes it by closing again."""
        if os.getpid() != self._pid:
            return
        self._closed.set()
        if self._renewer is not None:
            self._renewer.stop()
        if held := self._held():
            self._queue.release(held)
            self._secured, self._owed = [], 0
            self._out.clear()

    def _held(self) -> list[R]:
        """Return all that this rank leases; what is handed out meanwhile is in `_out` before it leaves `_secured`."""
        secured = self._secured
        return list(({id_of_ref(ref): ref for ref in secured} | self._out).values())

    def __del__(self) -> None:
        """Let what nobody was handed out go back with the queue object's next call, where the view was dropped.

        The garbage collector calls this, between whatever lines; so it waits for no lock.
        """
        secured = self.__dict__.get("_secured")
        if secured and self._pid == os.getpid():
            claims = self._handle.held.claims_on(secured)
            self._handle.strays.add(claim for claim in claims if claim.state == "held")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a TrainerView of queue {self._queue.path} cannot be copied or pickled: copy the queue object, "
            "and make a view of the copy where it is used"
        )

    def __enter__(self) -> TrainerView[R]:
        self._membership.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop()
        finally:
            self._membership.__exit__(kind, error, trace)
