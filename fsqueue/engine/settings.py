"""What fsqueue.json stores, on which all handles of a queue agree; no I/O."""

from __future__ import annotations

import msgspec

from fsqueue.errors import NotAQueueError, QueueConfigError, QueueReplacedError, UnsupportedFormatError
from fsqueue.format.codec import UNDECODABLE

FORMAT = 2
SETTINGS = "fsqueue.json"
LOCK_MODES = ("flock", "lease", "none")
LONGEST_DELAY_S = 86_400.0
RETRY_BACKOFF = 2.0
RETRY_JITTER = 0.1
OPTION_OF = {"first_s": "retry_delay_s", "backoff": "retry_backoff", "jitter": "retry_jitter"}
"""What a queue's options call the fields of `Retry`."""
_MOST_DOUBLINGS = 64
_LARGEST = 1e18  # whatever is larger, JSON may not carry


class Retry(msgspec.Struct, frozen=True):
    """Say for how long a ref that failed waits before it comes again.

    Attributes:
        first_s: after the first failure, seconds; 0: not at all.
        backoff: by how much longer after each further one.
        jitter: by which part, at most, a wait is longer by chance, so that what failed together comes apart.
    """

    first_s: float = 0.0
    backoff: float = RETRY_BACKOFF
    jitter: float = RETRY_JITTER

    def delay_s(self, attempts: int, chance: float) -> float:
        """Return the wait after so many attempts.

        Args:
            chance: from 0 to 1.
        """
        if not self.first_s:
            return 0.0
        try:
            grown_s = self.first_s * float(self.backoff) ** min(max(attempts - 1, 0), _MOST_DOUBLINGS)
        except OverflowError:
            return LONGEST_DELAY_S
        return min(grown_s * (1 + self.jitter * chance), LONGEST_DELAY_S)


NO_WAIT = Retry()
"""What fsqueue.json leaves out: by being this very object."""


class Settings(msgspec.Struct, frozen=True, omit_defaults=True):
    """Hold the content of fsqueue.json, on which all handles of a queue agree.

    Attributes:
        lease_timeout_s: seconds after which an unrenewed lease expires; None: leases do not time out.
        lock: what orders the critical sections: "flock", "lease" (filelock's SoftFileLease) or "none".
        queue_id: tells this queue from others that lie at its path at another time; None in those made without one.
        retry: how long refs wait that have failed.
        max_hold_s: for how long a handle may hold a ref whose work makes no progress; None: for as long as it lives.
        former_timeout_s, changed_at: the timeout that the present one took the place of, and when, by the filesystem's
            clock; what was leased under it may rely on it for as long again.
    """

    format: int
    created_at: float
    run_id: str | None
    lease_timeout_s: float | None
    lock: str
    queue_id: str | None = None
    retry: Retry = NO_WAIT
    former_timeout_s: float | None = None
    changed_at: float = 0.0
    max_hold_s: float | None = None

    @property
    def identity(self) -> object:
        """Return what tells the queue from others, and never changes."""
        return self.queue_id or (self.created_at, self.run_id, self.lock)

    def timeout_at(self, now: float) -> float:
        """Return the timeout by which a lease ends now, where leases time out at all."""
        assert self.lease_timeout_s is not None
        former_s = self.former_timeout_s or 0.0
        return max(self.lease_timeout_s, former_s) if now < self.changed_at + former_s else self.lease_timeout_s


def require_same(path: str, before: Settings, found: Settings) -> None:
    """Raise a QueueReplacedError where these settings are those of two queues."""
    if before.identity != found.identity:
        raise QueueReplacedError(path, before.queue_id, found.queue_id)


def validate(
    path: str, lease_timeout_s: float | None, lock: str | None, retry: Retry, max_hold_s: float | None = None
) -> None:
    """Raise a QueueConfigError where a setting can mean nothing, or would be written so that nobody can read it."""
    for name, value, least in (
        ("retry_delay_s", retry.first_s, 0.0),
        ("retry_backoff", retry.backoff, 1.0),
        ("retry_jitter", retry.jitter, 0.0),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= _LARGEST:
            raise QueueConfigError(path, f"needs {name} of {least:g} or more, found {value!r}")
    for name, longest in (("lease_timeout_s", lease_timeout_s), ("max_hold_s", max_hold_s)):
        if longest is not None and not 0 < longest <= _LARGEST:
            raise QueueConfigError(path, f"needs a positive {name} or None, found {longest!r}")
    if lock is not None and lock not in LOCK_MODES:
        raise QueueConfigError(path, f"needs lock to be one of {', '.join(LOCK_MODES)}, found {lock!r}")


def parse_settings(path: str, data: bytes) -> Settings:
    """Return the settings in a file's bytes.

    Raises:
        NotAQueueError: they are damaged, or of another format.
    """
    try:
        found = msgspec.json.decode(data)
        number = found.get("format") if isinstance(found, dict) else None
        if isinstance(number, int) and number != FORMAT:
            raise UnsupportedFormatError(path, number, FORMAT)
        settings = msgspec.json.decode(data, type=Settings)
        validate(path, settings.lease_timeout_s, settings.lock, settings.retry, settings.max_hold_s)
    except UNDECODABLE as error:
        raise NotAQueueError(path, f"has a damaged {SETTINGS} ({error}): FORMAT.md shows what belongs there") from None
    return settings


def compare(path: str, stored: Settings | Retry, **given: object) -> None:
    """Raise a QueueConfigError where what a handle asks for is not what is stored; None asks for nothing."""
    for key, value in given.items():
        found, option = getattr(stored, key), OPTION_OF.get(key, key)
        if value is not None and value != found:
            raise QueueConfigError(
                path,
                f"was created with {option}={found!r}, this handle asks for {value!r}: "
                f"leave {option} out to take the stored one, change it with `fsqueue config`, or use another directory",
            )
