"""From refs to samples: loading what refs name, and failing those whose features cannot be had."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar, cast

from fsqueue.delivery import id_of_ref
from fsqueue.features.contract import FeatureRef, FeatureStore
from fsqueue.features.source import Source

R = TypeVar("R")

TRIES = 3

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
        failed: why refs were failed, by id.
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

    def load(self, refs: list[R]) -> list[tuple[R, Any]]:
        """Refs and their samples, without those that were failed.

        Raises:
            UnloadedError: on_error is "raise"; the refs are still leased, and `settle` ends that.
        """
        loaded: list[tuple[R, Any]] = []
        rest = list(refs)
        try:
            while rest:
                try:
                    loaded.append((rest[0], self._sample(rest[0])))
                except Exception as error:
                    if self._raise:
                        raise UnloadedError(error, rest[0], [*(ref for ref, _ in loaded), *rest[1:]]) from error
                    self._reject(rest[0], error)
                del rest[0]
        except UnloadedError:
            raise
        except BaseException:
            self._source.give_back([*(ref for ref, _ in loaded), *rest])
            raise
        return loaded

    def settle(self, unloaded: UnloadedError) -> Exception:
        """Fail the ref that could not be loaded, and give back the others; returns the error to raise."""
        if unloaded.culprit is not None:
            self._reject(unloaded.culprit, unloaded.cause)
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
