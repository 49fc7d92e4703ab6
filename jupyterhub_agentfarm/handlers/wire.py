"""A WebSocket on the bare connection, RFC 6455: what worker.py speaks over.

Tornado's own reads each frame in four steps through its stream and writes through two futures, the library `websockets`
reads it as a generator: a fifth, and then a tenth, of the service's time where many workers are at work. Here a frame is a
function call.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from typing import cast

from tornado.web import RequestHandler
from websockets.frames import CloseCode

from ..errors import Invalid

try:
    from websockets.speedups import apply_mask
except ImportError:  # there is no compiled one for this machine
    from websockets.utils import apply_mask

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
MAX_UNSENT = 64 * 1024 * 1024  # bytes; who takes nothing for so long is cut off, and asks again
CLOSE_SECONDS = 5.0  # for what was written before the end
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10  # section 11.8


class Broken(Exception):
    """The client breaks a rule; `code` says which."""

    def __init__(self, code: CloseCode) -> None:
        super().__init__(code)
        self.code = code


def next_frame(data: bytes, at: int, room: int) -> tuple[bool, int, bytes, int] | None:
    """Return of the client's frame at `at`: is it the last of its message, its kind, its content, where the next begins.

    None: the rest of it is still to come. Raises Broken; also where there are more bytes of a message than `room`.
    """
    if len(data) < at + 2:
        return None
    first, second = data[at], data[at + 1]
    last, kind, size, begin = first > 127, first & 15, second & 127, at + 2
    if first & 0x70 or second < 128 or kind not in (CONT, TEXT, BINARY, CLOSE, PING, PONG):
        raise Broken(CloseCode.PROTOCOL_ERROR)
    if kind >= CLOSE and (size > 125 or not last):
        raise Broken(CloseCode.PROTOCOL_ERROR)
    if size > 125:
        begin += 2 if size == 126 else 8
        if len(data) < begin:
            return None
        size = int.from_bytes(data[at + 2 : begin], "big")
    if kind < CLOSE and size > room:
        raise Broken(CloseCode.MESSAGE_TOO_BIG)
    end = begin + 4 + size
    if len(data) < end:
        return None
    return last, kind, apply_mask(data[begin + 4 : end], data[begin : begin + 4]), end


def framed(kind: int, content: bytes) -> bytes:
    """Return a frame of the server's."""
    size = len(content)
    if size < 126:
        return bytes((128 | kind, size)) + content
    if size < 65536:
        return bytes((128 | kind, 126)) + size.to_bytes(2, "big") + content
    return bytes((128 | kind, 127)) + size.to_bytes(8, "big") + content


class Wire(asyncio.Protocol):
    """One connection. `message` is called with each message, `closed` once it is over.

    limit: bytes of a message; ping: seconds between two pings, within which something must be heard.
    """

    def __init__(self, limit: int, ping: float, message: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        self._ping_seconds, self._message, self._closed = ping, message, closed
        self.transport: asyncio.Transport | None = None
        self._limit, self._size = limit, 0  # size: bytes of the parts
        self._parts: list[bytes] = []  # of a message in several frames
        self._left = b""  # of a frame whose rest is still to come
        self._heard = True
        self._timer: asyncio.TimerHandle | None = None

    # -- what the event loop calls -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._timer = asyncio.get_running_loop().call_later(self._ping_seconds, self._ping)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        data = self._left + data if self._left else data
        at = 0
        try:
            while self.transport is not None and (found := next_frame(data, at, self._limit - self._size)) is not None:
                last, kind, content, at = found
                self._take(last, kind, content)
        except Broken as error:
            self.close(error.code)
        self._left = data[at:]

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._timer is not None:
            self._timer.cancel()
        self._closed()

    @property
    def stands(self) -> bool:
        return self.transport is not None

    # -- what worker.py calls ------------------------------------------------------------------------------------

    def send(self, message: bytes) -> None:
        """Send a text, where the connection still stands."""
        if self.transport is None:
            return
        self._write(framed(TEXT, message))
        if self.transport.get_write_buffer_size() > MAX_UNSENT:
            self.transport.abort()

    def close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE) -> None:
        """Say that it is over, and end it when that is sent. Twice is harmless."""
        self._write(framed(CLOSE, code.to_bytes(2, "big")))
        self._end()

    def hold(self, still: bool) -> None:
        """Read nothing more while `still`."""
        if self.transport is not None:
            (self.transport.pause_reading if still else self.transport.resume_reading)()

    # -- frames --------------------------------------------------------------------------------------------------

    def _take(self, last: bool, kind: int, content: bytes) -> None:
        if kind == PING:
            self._write(framed(PONG, content))
        elif kind == CLOSE:
            if len(content) == 1:
                raise Broken(CloseCode.PROTOCOL_ERROR)
            self._write(framed(CLOSE, content[:2]))
            self._end()
        elif kind != PONG:
            if (kind == CONT) != bool(self._parts):  # what goes on has begun, and nothing begins between
                raise Broken(CloseCode.PROTOCOL_ERROR)
            if last and not self._parts:
                self._message(content)
                return
            self._parts.append(content)
            self._size += len(content)
            if last:
                whole, self._parts, self._size = b"".join(self._parts), [], 0
                self._message(whole)

    def _write(self, frame: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame)

    def _end(self) -> None:
        transport, self.transport = self.transport, None
        if transport is not None:
            transport.close()
            asyncio.get_running_loop().call_later(CLOSE_SECONDS, transport.abort)  # should the client take nothing

    def _ping(self) -> None:
        if self.transport is None:
            return
        if not self._heard:
            self.transport.abort()
            return
        self._heard = False
        self._write(framed(PING, b""))
        self._timer = asyncio.get_running_loop().call_later(self._ping_seconds, self._ping)


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
