"""A WebSocket on the bare connection, by the protocol of the library `websockets`: what worker.py speaks over.

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
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import Protocol, Side, State

from ..errors import Invalid

MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
MAX_UNSENT = 64 * 1024 * 1024  # bytes; who takes nothing for so long is cut off, and asks again
CLOSE_SECONDS = 5.0  # for what was written before the end
DATA = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class Wire(asyncio.Protocol):
    """One connection. `message` is called with each message, `closed` once it is over.

    limit: bytes of a message; ping: seconds between two pings, within which something must be heard.
    """

    def __init__(self, limit: int, ping: float, message: Callable[[bytes], None], closed: Callable[[], None]) -> None:
        self._ping_seconds, self._message, self._closed = ping, message, closed
        self._frames = Protocol(Side.SERVER, state=State.OPEN, max_size=limit)
        self.transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []  # of a message in several frames
        self._heard = True
        self._timer: asyncio.TimerHandle | None = None

    # -- what the event loop calls -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._timer = asyncio.get_running_loop().call_later(self._ping_seconds, self._ping)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._frames.receive_data(data)
        for event in self._frames.events_received():
            frame = cast(Frame, event)
            if frame.opcode in DATA:
                self._take(frame)
        self._send_out()

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
        try:
            self._frames.send_text(message)
        except InvalidState:
            return  # the other side has said goodbye
        self._send_out()
        if self.transport is not None and self.transport.get_write_buffer_size() > MAX_UNSENT:
            self.transport.abort()

    def close(self, code: CloseCode = CloseCode.NORMAL_CLOSURE) -> None:
        """Say that it is over, and end it when that is sent. Twice is harmless."""
        if self.transport is not None and self._frames.state is State.OPEN:
            self._frames.send_close(code)
            self._send_out()
        self._end()

    def hold(self, still: bool) -> None:
        """Read nothing more while `still`."""
        if self.transport is not None:
            (self.transport.pause_reading if still else self.transport.resume_reading)()

    # -- frames --------------------------------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        self._parts.append(bytes(frame.data))
        if frame.fin:
            data, self._parts = b"".join(self._parts), []
            self._message(data)

    def _send_out(self) -> None:
        """Write what the protocol has to say; it ends the connection where a goodbye was answered or a rule broken."""
        said = self._frames.data_to_send()
        if self.transport is not None and not self.transport.is_closing():
            for data in said:
                if data:
                    self.transport.write(data)
        if self._frames.state is not State.OPEN:
            self._end()

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
        self._frames.send_ping(b"")
        self._send_out()
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
