"""Let Ray actors work on a queue: each has a handle, and a place in the stream, that are its own.

    import ray
    from fsqueue.integrations.ray import QueueActor

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Rollout(QueueActor):
        def __init__(self, queue):
            super().__init__(queue)
            self.join_as_producer("rollout-0")

        def work(self):
            with self.member:
                self.queue.put_when_below([...], high=64)

A queue that is an actor's argument is opened once more in the actor's process, under the label that its driver gave
it. A `QueueActor` opens it under the actor's own, so that `fsqueue status` tells the actors apart. Needs
``pip install 'fsqueue-shared[ray]'``.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from fsqueue.engine.settings import require_same
from fsqueue.lazy import needed_by
from fsqueue.queue import FileSampleRefQueue
from fsqueue.stream.members import Role
from fsqueue.stream.membership import Membership
from fsqueue.stream.view import TrainerView

with needed_by(__name__, "ray", "ray"):
    import ray

R = TypeVar("R")

_ID_DIGITS = 12
_ENDED = "its actor was ended"


class QueueActor(Generic[R]):
    """Give an actor its queue, and its place in the queue's stream, as attributes.

    The actor leaves the stream as its member's block is left, or else withdraws when Ray ends it and lets it finish
    what it does; leases go back then. One that is killed is missed as any other process is: others on its node have
    its leases a second later, those on other nodes once its heartbeat is overdue. An actor that Ray has started again
    takes its place at once, on whatever node: Ray does so only after the process before it has ended.

    Args:
        queue: the queue as the driver passed it; it is closed.

    Attributes:
        queue: a handle of the actor's own, with its label and the other options as they were.
        member: the producer or consumer that it has joined as.
        view: its view as a data-parallel rank.

    Raises:
        RuntimeError: this is no actor's process.
    """

    def __init__(self, queue: FileSampleRefQueue[R]) -> None:
        options = vars(queue.options) | {"owner": actor_label(type(self).__name__)}
        self.queue: FileSampleRefQueue[R] = FileSampleRefQueue(queue.path, create=False, **options)
        self._member: Membership | None = None
        self._view: TrainerView[R] | None = None
        try:
            require_same(queue.path, queue.settings, self.queue.settings)
        except BaseException:
            self.queue.close()
            raise
        finally:
            queue.close()

    @property
    def member(self) -> Membership:
        if self._member is None:
            raise RuntimeError(f"{self.queue.owner} has no member: call join_as_producer or join_as_consumer first")
        return self._member

    @property
    def view(self) -> TrainerView[R]:
        if self._view is None:
            raise RuntimeError(f"{self.queue.owner} has no view: call join_as_rank first")
        return self._view

    def join_as_producer(self, name: str, *, expected: int = 0, required: bool = False) -> Membership:
        """Take this name's place among the producers; `FileSampleRefQueue.producer` says more."""
        attempt = self._attempt("producer", name)
        self._member = self.queue.producer(name, expected=expected, required=required, attempt=attempt)
        return self._member

    def join_as_consumer(self, name: str, *, expected: int = 0, required: bool = False) -> Membership:
        """Take this name's place among the consumers; `FileSampleRefQueue.consumer` says more."""
        attempt = self._attempt("consumer", name)
        self._member = self.queue.consumer(name, expected=expected, required=required, attempt=attempt)
        return self._member

    def join_as_rank(self, rank: int, world: int, *, session: str = "", **options: Any) -> TrainerView[R]:
        """Take this rank's place among the ranks; options are those of `TrainerView`."""
        attempt = self._attempt("consumer", f"{session or 'trainer'}-{rank}")
        self._view = TrainerView(self.queue, partition=(rank, world), session=session, attempt=attempt, **options)
        return self._view

    def _attempt(self, role: Role, name: str) -> int:
        """Return one more than the attempt of the process before this one, where that was the same actor's."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it asks a deprecated attribute of its own
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                return 0
        before = [member.record for member in self.queue.stream().members() if member.role == role]
        label = self.queue.owner.rpartition(".")[0].rpartition(".")[0]
        mine = [record for record in before if record.name == name and record.process.owner.startswith(f"{label}.")]
        return 1 + max((record.launch.restarts[-1] for record in mine if record.launch.restarts), default=0)

    def leave(self) -> None:
        """Withdraw from the stream, give back what is leased, and close the queue; a second call does nothing."""
        with ExitStack() as stack:
            stack.callback(self.queue.close)
            if self._member is not None:
                stack.callback(self._member.withdraw, _ENDED)
            if self._view is not None:
                stack.callback(self._view.__exit__, SystemExit, SystemExit(_ENDED), None)

    def __ray_shutdown__(self) -> None:
        """Leave: Ray calls this where it ends the actor and lets it finish."""
        self.leave()


def actor_label(kind: str) -> str:
    """Return a label for the handles of this actor: its name, or else its class's, and the beginning of its id.

    Raises:
        RuntimeError: this is no actor's process.
    """
    context = ray.get_runtime_context()
    actor_id = context.get_actor_id()
    if actor_id is None:
        raise RuntimeError("a QueueActor needs an actor's process: make it with ray.remote, not in the driver")
    return f"{(context.get_actor_name() or kind)[:40]}-{actor_id[:_ID_DIGITS]}"
