"""Encode and decode the bodies of a ledger's records: pure functions, no I/O.

    commits  {"ids":["s17"],"sizes":[412],"weights":[128],"refs":[{...}]}
    acks     {"global_step":7,"optimizer_durable":true,"ids":["s17"]}
             {"forget_after_step":6}

``sizes`` are those of the refs in bytes and ``weights`` their estimated_bytes, so that reading a log does not decode
the refs in it.
"""

from __future__ import annotations

import itertools

import msgspec

from fsqueue.format import framing

_REFS = b',"refs":['
_encode = msgspec.json.Encoder().encode


class Commit(msgspec.Struct):
    """Hold one transaction's samples, without their refs."""

    ids: list[str]
    sizes: list[int]
    weights: list[int]


class Ack(msgspec.Struct):
    """Hold one acknowledgement; or, with forget_after_step, the taking back of all those of later steps."""

    ids: list[str] = []
    global_step: int | None = None
    optimizer_durable: bool = False
    forget_after_step: int | None = None


_decode_commit = msgspec.json.Decoder(Commit).decode
_decode_ack = msgspec.json.Decoder(Ack).decode


def commit_body(commit: Commit, refs: list[bytes]) -> tuple[bytes, int]:
    """Return a record's body, and where its first ref begins, counted from the start of the record."""
    head = _encode(commit)[1:-1] + _REFS
    return head + b",".join(refs) + b"]", framing.PREFIX_BYTES + len(head)


def parse_commit(data: bytes, start: int, end: int) -> tuple[Commit, int]:
    """Return the samples of the record data[start:end], and where in data its first ref begins."""
    refs_at = data.find(_REFS, start, end)
    return _decode_commit(b"{" + data[start + framing.PREFIX_BYTES : refs_at] + b"}"), refs_at + len(_REFS)


def ref_offsets(sizes: list[int], first: int) -> list[int]:
    """Return where refs of these sizes lie, one comma apart."""
    if len(sizes) == 1:
        return [first]
    return list(itertools.accumulate((size + 1 for size in sizes[:-1]), initial=first))


def ack_body(ack: Ack) -> bytes:
    if ack.forget_after_step is not None:
        return b'"forget_after_step":%d' % ack.forget_after_step
    return b'"global_step":%s,"optimizer_durable":%s,"ids":%s' % (
        _encode(ack.global_step),
        _encode(ack.optimizer_durable),
        _encode(ack.ids),
    )


def parse_ack(data: bytes, start: int, end: int) -> Ack:
    return _decode_ack(framing.fields(data, start, end))
