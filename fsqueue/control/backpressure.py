"""Decide when producers pause: watermarks with hysteresis, caps on one worker and one lease, counts of starvation."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fsqueue.errors import FsQueueError


class CapacityReporter(Protocol):
    """Know how much was produced and not consumed yet: a feature store, or the controller itself."""

    def health(self) -> Mapping[str, Any]:
        """Return at least ``resident_bytes``; ``resident_refs`` or ``resident_samples`` for watermarks by refs."""


class BackpressurePolicy(Protocol):
    """Decide about pausing and caps for a controller."""

    def should_pause_prompts(self) -> bool: ...
    def cap_prompt_grant(self, worker_inflight: int, requested: int) -> int: ...
    def cap_train_lease(self, requested: int) -> int: ...
    def note_rollout_starved(self) -> None: ...
    def note_trainer_starved(self) -> None: ...
    def snapshot(self) -> Mapping[str, Any]: ...


@runtime_checkable
class TakesCapacity(Protocol):
    """Accept somebody to ask for the load."""

    def offer_capacity(self, capacity: CapacityReporter) -> None: ...


class BackpressureConfigError(FsQueueError, ValueError):
    """Say which watermarks or caps contradict each other."""


_AT_LEAST_ONE = (
    "high_watermark_bytes",
    "high_watermark_refs",
    "max_inflight_prompts_per_worker",
    "max_train_lease",
)
_COUNTERS = ("rollout_starved", "trainer_starved", "pause_transitions", "resume_transitions")


@dataclass(frozen=True)
class BackpressureConfig:
    """Limit what is produced and leased; None leaves a limit out.

    Attributes:
        high_watermark_bytes, high_watermark_refs: prompt leasing pauses when either is reached.
        low_watermark_bytes, low_watermark_refs: it resumes when neither is exceeded; the high one unless given.
        max_inflight_prompts_per_worker: prompts that one rollout worker may hold.
        max_train_lease: refs that one lease call may return.
    """

    high_watermark_bytes: int | None = None
    low_watermark_bytes: int | None = None
    max_inflight_prompts_per_worker: int | None = None
    max_train_lease: int | None = None
    high_watermark_refs: int | None = None
    low_watermark_refs: int | None = None

    def __post_init__(self) -> None:
        for unit in ("bytes", "refs"):
            high = getattr(self, f"high_watermark_{unit}")
            low = getattr(self, f"low_watermark_{unit}")
            if low is None:
                object.__setattr__(self, f"low_watermark_{unit}", high)
            elif high is None:
                raise BackpressureConfigError(f"low_watermark_{unit}={low} needs a high_watermark_{unit}")
            elif not 0 <= low <= high:
                raise BackpressureConfigError(f"low_watermark_{unit}={low} must lie between 0 and the high one, {high}")
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BackpressureConfigError(f"{name}={value} would stop everything for good: use at least 1, or None")


class BackpressureController:
    """Decide about pausing and caps; holds no refs. Thread-safe.

    Args:
        config: the limits; none unless given.
        capacity: who is asked for the load; a `DataFlowController` offers itself where there is none.
    """

    def __init__(self, config: BackpressureConfig | None = None, capacity: CapacityReporter | None = None) -> None:
        self.config = config or BackpressureConfig()
        self.capacity = capacity
        self._mutex = threading.Lock()
        self._paused = False
        self._counts: Counter[str] = Counter()

    def offer_capacity(self, capacity: CapacityReporter) -> None:
        """Ask this reporter for the load, where there is none yet."""
        self.capacity = capacity if self.capacity is None else self.capacity

    def should_pause_prompts(self) -> bool:
        """Tell whether prompt leasing pauses: from a high watermark until both loads are down to the low ones."""
        config = self.config
        if self.capacity is None or (config.high_watermark_bytes is None and config.high_watermark_refs is None):
            return False
        resident_bytes, refs = _load(self.capacity.health())
        limits = (
            (resident_bytes, config.high_watermark_bytes, config.low_watermark_bytes),
            (refs, config.high_watermark_refs, config.low_watermark_refs),
        )
        over = any(high is not None and load >= high for load, high, _ in limits)
        under = all(low is None or load <= low for load, _, low in limits)
        with self._mutex:
            if not self._paused and over:
                self._paused = True
                self._counts["pause_transitions"] += 1
            elif self._paused and under and not over:
                self._paused = False
                self._counts["resume_transitions"] += 1
            return self._paused

    def cap_prompt_grant(self, worker_inflight: int, requested: int) -> int:
        """Return how many of the requested prompts a worker may get that holds worker_inflight already."""
        cap = self.config.max_inflight_prompts_per_worker
        return max(0, requested if cap is None else min(requested, cap - worker_inflight))

    def cap_train_lease(self, requested: int) -> int:
        """Return how many of the requested refs one lease call may return."""
        cap = self.config.max_train_lease
        return requested if cap is None else min(requested, cap)

    def note_rollout_starved(self) -> None:
        """Count that a worker asked for prompts while they were paused."""
        with self._mutex:
            self._counts["rollout_starved"] += 1

    def note_trainer_starved(self) -> None:
        """Count that a trainer asked for refs and there were none."""
        with self._mutex:
            self._counts["trainer_starved"] += 1

    def snapshot(self) -> dict[str, Any]:
        """Return state and counters, and the load where it is known."""
        with self._mutex:
            found: dict[str, Any] = {"paused": self._paused, **{name: self._counts[name] for name in _COUNTERS}}
        if self.capacity is not None:
            health = self.capacity.health()
            resident_bytes, refs = _load(health)
            high = self.config.high_watermark_bytes
            found |= {
                "resident_bytes": resident_bytes,
                "resident_refs": refs,
                "max_resident_bytes": health.get("max_resident_bytes"),
                "free_to_high_watermark_bytes": None if high is None else max(0, high - resident_bytes),
            }
        return found


def _load(health: Mapping[str, Any]) -> tuple[int, int]:
    """Return the bytes and refs that were produced and not consumed."""
    refs = health.get("resident_refs", health.get("resident_samples", 0))
    return int(health.get("resident_bytes", 0)), int(refs)
