"""A WebSocket (RFC 6455, the server's side) on the bare connection: what worker.py speaks over.

Tornado's own reads each frame in four steps through its stream and writes through two futures, which was a fifth of the
service's time where many workers are at work. Here a frame is a function call.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from typing import cast

from tornado.web import RequestHandler

from ..errors import Invalid

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
MAX_UNSENT = 64 * 1024 * 1024  # bytes; who takes nothing for so long is cut off, and asks again
CLOSE_SECONDS = 5.0  # for what was written before the end
NORMAL, GOING_AWAY, BROKEN, TOO_BIG = 1000, 1001, 1002, 1009
_AGAIN, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_FIN = 0x80


class Wire(asyncio.Protocol):
    """One connection. `message` is called with each message, `closed` once it is over.

    limit: bytes of a message; ping: seconds between two pings, within which something must be heard.
    """

    def __init__(self, limit: int, ping: float, message: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        self._limit, self._ping_seconds, self._message, self._closed = limit, ping, message, closed
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._parts: bytearray | None = None  # of a message in several frames
        self._heard = True
        self._timer: asyncio.TimerHandle | None = None

    # -- what the event loop calls -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._timer = asyncio.get_running_loop().call_later(self._ping_seconds, self._ping)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._buffer += data
        taken = 0
        while self._transport is not None and (end := self._frame(taken)):
            taken = end
        del self._buffer[:taken]

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._closed()

    @property
    def stands(self) -> bool:
        return self._transport is not None

    # -- what worker.py calls ------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send a text, where the connection still stands."""
        self._write(_TEXT, message)

    def close(self, code: int = NORMAL) -> None:
        """Say that it is over, and end it when that is sent. Twice is harmless."""
        self._write(_CLOSE, code.to_bytes(2, "big"))
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, transport.abort)  # should the client take nothing

    def hold(self, still: bool) -> None:
        """Read nothing more while `still`."""
        if self._transport is not None:
            (self._transport.pause_reading if still else self._transport.resume_reading)()

    # -- frames --------------------------------------------------------------------------------------------------

    def _frame(self, begin: int) -> int:
        """Take the frame that begins there; return where it ends, 0: it is not whole yet (or the connection is over)."""
        buffer = self._buffer
        if len(buffer) < begin + 2:
            return 0
        first, size, at = buffer[begin], buffer[begin + 1] & 0x7F, begin + 2
        kind, control = first & 0x0F, first & 0x08
        if first & 0x70 or not buffer[begin + 1] & 0x80 or (control and (size > 125 or not first & _FIN)):
            return self._give_up(BROKEN)
        if size >= 126:
            wide = 2 if size == 126 else 8
            if len(buffer) < at + wide:
                return 0
            size, at = int.from_bytes(buffer[at : at + wide], "big"), at + wide
        if size + len(self._parts or b"") > self._limit:
            return self._give_up(TOO_BIG)
        end = at + 4 + size
        if len(buffer) < end:
            return 0
        data = unmasked(bytes(buffer[at + 4 : end]), bytes(buffer[at : at + 4]))
        if control:
            self._control(kind, data)
        elif kind not in (_AGAIN, _TEXT, _BINARY) or (kind == _AGAIN) != (self._parts is not None):
            return self._give_up(BROKEN)
        else:
            self._part(data, whole=bool(first & _FIN))
        return end

    def _part(self, data: bytes, *, whole: bool) -> None:
        if whole and self._parts is None:
            self._message(data)
            return
        self._parts = self._parts or bytearray()
        self._parts += data
        if whole:
            data, self._parts = bytes(self._parts), None
            self._message(data)

    def _control(self, kind: int, data: bytes) -> None:
        if kind == _PING:
            self._write(_PONG, data)
        elif kind == _CLOSE:
            self.close(int.from_bytes(data[:2], "big") if len(data) >= 2 else NORMAL)
        elif kind != _PONG:
            self._give_up(BROKEN)

    def _give_up(self, code: int) -> int:
        self.close(code)
        return 0

    def _ping(self) -> None:
        if self._transport is None:
            return
        if not self._heard:
            self._transport.abort()
            return
        self._heard = False
        self._write(_PING, b"")
        self._timer = asyncio.get_running_loop().call_later(self._ping_seconds, self._ping)

    def _write(self, kind: int, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        size = len(data)
        if size < 126:
            head = bytes((_FIN | kind, size))
        elif size < 65536:
            head = bytes((_FIN | kind, 126)) + size.to_bytes(2, "big")
        else:
            head = bytes((_FIN | kind, 127)) + size.to_bytes(8, "big")
        self._transport.write(head + data)
        if self._transport.get_write_buffer_size() > MAX_UNSENT:
            self._transport.abort()


def unmasked(data: bytes, mask: bytes) -> bytes:
    """Return a frame's bytes as they were before the client masked them. Pure."""
    size = len(data)
    whole = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(whole, "little")).to_bytes(size, "little")


async def upgrade(handler: RequestHandler, wire: Wire) -> None:
    """Answer a request that asks for a WebSocket, and hand its connection to `wire`. Raises Invalid: it asks for none."""
    headers = handler.request.headers
    wishes = [one.strip().lower() for one in headers.get("Connection", "").split(",")]
    key = headers.get("Sec-WebSocket-Key", "")
    if headers.get("Upgrade", "").lower() != "websocket" or "upgrade" not in wishes or not key:
        raise Invalid("this is a WebSocket", hint="connect with Upgrade: websocket")
    if headers.get("Sec-WebSocket-Version") != "13":
        raise Invalid("this version of WebSocket is not spoken here", hint="send Sec-WebSocket-Version: 13")
    accept = base64.b64encode(hashlib.sha1(key.encode() + MAGIC).digest()).decode()
    stream = handler.detach()
    connection = stream.socket.dup()
    stream.close()  # tornado's part is over: the duplicate is the event loop's own
    transport, _ = await asyncio.get_running_loop().connect_accepted_socket(lambda: wire, connection)
    answer = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
    transport.write(answer.encode())
