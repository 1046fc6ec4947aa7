"""Make samples of refs: load what refs name, and fail those whose features cannot be had."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, cast

from fsqueue.features.contract import FeatureRef, FeatureStore
from fsqueue.features.source import Source
from fsqueue.records import id_of_ref

R = TypeVar("R")

TRIES = 3

# What no sample can help: this process's or host's descriptors, memory or disk are used up, so that any other sample
# would meet it as well. EIO and ESTALE may be one file's, so they count as that sample's.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT})

# torch's own words for it, all of them RuntimeErrors: a device has no memory left, or no call to it works any more in
# this process; the host has none.
_TORCH_S_CLASSES = ("OutOfMemoryError", "AcceleratorError")
_TORCH_S_ALLOCATOR = "DefaultCPUAllocator"

Transform = Callable[[R, dict[str, Any]], Any]
OnError = Literal["skip", "raise"]


class UnloadedError(Exception):
    """A batch could not be made of refs that are still leased.

    Attributes:
        cause: the error that a loader raises in the end.
        culprit: the ref at fault, where one is.
        others: the rest of the batch.
    """

    def __init__(self, cause: Exception, culprit: Any, others: list[Any]) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.culprit = culprit
        self.others = others


class Materialiser(Generic[R]):
    """Loads refs on behalf of one loader; several threads may.

    Attributes:
        failed: the reason for which each ref was failed, by id.
    """

    def __init__(
        self, store: FeatureStore, source: Source[R], transform: Transform[R] | None, on_error: OnError
    ) -> None:
        self._store = store
        self._source = source
        self._transform = transform
        self._raise = on_error == "raise"
        self._misses: Counter[str] = Counter()
        self.failed: dict[str, str] = {}

    def load(self, refs: list[R], take: Callable[[Any], object]) -> list[R]:
        """Load refs' samples, and hand each to take as it comes; returns the refs without those that were failed.

        Raises:
            UnloadedError: on_error is "raise", it is no sample's error, or take raised one; the refs are still leased,
                and `give_up` ends that.
        """
        loaded: list[R] = []
        rest = list(refs)
        try:
            while rest:
                if self._load_one(rest[0], take, loaded, rest[1:]):
                    loaded.append(rest[0])
                del rest[0]
        except UnloadedError:
            raise
        except BaseException:
            self._source.give_back([*loaded, *rest])
            raise
        return loaded

    def _load_one(self, ref: R, take: Callable[[Any], object], loaded: list[R], rest: list[R]) -> bool:
        """Hand over a ref's sample; False where it was failed instead."""
        try:
            sample = self._sample(ref)
        except Exception as error:
            if is_no_sample_s(error):
                raise self.unloaded(error, None, [*loaded, ref, *rest]) from error
            if self._raise:
                raise self.unloaded(error, ref, [*loaded, *rest]) from error
            self._reject(ref, error)
            return False
        try:
            take(sample)
        except Exception as error:
            raise self.unloaded(error, None, [*loaded, ref, *rest]) from error
        return True

    def unloaded(self, error: Exception, culprit: R | None, others: list[R]) -> UnloadedError:
        """Return what to raise, with the batch still leased; after an error of no sample it is given back uncounted."""
        if is_no_sample_s(error):
            self._source.spare()
        return UnloadedError(error, culprit, others)

    def give_up(self, unloaded: UnloadedError) -> Exception:
        """Fail the ref that could not be loaded, and give back the others; returns the error to raise."""
        try:
            if unloaded.culprit is not None:
                self._reject(unloaded.culprit, unloaded.cause)
        finally:
            self._source.give_back(unloaded.others)
        return unloaded.cause

    def _sample(self, ref: R) -> Any:
        features = self._store.get(cast(FeatureRef, ref))
        return features if self._transform is None else self._transform(ref, features)

    def _reject(self, ref: R, error: Exception) -> None:
        """Fail a ref: as retryable where that may help, but for good the third time, as this object counts."""
        sample_id = id_of_ref(ref)
        retryable = bool(getattr(error, "retryable", isinstance(error, OSError)))
        self._misses[sample_id] += retryable
        self.failed[sample_id] = reason = f"{type(error).__name__}: {error}"
        self._source.fail([ref], reason, retryable and self._misses[sample_id] < TRIES)


def is_no_sample_s(error: BaseException) -> bool:
    """Tell if an error speaks of this process, its host or device, and not of the sample that was loaded."""
    if isinstance(error, RuntimeError):
        return type(error).__name__ in _TORCH_S_CLASSES or _TORCH_S_ALLOCATOR in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _EXHAUSTED)
