"""Small frames at once through a forward to a unix socket: without this a kernel's answers come 40 ms late. Called by the connection.

OpenSSH turns Nagle's algorithm off for forwards to ports, not for those to unix sockets (channel_post_port_listener in its
channels.c), and has no option for it. Connections inherit that from the socket that listens, and a copy of it can be had
of a process that one may trace (pidfd_getfd(2), Linux 5.6): the farm's masters are processes of the farm's own user.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Iterator

PIDFD_OPEN, PIDFD_GETFD = 434, 438  # the same numbers on every architecture


def turn_off(process: int, port: int) -> None:
    """Turn the delay off for all that connects from now on to a loopback port where another process listens.

    Raises OSError: this kernel or its settings do not allow it, or the process is gone. Nothing is harmed by it.
    """
    for one in _sockets(process):
        if one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) and one.getsockname() == ("127.0.0.1", port):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _sockets(process: int) -> Iterator[socket.socket]:
    """Yield a copy of each socket of a process."""
    handle = _call(PIDFD_OPEN, process, 0)
    try:
        for number in os.listdir(f"/proc/{process}/fd"):
            try:
                if not os.readlink(f"/proc/{process}/fd/{number}").startswith("socket:"):
                    continue
                copy = _call(PIDFD_GETFD, handle, int(number), 0)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EBADF):  # closed meanwhile
                    continue
                raise
            with socket.socket(fileno=copy) as one:
                yield one
    finally:
        os.close(handle)


def _call(number: int, *arguments: int) -> int:
    """Call the kernel by a number for which Python has no name. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = int(libc.syscall(number, *arguments))
    if found < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return found
