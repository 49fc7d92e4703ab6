"""Asks an OpenSSH master over its control socket, as the program `ssh` does, without starting one for each request.

The protocol is OpenSSH's own (its file PROTOCOL.mux), version 4 since 2010: packets of a length, a type and fields; numbers of 32 bits,
big-endian. Of a session the master gets three pipes' ends, and reads and writes them itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

VERSION = 4
HELLO = 0x00000001
NEW_SESSION, ALIVE_CHECK, TERMINATE = 0x10000002, 0x10000004, 0x10000005
OPEN_FORWARD, CLOSE_FORWARD = 0x10000006, 0x10000007
DENIED, FAILURE, EXITED = 0x80000002, 0x80000003, 0x80000004
LOCAL, REMOTE = 1, 2  # who listens: this side, the other one
UNIX = 2**32 - 2  # in place of a port: the host is a socket's path
NO_ESCAPE = 2**32 - 1
REQUEST = 1  # one request a connection: all have the same number
LARGEST = 256 * 1024  # bytes of a packet
LARGEST_ANSWER = 64 << 20  # bytes that a command may write: another machine must not fill this one's memory


class Refused(Exception):
    """The master says no; its words."""


class Wire:
    """One connection to a master, or of one."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self._loop = sock, asyncio.get_running_loop()

    async def send(self, kind: int, *fields: int | str) -> None:
        await self._loop.sock_sendall(self.sock, packet(kind, *fields))

    async def receive(self) -> tuple[int, bytes]:
        """Return the next packet: its type and fields. Raises ConnectionError at the end."""
        kind_and_fields = await self._exactly(*struct.unpack("!I", await self._exactly(4)))
        return struct.unpack_from("!I", kind_and_fields)[0], kind_and_fields[4:]

    async def _exactly(self, count: int) -> bytes:
        if count > LARGEST:
            raise ConnectionError("no packet of a master is so large")
        found = b""
        while len(found) < count:
            piece = await self._loop.sock_recv(self.sock, count - len(found))
            if not piece:
                raise ConnectionError("the master closed the connection")
            found += piece
        return found


def packet(kind: int, *fields: int | str) -> bytes:
    """Return a packet as it is sent."""
    body = struct.pack("!I", kind)
    for one in fields:
        raw = one.encode() if isinstance(one, str) else b""
        body += struct.pack("!I", len(raw)) + raw if isinstance(one, str) else struct.pack("!I", one)
    return struct.pack("!I", len(body)) + body


@contextlib.asynccontextmanager
async def _connected(control: Path) -> AsyncIterator[Wire]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, str(control))
        wire = Wire(sock)
        await wire.send(HELLO, VERSION)
        kind, fields = await wire.receive()
        if kind != HELLO or struct.unpack_from("!I", fields)[0] != VERSION:
            raise Refused("this release of OpenSSH speaks another protocol over its control socket")
        yield wire


def _checked(kind: int, fields: bytes) -> bytes:
    if kind in (DENIED, FAILURE):
        (length,) = struct.unpack_from("!I", fields, 4)
        raise Refused(fields[8 : 8 + length].decode("utf-8", "replace"))
    return fields


async def ask(control: Path, kind: int, *fields: int | str) -> bytes:
    """Send one request that the master itself answers; return the answer's fields. Raises Refused; OSError: no master is there."""
    async with _connected(control) as wire:
        await wire.send(kind, REQUEST, *fields)
        return _checked(*await wire.receive())


async def master(control: Path) -> int:
    """Return the number of the master's process. Raises as `ask`."""
    try:
        return int(struct.unpack("!II", await ask(control, ALIVE_CHECK))[1])
    except struct.error:
        raise Refused("what answers there is no master of OpenSSH's") from None


async def forward(control: Path, kind: int, way: int, listen: int, host: str, port: int) -> None:
    """Open or close a forward from loopback port `listen` (`way`: LOCAL here, REMOTE there). Again is harmless. Raises as `ask`."""
    await ask(control, kind, way, "127.0.0.1", listen, host, port)


async def run(control: Path, command: str, stdin: bytes) -> tuple[int, bytes, bytes]:
    """Run a command on the other side. Returns (exit code, stdout, stderr). Raises Refused; OSError: the connection broke off."""
    async with _connected(control) as wire, contextlib.AsyncExitStack() as stack:
        theirs: list[int] = []
        stack.callback(_close, theirs)
        feed = await _pipe_to(theirs, stack)
        out, err = await _pipe_from(theirs, stack), await _pipe_from(theirs, stack)
        await wire.send(NEW_SESSION, REQUEST, "", 0, 0, 0, 0, NO_ESCAPE, "", command)
        for end in theirs:
            socket.send_fds(wire.sock, [b"\0"], [end])
        _close(theirs)  # the master's are the only ones now: a pipe ends where the master closes it
        feed.write(stdin)
        feed.write_eof()
        ended = asyncio.create_task(_ended(wire))
        stack.push_async_callback(_over, ended)  # before the socket is closed
        return await asyncio.gather(ended, out, err)


async def _over(task: asyncio.Task[int]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _close(ends: list[int]) -> None:
    while ends:
        os.close(ends.pop())


async def _pipe_to(theirs: list[int], stack: contextlib.AsyncExitStack) -> asyncio.WriteTransport:
    """Return our end of a pipe to the master; the other one is put to `theirs`."""
    given, ours = os.pipe()
    theirs.append(given)
    file = os.fdopen(ours, "wb", 0)
    to, _ = await asyncio.get_running_loop().connect_write_pipe(asyncio.BaseProtocol, file)
    stack.callback(to.close)
    return to


async def _pipe_from(theirs: list[int], stack: contextlib.AsyncExitStack) -> asyncio.Task[bytes]:
    """Read a pipe that the master writes to, to its end; the master's end is put to `theirs`."""
    ours, given = os.pipe()
    theirs.append(given)
    reader = asyncio.StreamReader()
    file = os.fdopen(ours, "rb", 0)
    read, _ = await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
    task = asyncio.create_task(_whole(reader))
    stack.callback(read.close)
    stack.callback(task.cancel)
    return task


async def _whole(reader: asyncio.StreamReader) -> bytes:
    found = bytearray()
    while piece := await reader.read(1 << 16):
        found += piece
        if len(found) > LARGEST_ANSWER:
            raise Refused(f"it answers more than {LARGEST_ANSWER} bytes")
    return bytes(found)


async def _ended(wire: Wire) -> int:
    """Return the session's exit code, once the master has let go of it. Raises Refused, ConnectionError."""
    code: int | None = None
    while True:
        try:
            kind, fields = await wire.receive()
        except ConnectionError:
            if code is None:
                raise
            return code
        _checked(kind, fields)
        if kind == EXITED:
            (code,) = struct.unpack_from("!I", fields, 4)
