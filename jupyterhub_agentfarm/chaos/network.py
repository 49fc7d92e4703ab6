"""A wire between servers and the service that can be cut or fall silent, in both directions or in one. A thread for each direction of a connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

CHUNK = 65536


class Wire:
    """Listens on a loopback port and carries bytes to `target()`, a port or a unix socket's path. Modes: open, cut (refused), silent.

    Directions: `up`, what servers and workers send; `down`, what the service sends.
    """

    def __init__(self, target: Callable[[], int | str]) -> None:
        self.target, self.mode = target, "open"
        self._carrying: set[socket.socket] = set()
        self._gates = {"up": threading.Event(), "down": threading.Event()}
        for gate in self._gates.values():
            gate.set()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End every connection, and every new one at once."""
        self.mode = "cut"
        self._end_all()

    def silence(self, *directions: str) -> None:
        """Carry nothing on (in these directions; none named: both), and end nothing: each side waits for the other."""
        self.mode = "silent"
        for direction in directions or self._gates:
            self._gates[direction].clear()

    def open(self) -> None:
        """Carry again. What was held back in a silence is lost with its connection, as behind a dead router."""
        was, self.mode = self.mode, "open"
        if was == "silent":
            self._end_all()
        for gate in self._gates.values():
            gate.set()

    def close(self) -> None:
        self._listening.close()
        self.cut()
        for gate in self._gates.values():
            gate.set()

    def _end_all(self) -> None:
        with self._lock:
            ending, self._carrying = self._carrying, set()
        for one in ending:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            if self.mode == "cut":
                near.close()
                continue
            threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        self._gates["up"].wait()
        try:
            far = _dial(self.target())
        except OSError:
            near.close()
            return
        far.settimeout(None)
        for one in (near, far):
            if one.family != socket.AF_UNIX:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._carrying |= {near, far}
        for source, sink, direction in ((near, far, "up"), (far, near, "down")):
            threading.Thread(target=self._carry, args=(source, sink, self._gates[direction]), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        try:
            while data := source.recv(CHUNK):
                gate.wait()
                sink.sendall(data)
        except OSError:
            pass  # cut, or one side is gone: both ends are closed below
        with self._lock:
            self._carrying -= {source, sink}
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _dial(target: int | str) -> socket.socket:
    if isinstance(target, int):
        return socket.create_connection(("127.0.0.1", target), 5)
    far = socket.socket(socket.AF_UNIX)
    far.connect(target)
    return far
