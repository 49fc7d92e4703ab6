"""How headers and bodies of events lie in the database: deflated, by a dictionary of what most of them say.

Hashes are over the bytes before. Packed bytes begin with 1, which JSON does not, and with a checksum: what was changed
on the disk is handed on as it is, and shows wherever it is read or verified.
"""

from __future__ import annotations

import zlib
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


def pack(data: bytes) -> bytes:
    """Return the bytes as they are to lie in the database: packed where that is shorter."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, -12, 4, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    packed = deflate.compress(data) + deflate.flush()
    if len(packed) + 5 >= len(data):
        return data
    return _MARK + zlib.crc32(packed).to_bytes(4, "big") + packed


def unpack(data: bytes) -> bytes:
    """Return what `pack` was given; bytes that were not packed, or were changed since, as they are."""
    if data[:1] != _MARK or zlib.crc32(data[5:]).to_bytes(4, "big") != data[1:5]:
        return data
    inflate = zlib.decompressobj(-12, _DICTIONARY)
    return inflate.decompress(data[5:]) + inflate.flush()


class Packed(sa.types.TypeDecorator[bytes]):
    """A column of such bytes: readers get them unpacked. The append path speaks to the driver and packs itself."""

    impl = sa.LargeBinary
    cache_ok = True

    def process_bind_param(self, value: bytes | None, dialect: Any) -> bytes | None:
        return None if value is None else pack(value)

    def process_result_value(self, value: Any, dialect: Any) -> bytes | None:
        return None if value is None else unpack(bytes(value))
