"""The table of operations that the sweeps run; whatever is added to the queue joins by one line.

An operation works on a *batch* of refs, in a queue where other refs, the bystanders, are in every state::

    prepare   brings the batch into the state that the operation starts from; it is never disturbed
    run       the operation; the sweeps kill the process, or fail a call, at every file operation of it
    lands     where a ref of the batch may be after a run that was cut short
    ends      where it is after a run that was not
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fsqueue import QueueIOError, SampleRef, operate
from fsqueue.engine.engine import reaching
from fsqueue.operate import operator
from fsqueue.operate.check import check_queue, repair
from tests.support import ids
from tests.sweeps.proof import stages
from tests.sweeps.proof.stages import LEASE_S, Stage

LIVE, DONE, FAILED, GONE = "live", "done", "failed", "gone"


@dataclass(frozen=True)
class Operation:
    """One line of the table.

    Attributes:
        options: how the operation's handle is opened.
        bare: there is no queue before the operation, and so no bystander.
        by_operator: it is made by a handle of its own, which is closed when it ends.
        damaged: it starts from a queue that a check finds fault with.
        keeps: leases on the batch that its handle has outlast the operation.
        waits: it may leave a lock held, for which others wait; not longer than the documented time.
        earlier: the state of a file that the batch's first ref has from an earlier life.
    """

    name: str
    prepare: Callable[[Stage], None]
    run: Callable[[Stage], Any]
    lands: frozenset[str]
    ends: str
    options: dict[str, Any] = field(default_factory=dict)
    bare: bool = False
    earlier: str | None = None
    keeps: bool = False
    damaged: bool = False
    by_operator: bool = False
    waits: bool = False

    def __str__(self) -> str:
        return self.name


def _put(stage: Stage) -> None:
    stage.queue.put(stage.batch)


def _get(stage: Stage) -> list[SampleRef]:
    return stage.queue.get(len(stage.batch))


def _get_partition(stage: Stage) -> list[SampleRef]:
    return stage.queue.get(len(stage.batch), partition=(0, 2))


def _ack(stage: Stage) -> list[str]:
    return stage.queue.ack(stage.batch)


def _ack_step(stage: Stage) -> list[str]:
    return stage.queue.ack(stage.batch, step=7)


def _fail(stage: Stage) -> list[str]:
    return stage.queue.fail(stage.batch, "flaky", retryable=True)


def _fail_to_wait(stage: Stage) -> list[str]:
    return stage.queue.fail(stage.batch, "flaky", retryable=True, delay_s=1e-9)


def _configure(stage: Stage) -> None:
    stage.queue.configure(retry_delay_s=0.001)


def _pause(stage: Stage) -> None:
    stage.queue.pause("the store moves")


def _resume(stage: Stage) -> None:
    stage.queue.resume()


def _discard(stage: Stage) -> None:
    _raise_unread(stage, operate.discard(str(stage.path), "stale", where=lambda it: it.sample_id in ids(stage.batch)))


def _fail_for_good(stage: Stage) -> list[str]:
    return stage.queue.fail(stage.batch, "broken", retryable=False)


def _hand_over(stage: Stage) -> list[str]:
    return stage.queue.hand_over(stage.batch, stage.others[0].owner)


def _adopt_and_ack(stage: Stage) -> list[str]:
    return stage.queue.adopt(stage.batch) + stage.queue.ack(stage.batch)


def _release(stage: Stage) -> list[str]:
    return stage.queue.release(stage.batch)


def _close(stage: Stage) -> None:
    stage.queue.close()


def _reclaim(stage: Stage) -> None:
    stage.queue.reclaim()


def _requeue(stage: Stage) -> None:
    _raise_unread(stage, operate.requeue(str(stage.path), ids(stage.batch)))


def _raise_unread(stage: Stage, outcomes: list[operate.Outcome]) -> None:
    """Make an error of it where the storage did not give a ref, which is told among the others."""
    for outcome in outcomes:
        if "(EIO)" in outcome.detail:
            raise QueueIOError(outcome.detail, str(stage.path), OSError(errno.EIO, "told"))


def _rewind(stage: Stage) -> None:
    stage.queue.rewind(after_step=8, force=True)


def _release_owner(stage: Stage) -> None:
    operator.release(str(stage.path), "other", force=True)


def _purge(stage: Stage) -> None:
    operator.purge(str(stage.path), "done", LEASE_S)


def _pack(stage: Stage) -> None:
    stage.queue.pack(older_than_s=LEASE_S)


def _repair(stage: Stage) -> None:
    repair(stage.path)


def _check(stage: Stage) -> None:
    check_queue(stage.path, notes=True)


def _join(stage: Stage) -> None:
    stage.member = stage.queue.producer("rollout-0")


def _leave(stage: Stage) -> None:
    assert stage.member is not None
    stage.member.close()


def _withdraw(stage: Stage) -> None:
    assert stage.member is not None
    stage.member.withdraw()


def _succeed_with_proof(stage: Stage) -> None:
    stage.member = stage.queue.consumer("trainer-0", attempt=1)


def _agree(stage: Stage) -> None:
    """Two ranks agree on a window, and then on the next one."""
    with reaching("agreeing in", stage.queue.handle.layout):  # as a view does
        for _ in range(2):
            for rank in reversed(stage.ranks):
                rank.look_for_leader()
                rank.post("ready")
            for rank in stage.ranks:
                rank.verdict()
                rank.next_window()


def _set_policy(stage: Stage) -> None:
    stage.queue.configure_stream(await_s=60.0)


def _give_up(stage: Stage) -> None:
    assert stage.member is not None
    stage.member.fail("out of prompts")


def _put_when_below(stage: Stage) -> None:
    stage.queue.put_when_below(stage.batch, high=100)


def _publish_quantum(stage: Stage) -> None:
    stage.queue.publish_quantum(dp_size=1, batch_size=2)


def _view_get(stage: Stage) -> list[SampleRef]:
    assert stage.view is not None
    return stage.view.get(len(stage.batch))


def _view_ack(stage: Stage) -> list[str]:
    assert stage.view is not None
    return stage.view.ack(stage.batch, step=7)


def _commit(stage: Stage) -> None:
    stage.controller.commit_samples("w", stage.batch)


def _ack_trained(stage: Stage) -> list[str]:
    refused: list[str] = stage.controller.ack_train_refs("t", ids(stage.batch), global_step=7)
    return refused


def _reconcile(stage: Stage) -> None:
    stage.controller.reconcile_on_restart()


_STAYS = frozenset({LIVE})
_OR_DONE = frozenset({LIVE, DONE})
_OR_FAILED = frozenset({LIVE, FAILED})
_OR_GONE = frozenset({LIVE, GONE})
_ONE_ATTEMPT = {"max_attempts": 1}
_ONE_DELIVERY = {"max_deliveries": 1}
_UNLINK = {"keep_done": False}
_LEASE_LOCK = {"lock": "lease"}
_HEARTBEAT = {"heartbeat_s": LEASE_S / 4}

OPERATIONS: tuple[Operation, ...] = (
    Operation("create", stages.nothing, stages.opened, frozenset({GONE}), GONE, bare=True),
    Operation("open", stages.nothing, stages.opened, frozenset({GONE}), GONE),
    Operation("put", stages.lived_before, _put, _OR_GONE, LIVE, earlier=FAILED),
    Operation("put-known", stages.half_known, _put, _OR_GONE, LIVE, keeps=True),
    Operation("get", stages.pending, _get, _STAYS, LIVE),
    Operation("get-partition", stages.pending, _get_partition, _STAYS, LIVE),
    Operation("get-unordered", stages.unordered, _get, _STAYS, LIVE),
    Operation("get-torn-order", stages.torn_order, _get, _STAYS, LIVE),
    Operation("get-compacting", stages.consumed_order, _get, _STAYS, LIVE),
    Operation("get-partition-compacting", stages.consumed_order, _get_partition, _STAYS, LIVE),
    Operation("get-corrupt", stages.corrupt_too, _get, _STAYS, LIVE, damaged=True),
    Operation("get-misnamed", stages.misnamed, _get, _STAYS, LIVE, damaged=True),
    Operation("ack", stages.leased, _ack, _OR_DONE, DONE),
    Operation("ack-step", stages.leased, _ack_step, _OR_DONE, DONE),
    Operation("ack-unlink", stages.leased, _ack, _OR_GONE, GONE, _UNLINK),
    Operation("ack-by-id", stages.leased_by_another, _ack, _OR_DONE, DONE),
    Operation("ack-pending", stages.returned, _ack, _OR_DONE, DONE),
    Operation("ack-waiting", stages.waiting, _ack, _OR_DONE, DONE),
    Operation("fail", stages.leased, _fail, _STAYS, LIVE),
    Operation("fail-to-wait", stages.leased, _fail_to_wait, _STAYS, LIVE, keeps=True),
    Operation("wait-is-over", stages.waiting, _reclaim, _STAYS, LIVE),
    Operation("configure", stages.leased, _configure, _STAYS, LIVE, keeps=True),
    Operation("pause", stages.leased, _pause, _STAYS, LIVE, keeps=True),
    Operation("pause-again", stages.paused, _pause, _STAYS, LIVE, keeps=True),
    Operation("resume", stages.paused, _resume, _STAYS, LIVE, keeps=True),
    Operation("discard", stages.pending, _discard, _OR_FAILED, FAILED, by_operator=True),
    Operation("fail-by-id", stages.leased_by_another, _fail, _STAYS, LIVE),
    Operation("fail-for-good", stages.leased, _fail_for_good, _OR_FAILED, FAILED),
    Operation("fail-for-good-pending", stages.pending, _fail_for_good, _OR_FAILED, FAILED),
    Operation("fail-last-attempt", stages.leased, _fail, _OR_FAILED, FAILED, _ONE_ATTEMPT),
    Operation("release", stages.leased, _release, _STAYS, LIVE),
    Operation("release-by-id", stages.leased_by_another, _release, _STAYS, LIVE),
    Operation("renew", stages.leased, lambda stage: stage.queue.renew(stage.batch), _STAYS, LIVE, keeps=True),
    Operation("hand-over", stages.to_hand_over, _hand_over, _STAYS, LIVE, keeps=True),
    Operation("ack-adopted", stages.handed_over, _adopt_and_ack, _OR_DONE, DONE),
    Operation("release-all", stages.handed_over, lambda stage: stage.queue.release_all(), _STAYS, LIVE),
    Operation("reclaim-expired", stages.expired, _reclaim, _STAYS, LIVE),
    Operation("reclaim-dead", stages.owner_dead, _reclaim, _STAYS, LIVE),
    Operation("reclaim-last-delivery", stages.expired, _reclaim, _OR_FAILED, FAILED, _ONE_DELIVERY),
    Operation("get-expired", stages.expired, _get, _STAYS, LIVE),
    Operation("requeue", stages.dead_letters, _requeue, _OR_FAILED, LIVE, by_operator=True),
    Operation("requeue-acked", stages.acked, _requeue, _OR_DONE, LIVE, by_operator=True),
    Operation("rewind", stages.acked, _rewind, _OR_DONE, LIVE),
    Operation("release-owner", stages.leased_by_another, _release_owner, _STAYS, LIVE, by_operator=True),
    Operation("purge", stages.acked_long_ago, _purge, frozenset({DONE, GONE}), GONE),
    Operation("pack", stages.acked_long_ago, _pack, frozenset({DONE}), DONE),
    Operation("pack-merging", stages.packed_before, _pack, frozenset({DONE}), DONE),
    Operation("rewind-packed", stages.packed, _rewind, _OR_DONE, LIVE),
    Operation("requeue-packed", stages.packed, _requeue, _OR_DONE, LIVE, by_operator=True),
    Operation("purge-packed", stages.packed_alone, _purge, frozenset({DONE, GONE}), GONE),
    Operation(
        "name-stranded",
        stages.unordered,
        lambda stage: operator.name_stranded(str(stage.path)),
        _STAYS,
        LIVE,
        by_operator=True,
    ),
    Operation("check", stages.pending, _check, _STAYS, LIVE),
    Operation("repair", stages.damaged, _repair, _STAYS, LIVE, damaged=True, by_operator=True),
    Operation("stream-join", stages.left, _join, _STAYS, LIVE),
    Operation("stream-leave", stages.joined, _leave, _STAYS, LIVE),
    Operation("stream-fail", stages.joined, _give_up, _STAYS, LIVE),
    Operation("stream-withdraw", stages.leased_by_member, _withdraw, _STAYS, LIVE),
    Operation("stream-succeed", stages.withdrawn, _join, _STAYS, LIVE),
    Operation("stream-succeed-leases", stages.leased_by_former_member, _succeed_with_proof, _STAYS, LIVE),
    Operation("stream-agree", stages.ranked, _agree, _STAYS, LIVE),
    Operation("stream-policy", stages.pending, _set_policy, _STAYS, LIVE),
    Operation("stream-quantum", stages.pending, _publish_quantum, _STAYS, LIVE),
    Operation("put-when-below", stages.joined_unput, _put_when_below, _OR_GONE, LIVE),
    Operation("view-get", stages.viewed, _view_get, _STAYS, LIVE),
    Operation("view-ack", stages.leased_by_view, _view_ack, _OR_DONE, DONE),
    Operation("controller-commit", stages.controlled, _commit, _OR_GONE, LIVE),
    Operation("controller-ack", stages.leased_by_controller, _ack_trained, _OR_DONE, DONE),
    Operation("controller-reconcile", stages.committed, _reconcile, _OR_GONE, LIVE),
    Operation("get-heartbeat", stages.pending, _get, _STAYS, LIVE, _HEARTBEAT),
    Operation("reclaim-silent", stages.silent, _reclaim, _STAYS, LIVE, _HEARTBEAT),
    Operation("close-heartbeat", stages.leased, _close, _STAYS, LIVE, _HEARTBEAT, keeps=True),
    Operation("put-lease-lock", stages.opened, _put, _OR_GONE, LIVE, _LEASE_LOCK, waits=True),
    Operation("get-lease-lock", stages.pending, _get, _STAYS, LIVE, _LEASE_LOCK, waits=True),
    Operation("release-lease-lock", stages.leased, _release, _STAYS, LIVE, _LEASE_LOCK, waits=True),
    Operation("close", stages.leased, _close, _STAYS, LIVE, keeps=True),
)

BY_NAME = {operation.name: operation for operation in OPERATIONS}
