"""Stand-ins for the OpenSSH masters of many idle microservers: the fleet daemon finds their control sockets and asks over them.

    python benchmarks/standins.py FOLDER NAME …

One process answers for all, as `ssh` does with ControlMaster (OpenSSH's PROTOCOL.mux): that it is there, that a forward is open, and commands,
with what a helper of an idle microserver says. Prints a line when all listen. So all is real but the machines, and the line to them.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from jupyterhub_agentfarm.fleet.connection import Files
from jupyterhub_agentfarm.fleet.helper import facts
from jupyterhub_agentfarm.fleet.mux import ALIVE_CHECK, EXITED, HELLO, NEW_SESSION, VERSION, packet

OK, ALIVE, OPENED = 0x80000001, 0x80000005, 0x80000006
SESSION = 7


def said(op: str, name: str) -> dict[str, Any]:
    """Return what the helper of an idle microserver answers."""
    if op == "facts":
        boot = str(uuid.UUID(hashlib.md5(name.encode()).hexdigest()))
        own = {"backend": "systemd", "own_users": True, "isolation": "", "systemd": "249", "cgroup": 2}
        return {**facts.machine(Path(tempfile.gettempdir()), Path("/")), **own, "hostname": name, "boot_id": boot}
    return {"items": [], "ended": [], "busy": []}


def received(sock: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        piece = sock.recv(count - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


def serve(sock: socket.socket, name: str) -> None:
    """Answer one client until it goes."""
    with sock:
        try:
            sock.sendall(packet(HELLO, VERSION))
            while True:
                (length,) = struct.unpack("!I", received(sock, 4))
                body = received(sock, length)
                kind, number = struct.unpack_from("!II", body)
                if kind == ALIVE_CHECK:
                    sock.sendall(packet(ALIVE, number, os.getpid()))
                elif kind == NEW_SESSION:
                    return session(sock, number, name)
                elif kind != HELLO:
                    sock.sendall(packet(OK, number))
        except (EOFError, OSError):
            return


def session(sock: socket.socket, number: int, name: str) -> None:
    """Do what the forced command would: read a request, write an answer."""
    files = [os.fdopen(socket.recv_fds(sock, 1, 1)[1][0], mode) for mode in ("rb", "wb", "wb")]
    sock.sendall(packet(OPENED, number, SESSION))
    with files[0] as stdin, files[1] as stdout, files[2]:
        stdout.write(json.dumps({"ok": said(json.loads(stdin.read())["op"], name)}).encode())
    sock.sendall(packet(EXITED, SESSION, 0))


def listen(path: Path, name: str) -> None:
    """Be the master of one microserver from now on."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(64)

    def accept() -> None:
        while True:
            threading.Thread(target=serve, args=(listening.accept()[0], name), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def main() -> None:
    folder, *names = sys.argv[1:]
    for name in names:
        listen(Files(Path(folder)).control(name), name)
    print("listening", flush=True)
    sys.stdin.read()  # until who started this goes


if __name__ == "__main__":
    main()
