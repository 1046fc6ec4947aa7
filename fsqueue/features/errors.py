"""The errors of the feature store and its loaders; each is also an `FsQueueError`."""

from __future__ import annotations

from fsqueue.errors import FsQueueError


class FeatureStoreError(FsQueueError, ValueError):
    """A store's directory or settings are not what they must be: nothing was touched.

    Attributes:
        path: the store's directory.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"feature store {path} {problem}")
        self.path = path


class FeatureError(FsQueueError):
    """A sample's features cannot be had as its ref describes them.

    Attributes:
        sample_id: whose features.
        retryable: whether trying again later may help; what a consumer passes on to ``queue.fail``.
    """

    retryable = False

    def __init__(self, sample_id: str, problem: str) -> None:
        super().__init__(f"features of {sample_id!r}: {problem}")
        self.sample_id = sample_id


class FeatureMissingError(FeatureError, FileNotFoundError):
    """No file is there: it was removed, or is not visible yet on a shared mount."""

    retryable = True

    def __str__(self) -> str:
        return str(self.args[0])


class StaleFeatureError(FeatureError, ValueError):
    """The features were published anew, with other content, after the ref was made.

    Attributes:
        found, expected: generations.
    """

    def __init__(self, sample_id: str, found: str, expected: str) -> None:
        super().__init__(
            sample_id,
            f"the ref names generation {expected}, the store holds {found}: they were published anew since; "
            "put a ref made from the new ones",
        )
        self.found = found
        self.expected = expected


class CorruptFeatureError(FeatureError, ValueError):
    """The file is torn, damaged, or no features file at all.

    Attributes:
        path: the file, relative to the store.
    """

    def __init__(self, sample_id: str, path: str, problem: str) -> None:
        super().__init__(sample_id, f"{path} {problem}; publish them again, or purge the ref")
        self.path = path


class FeatureSpecError(FeatureError, ValueError):
    """A feature is lacking, has another shape or type than the ref says, or is nothing that can be stored.

    Attributes:
        feature: its name in the ref.
    """

    def __init__(self, sample_id: str, feature: str, problem: str) -> None:
        super().__init__(sample_id, f"{feature!r} {problem}")
        self.feature = feature


class UnfitFileError(FeatureError, ValueError):
    """A file that was to become a sample's features holds none that a store keeps; it was left where it is.

    Attributes:
        path: the file.
    """

    def __init__(self, sample_id: str, path: str, problem: str) -> None:
        super().__init__(sample_id, f"{path} {problem}: adopt a whole safetensors file, or put its tensors")
        self.path = path


class ForeignFeatureError(FeatureError, ValueError):
    """The ref's URI names no file of this store.

    Attributes:
        uri: as found in the ref.
    """

    def __init__(self, sample_id: str, uri: str, expected: str) -> None:
        super().__init__(sample_id, f"{uri!r} is no address in this store, which are {expected}")
        self.uri = uri


class CollateError(FsQueueError, ValueError):
    """Samples cannot be stacked into one batch.

    Attributes:
        feature: the feature that differs between samples.
    """

    def __init__(self, feature: str, problem: str) -> None:
        super().__init__(f"{feature!r} {problem}: pass a collate function that pads or packs, or a transform that cuts")
        self.feature = feature
