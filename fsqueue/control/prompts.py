"""Keep the prompts of a run in the controller's memory: pending, leased to a worker, failed."""

from __future__ import annotations

import dataclasses
import threading
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fsqueue.errors import InvalidArgumentError
from fsqueue.records import PromptTask, assert_no_tensors


class PromptPool:
    """Hand out prompts in the order in which they came; those that fail go to the tail.

    Args:
        max_attempts: failures after which a prompt is failed for good; None: it never is.
    """

    def __init__(self, run_id: str, max_attempts: int | None) -> None:
        self.max_attempts = max_attempts
        self._run_id = run_id
        self._mutex = threading.Lock()
        self._tasks: dict[str, PromptTask] = {}
        self._pending: dict[str, None] = {}
        self._holders: dict[str, str] = {}
        self._in_flight: Counter[str] = Counter()
        self._failed: dict[str, str] = {}

    def ingest(self, prompts: Iterable[Mapping[str, Any]]) -> list[str]:
        """Add prompts; returns their task ids. A task id that is pending or leased is replaced where it is.

        Raises:
            TensorInRefError: there is a tensor in one; none was added.
        """
        if isinstance(prompts, (str, bytes, Mapping)) or not isinstance(prompts, Iterable):
            raise InvalidArgumentError("ingest_prompts", "an iterable of mappings, one a prompt", prompts)
        tasks = [self._task(prompt) for prompt in prompts]
        with self._mutex:
            for task in tasks:
                self._tasks[task.task_id] = task
                self._failed.pop(task.task_id, None)
                if task.task_id not in self._holders:
                    self._pending[task.task_id] = None
        return [task.task_id for task in tasks]

    def _task(self, prompt: Mapping[str, Any]) -> PromptTask:
        if not isinstance(prompt, Mapping):
            raise InvalidArgumentError("ingest_prompts", "an iterable of mappings, one a prompt", prompt)
        assert_no_tensors(prompt)
        return PromptTask(
            task_id=prompt.get("task_id") or f"task-{uuid.uuid4().hex[:12]}",
            run_id=self._run_id,
            source_id=str(prompt.get("source_id", "prompt_source")),
            payload=prompt.get("payload", prompt),
            max_length=int(prompt.get("max_length", 2048)),
            chat_template=prompt.get("chat_template"),
            loss_mask_policy=prompt.get("loss_mask_policy", {}),
            target_model_version=str(prompt.get("target_model_version", "unknown")),
            draft_weight_version=prompt.get("draft_weight_version"),
            metadata=prompt.get("metadata", {}),
        )

    def held_by(self, worker_id: str) -> int:
        with self._mutex:
            return self._in_flight[worker_id]

    def lease(self, worker_id: str, count: int) -> list[PromptTask]:
        """Hand out up to count prompts, the oldest first."""
        with self._mutex:
            chosen = [task_id for task_id, _ in zip(self._pending, range(max(0, count)), strict=False)]
            for task_id in chosen:
                del self._pending[task_id]
                self._holders[task_id] = worker_id
            self._in_flight[worker_id] += len(chosen)
            return [self._tasks[task_id] for task_id in chosen]

    def finish(self, task_ids: Iterable[str | None]) -> None:
        """Drop prompts whose samples are committed: nobody needs to roll them out again."""
        with self._mutex:
            for task_id in task_ids:
                self._finish_locked(task_id)

    def complete(self, worker_id: str, task_ids: Iterable[str]) -> None:
        """Drop prompts that are done with though no sample of theirs is committed here; others' leases stay."""
        with self._mutex:
            for task_id in task_ids:
                if self._holders.get(task_id, worker_id) == worker_id:
                    self._finish_locked(task_id)

    def _finish_locked(self, task_id: str | None) -> None:
        if task_id is not None and task_id in self._tasks:
            self._drop_lease(task_id)
            self._pending.pop(task_id, None)
            del self._tasks[task_id]

    def fail(self, worker_id: str, task_ids: Iterable[str], reason: str, retryable: bool) -> None:
        """End leases of a worker: back to the tail with one attempt more, or failed; others' leases stay."""
        with self._mutex:
            for task_id in task_ids:
                task = self._tasks.get(task_id)
                if task is not None and self._holders.get(task_id, worker_id) == worker_id:
                    self._drop_lease(task_id)
                    self._fail_locked(task, reason, retryable)

    def _fail_locked(self, task: PromptTask, reason: str, retryable: bool) -> None:
        attempts = task.attempt + 1
        if retryable and (self.max_attempts is None or attempts < self.max_attempts):
            self._tasks[task.task_id] = dataclasses.replace(task, attempt=attempts)
            self._pending.setdefault(task.task_id)
            return
        self._pending.pop(task.task_id, None)
        del self._tasks[task.task_id]
        self._failed[task.task_id] = f"{reason} (attempts exhausted: {attempts})" if retryable else reason

    def _drop_lease(self, task_id: str) -> None:
        holder = self._holders.pop(task_id, None)
        if holder is not None:
            self._in_flight[holder] -= 1

    def failed(self) -> dict[str, str]:
        """Return task id to reason."""
        with self._mutex:
            return dict(self._failed)

    def status(self) -> dict[str, int]:
        with self._mutex:
            return {
                "prompts": len(self._tasks),
                "prompts_pending": len(self._pending),
                "prompts_leased": len(self._holders),
                "prompts_failed": len(self._failed),
            }
