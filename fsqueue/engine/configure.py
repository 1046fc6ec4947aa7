"""Change what a queue stores about leases and retries, while others use it.

fsqueue.json is replaced; a handle takes the new one up within half a minute, and always before it takes a lease away
for its time. What was leased under a longer timeout may rely on that for as long again: until then leases end by the
longer of the two, or, where the timeout is changed again meanwhile, by the longest of all.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fsqueue.disk.publish import replace_file
from fsqueue.engine.handle import Handle
from fsqueue.engine.layout import Layout
from fsqueue.engine.owners import read_record
from fsqueue.engine.settings import OPTION_OF, SETTINGS, Settings, validate
from fsqueue.errors import QueueConfigError
from fsqueue.format import names

UNCHANGED: Any = msgspec.UNSET
_FROM_NEVER_S = 60.0  # for which a lease that was never to expire lasts at least: its holder has to hear of the change


def configure(handle: Handle, changes: dict[str, Any]) -> Settings:
    """Change some settings; return what holds from now on.

    Args:
        changes: by the names of `FileSampleRefQueue.configure`; those that are UNCHANGED are left out.

    Raises:
        QueueConfigError: a value is not valid, or a handle that lives beats too seldom for the timeout.
    """
    layout = handle.layout
    with handle.order_file.soon:
        layout.reread()
        wanted = would_configure(layout, changes, handle.clock.now())
        if wanted != layout.settings:
            replace_file(layout.ops, layout.root, SETTINGS, msgspec.json.encode(wanted) + b"\n", durable=True)
            layout.reread()
    return layout.settings


def would_configure(layout: Layout, changes: dict[str, Any], now: float) -> Settings:
    """Return what would hold after these changes; raise what `configure` would."""
    changes = {name: value for name, value in changes.items() if value is not UNCHANGED}
    wanted = _with_timeout(layout.settings, changes, now)
    retry = {field: changes[option] for field, option in OPTION_OF.items() if option in changes}
    wanted = msgspec.structs.replace(wanted, retry=msgspec.structs.replace(wanted.retry, **retry))
    wanted = msgspec.structs.replace(wanted, max_hold_s=changes.get("max_hold_s", wanted.max_hold_s))
    validate(layout.path, wanted.lease_timeout_s, None, wanted.retry, wanted.max_hold_s)
    if wanted != layout.settings:
        _require_beats(layout, wanted.lease_timeout_s)
    return wanted


def _with_timeout(before: Settings, changes: dict[str, Any], now: float) -> Settings:
    timeout_s = changes.get("lease_timeout_s", before.lease_timeout_s)
    if timeout_s == before.lease_timeout_s:
        return before
    former_s = before.lease_timeout_s or _FROM_NEVER_S
    if before.former_timeout_s is not None and now < before.changed_at + before.former_timeout_s:
        former_s = max(former_s, before.former_timeout_s)  # what was leased under that one may rely on it still
    return msgspec.structs.replace(before, lease_timeout_s=timeout_s, former_timeout_s=former_s, changed_at=now)


def _require_beats(layout: Layout, timeout_s: float | None) -> None:
    """Refuse a timeout under which the leases of a handle that lives would end between two of its beats."""
    for owner in filter(None, map(names.parse_owner, layout.owners.listing())):
        record = read_record(layout.owners, owner)
        if record is None or record.heartbeat_s is None or timeout_s is None or record.heartbeat_s <= timeout_s / 2:
            continue
        if record.liveness() != "dead":
            raise QueueConfigError(
                layout.path,
                f"has owner {owner}, who beats every {record.heartbeat_s:g} s, and may live: with lease_timeout_s="
                f"{timeout_s:g} its leases would expire between two beats; choose at least twice as long, or stop it",
            )
