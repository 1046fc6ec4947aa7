"""What a node says that is not so, of what other nodes have just done."""

from __future__ import annotations

import errno
import random

from simulation.rules import NEWS_S, Rules
from simulation.server import Inode, Server, failed

_INSTANT_S = 0.1
_SHARE = 0.5
_LOCKS_LOST = 0.02


LIED = "lied"


def lied(code: int, *names: str) -> OSError:
    """An error that says what is not so; a trace and the checks can tell it from one that does."""
    error = failed(code, *names)
    error.strerror = f"{error.strerror} ({LIED})"
    return error


class Lies:
    """Raises, or allows, what a node says of one request."""

    def __init__(self, server: Server, rules: Rules, rng: random.Random) -> None:
        self._server = server
        self._rules = rules
        self._rng = rng
        self._creation = getattr(errno, rules.creation, 0)
        self._loser = getattr(errno, rules.loser)

    def _happens(self, share: float = _SHARE) -> bool:
        return self._rng.random() < share

    def of_loss(self, directory: Inode, *names: str) -> None:
        """ "The loser of a race is told different things" (filesystems.md, 3).

        Raises:
            OSError: the name that comes first is gone.
        """
        if self._loser != errno.ENOENT and self._server.heard(directory, names[0], NEWS_S) and self._happens():
            raise lied(self._loser, *names)

    def of_creation(self, directory: Inode, name: str, exclusive: bool) -> None:
        """ "O_CREAT without O_EXCL may say EEXIST or ENOENT for a second or so after another mount created, replaced
        or removed the name" (filesystems.md, 4).
        """
        if self._creation and not exclusive and self._server.heard(directory, name, NEWS_S) and self._happens():
            raise lied(self._creation, name)

    def of_close(self) -> None:
        """ "close may raise ESTALE (GlusterFS)" (filesystems.md, 4), of a file that is gone."""
        if "close-says-stale" in self._rules and self._happens():
            raise lied(errno.ESTALE)

    def of_replacement(self, directory: Inode, name: str) -> None:
        """ "A file replaced by rename is not there for an instant for a reader on another mount" (6)."""
        if "missing-while-replaced" not in self._rules:
            return
        if self._server.heard(directory, name, _INSTANT_S) == "replaced" and self._happens():
            raise lied(self._rng.choice((errno.ENOENT, errno.ENOENT, errno.ESTALE, errno.EBADF)), name)

    def has_two_creators(self, directory: Inode, name: str) -> bool:
        """ "O_EXCL is not exclusive on SeaweedFS, s3fs, rclone" (filesystems.md, 5).

        Measured on SeaweedFS 4.48: of two files linked to one name at once, each mount saw its own for as long as was
        looked, 20 s; of two renamed to one name, both saw the later at once.
        """
        return "two-creators" in self._rules and self._server.heard(directory, name, NEWS_S) == "came"

    def a_lock_is_lost(self) -> bool:
        """CIFS: a flock across mounts "can be lost"."""
        return "locks-get-lost" in self._rules and self._happens(_LOCKS_LOST)
