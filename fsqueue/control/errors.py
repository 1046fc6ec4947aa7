"""The errors of the control plane; each is also an `FsQueueError`."""

from __future__ import annotations

from fsqueue.errors import FsQueueError, LockTimeoutError, LockUnsupportedError


class NoSampleQueueError(FsQueueError, ValueError):
    """A controller without a queue was asked for what only a queue can do.

    Attributes:
        run_id, call: of the controller, and what it was asked for.
    """

    def __init__(self, run_id: str, call: str) -> None:
        super().__init__(
            f"the controller of run {run_id!r} has no sample queue (enable_sample_queue=False), and {call} needs one: "
            "ask the process that hands its samples out, or set controller.sample_queue"
        )
        self.run_id = run_id
        self.call = call


class LedgerError(FsQueueError, ValueError):
    """A ledger's directory, its files or its arguments are not what they must be.

    Attributes:
        path: the ledger's directory.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"ledger {path} {problem}")
        self.path = path


class LedgerFormatError(LedgerError):
    """The directory is no ledger, or one that another version wrote: nothing was touched."""


class LedgerDamagedError(LedgerError):
    """A record in the middle of a log does not verify, so what follows it cannot be believed to be all there is.

    Attributes:
        file: the log's name inside the ledger.
        offset: where the damage begins, in bytes.
    """

    def __init__(self, path: str, file: str, offset: int, problem: str) -> None:
        super().__init__(
            path,
            f"is damaged: {file} at byte {offset}: {problem}; restore the file from a copy, "
            f"or cut it there (`truncate -s {offset}`) to keep the transactions before it",
        )
        self.file = file
        self.offset = offset


class LedgerClosedError(LedgerError):
    """A store was used after close()."""

    def __init__(self, path: str) -> None:
        super().__init__(path, "was closed through this object: open another one")


class LedgerLockedError(LockTimeoutError):
    """A log's lock could not be had; a ledger is never written, nor believed, without it."""

    text = (
        "the lock on {path} was held by another process for {waited_s:.0f} s, and a ledger is never written "
        "without it: find that process (`lslocks`, /proc/locks); after the death of a whole NFS client the server "
        "frees the lock within 90 s (NFS 4) or when that client is back (NFS 3)"
    )


class LedgerLockUnsupportedError(LockUnsupportedError):
    """The mount has no flock, and a ledger that several processes write cannot do without."""

    advice = ": a ledger needs flock; mount Lustre with -o flock, NFS without nolock, or keep the ledger elsewhere"


class LiveNamesakeError(FsQueueError, RuntimeError):
    """Another owner of this controller's name holds leases, and is alive or not known to be dead.

    Attributes:
        owner: the other owner, as its leases in leased/ name it.
        leases: how many refs it leases.
    """

    def __init__(self, owner: str, leases: int, why: str) -> None:
        super().__init__(
            f"owner {owner} leases {leases} refs under the same name as this controller, and {why}: "
            "stop that process or give this queue handle another owner=; if it is gone for good, pass "
            "predecessor_gone=True"
        )
        self.owner = owner
        self.leases = leases
