"""The loopback ports that lead to servers elsewhere. Each is held for as long as its server may run: while its microserver is away,
no other program can get it by chance, and what the Hub's proxy sends there (with its users' tokens) is refused, not answered by a stranger.
"""

from __future__ import annotations

import asyncio
import socket

from agentfarm_sdk.waiting import within

from ..errors import StartError

FORWARDS = range(21_000, 25_000)  # below those that the kernel gives out


class Ports:
    """Ports that are bound and not listened on: ssh, which reuses addresses, can listen on one nevertheless; whoever asks for a free one gets another."""

    def __init__(self) -> None:
        self._held: dict[int, socket.socket] = {}

    def hold(self, port: int) -> None:
        """Hold a port, once; 0 is none. One that another program listens on stays as it is: ours may be that program."""
        if not port or port in self._held:
            return
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            held.bind(("127.0.0.1", port))
        except OSError:
            held.close()
        else:
            self._held[port] = held

    def let_go(self, port: int) -> None:
        """Hold it no more. One that is not held is harmless."""
        if port in self._held:
            self._held.pop(port).close()


def is_free(port: int, *, reused: bool = True) -> bool:
    """Say whether a program could listen on a loopback port. `reused` False: and no other one holds it, or did a moment ago."""
    with socket.socket() as probe:
        if reused:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def answers(ip: str, port: int, seconds: float = 2.0) -> bool:
    """Say whether a web server answers there. That somebody takes the connection says nothing: ssh does, whatever is behind it."""
    try:
        reader, writer = await within(asyncio.open_connection(ip, port), seconds)
    except (OSError, asyncio.TimeoutError):
        return False
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        return bool(await within(reader.read(1), seconds))
    except (OSError, asyncio.TimeoutError):
        return False
    finally:
        writer.close()


def forwards_of(text: str) -> range:
    """Return the ports that "21000-24999" names. Raises StartError."""
    first, _, last = text.partition("-")
    if first.isdigit() and last.isdigit() and 1024 <= int(first) < int(last) < 65536:
        return range(int(first), int(last) + 1)
    raise StartError(f"AGENTFARM_FORWARD_PORTS is {text!r}", hint="two ports from 1024 on, e.g. 21000-24999")
