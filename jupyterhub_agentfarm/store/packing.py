"""How headers and bodies of events lie in the database: headers of the usual form as the numbers that they hold, all else
deflated, by a dictionary of what most bodies say.

Hashes are over the bytes before. Packed bytes begin with 1 or 2, which JSON does not, and with a checksum: what was changed
on the disk is handed on as it is, and shows wherever it is read or verified.
"""

from __future__ import annotations

import re
import struct
import zlib
from binascii import hexlify
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

_MARK = b"\x01"
# Never changed: what was packed by it could not be read again. Another one would get another mark.
_DICTIONARY = (
    b'{"reason":"","proof":null}{"name":"","value":{"error":{"type":"","message":"{"task":"task-0","agent":"","version":1,'
    b'"definition":"","mode":"live","thread":null,"parent":null,"owner":"","bound":false}{"fence":1,"worker":""}'
    b'{"role":"system","content":"{"role":"user","content":"{"result":{"result":"","seconds":0.0}'
    b'{"request":"r","attempt":1,"model":"","upstream":"","digest":"","messages":1,"tool_choice":"auto",'
    b'"parameters":{"temperature":0.0,"max_tokens":,"seed":},"upto":'
    b'{"request":"r","message":{"role":"assistant","content":"","tool_calls":[{"id":"c0-0","type":"function","function":'
    b'{"name":"","arguments":"{\\"","finish":"tool_calls","finish":"stop","usage":{"input":,"output":,"estimated":false},'
    b'"cost":0.0,"provenance":{"upstream":"","model":"","provider":null,"provider":"","id":""}}'
    b'{"tool":"","key":"","effect":"idempotent","effect":"read","effect":"once","attempt":1,"timeout":60.0,"fence":1}'
    b'{"v":1,"epoch":"","run":"run-019","seq":1,"kind":"message.added","kind":"run.","kind":"model.requested",'
    b'"kind":"model.replied","kind":"tool.started","kind":"tool.succeeded","at":"2026-01-01T00:00:00.000000Z",'
    b'"by":"service","by":"worker:1","by":"gateway","call":"c1-0","call":null,"body":"","prev":""}'
)

_DEFLATE = zlib.compressobj(1, zlib.DEFLATED, -12, 4, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)  # copied: it has read it

# A header as numbers: half of what deflate makes of it, which can do nothing with hashes, and in a third of the time.
_NUMBERS = b"\x02"
_HEADER = re.compile(
    rb'\{"v":1,"epoch":"([0-9a-f]{16})","run":"run-([0-9a-f]{24})","seq":([1-9][0-9]{0,8}),"kind":"([a-z_]+\.[a-z_]+)",'
    rb'"at":"20(\d\d)-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)\.(\d{6})Z","by":"(service|gateway|worker:[1-9][0-9]{0,8})",'
    rb'"call":(null|"c[0-9]{1,8}-[0-9]{1,8}"),"body":"([0-9a-f]{64})","prev":"([0-9a-f]{64})"\}'
)
_KINDS = (  # never reordered, only added to; a kind that is none of them is deflated with its header
    b"model.requested", b"model.replied", b"tool.started", b"tool.succeeded", b"tool.failed", b"run.created",
    b"message.added", b"run.leased", b"run.succeeded", b"run.failed", b"run.requeued", b"run.parked", b"model.reported",
    b"model.failed", b"run.cancelled", b"run.cancel_requested", b"tool.doubted", b"approval.requested", b"value.recorded",
    b"child.submitted", b"child.finished", b"person.executed", b"context.compacted", b"memory.remembered",
)  # fmt: skip
_NUMBER_OF = {kind: number for number, kind in enumerate(_KINDS)}
_FIXED = struct.Struct("<20s32s32sQIB")  # epoch (8 bytes) and run, body, prev; the digits of the time; seq; kind
_AUTHORS = {b"s": b"service", b"g": b"gateway", b"w": b"worker:"}


def pack(data: bytes) -> bytes:
    """Return the bytes as they are to lie in the database: packed where that is shorter."""
    if data.startswith(b'{"v":') and (found := _numbers(data)) is not None:
        return _NUMBERS + zlib.crc32(found, 2).to_bytes(4, "big") + found
    deflate = _DEFLATE.copy()
    packed = deflate.compress(data) + deflate.flush()
    if len(packed) + 5 >= len(data):
        return data
    return _MARK + zlib.crc32(packed).to_bytes(4, "big") + packed


def unpack(data: bytes) -> bytes:
    """Return what `pack` was given; bytes that were not packed, or were changed since, as they are."""
    mark, check, packed = data[:1], data[1:5], data[5:]
    try:
        if (
            mark == _NUMBERS and zlib.crc32(packed, 2).to_bytes(4, "big") == check
        ):  # 2: that checksum fits no other mark
            return _header(packed)
        if mark != _MARK or zlib.crc32(packed).to_bytes(4, "big") != check:
            return data
        inflate = zlib.decompressobj(-12, _DICTIONARY)
        return inflate.decompress(packed) + inflate.flush()
    except (zlib.error, struct.error, ValueError, IndexError):  # never packed here: somebody has made a checksum for it
        return data


def _numbers(data: bytes) -> bytes | None:
    """Return a header's numbers; None where it is of another form."""
    found = _HEADER.fullmatch(data)
    if found is None or (kind := _NUMBER_OF.get(found[4])) is None:
        return None
    epoch, run, seq, _, *time, by, call, body, prev = found.groups()
    fixed = _FIXED.pack(
        bytes.fromhex((epoch + run).decode()), bytes.fromhex(body.decode()), bytes.fromhex(prev.decode()), int(b"".join(time)), int(seq), kind
    )  # fmt: skip
    return fixed + by[:1] + by[7:] + b" " + call.strip(b'"')


def _header(numbers: bytes) -> bytes:
    """Return the header of its numbers."""
    named, body, prev, time, seq, kind = _FIXED.unpack_from(numbers)
    by, call = numbers[_FIXED.size :].split(b" ")
    second, micro = divmod(time, 1_000_000)
    return b'%b%d,"kind":"%b","at":"20%b.%06dZ","by":"%b%b","call":%b,"body":"%b","prev":"%b"}' % (
        _beginning(named), seq, _KINDS[kind], _second(second), micro, _AUTHORS[by[:1]], by[1:],
        call if call == b"null" else b'"%b"' % call, hexlify(body), hexlify(prev),
    )  # fmt: skip


@lru_cache(64)
def _beginning(named: bytes) -> bytes:
    """Return the beginning that the headers of a run have in common."""
    return b'{"v":1,"epoch":"%b","run":"run-%b","seq":' % (hexlify(named[:8]), hexlify(named[8:]))


@lru_cache(64)
def _second(digits: int) -> bytes:
    t = b"%012d" % digits
    return b"%b-%b-%bT%b:%b:%b" % (t[:2], t[2:4], t[4:6], t[6:8], t[8:10], t[10:])


class Packed(sa.types.TypeDecorator[bytes]):
    """A column of such bytes: readers get them unpacked. The append path speaks to the driver and packs itself."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Any) -> bytes | None:
        return None if value is None else pack(value)

    def process_result_value(self, value: Any, dialect: Any) -> bytes | None:
        return None if value is None else unpack(bytes(value))
