"""What another process listens on sends small frames at once, as soon as it is turned so."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jupyterhub_agentfarm.fleet import nodelay
from jupyterhub_agentfarm.fleet.connection import Connection, Files, target

LISTENS = """
import socket
both = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(one.getsockname()[1] for one in both), flush=True)
print(*(one.accept()[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in both))
"""


def test_connections_to_that_port_of_that_process_are_without_delay() -> None:
    with subprocess.Popen([sys.executable, "-c", LISTENS], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        ports = [int(one) for one in process.stdout.readline().split()]
        before = len(os.listdir("/proc/self/fd"))
        try:
            nodelay.turn_off(process.pid, ports[0])
        except OSError as error:
            process.kill()
            pytest.skip(f"not allowed here: {error}")
        assert len(os.listdir("/proc/self/fd")) == before
        for port in ports:
            socket.create_connection(("127.0.0.1", port)).close()
        assert process.stdout.readline().split() == ["1", "0"]


def test_a_process_that_is_gone_is_said() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(OSError):
        nodelay.turn_off(process.pid, 21_000)


async def test_where_it_is_not_allowed_the_forward_stands_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> None:
        return

    async def fine(*_: object) -> bytes:
        return b"\0\0\0\1\0\0\0\1"

    def refused(process: int, port: int) -> None:
        raise PermissionError("no")

    monkeypatch.setattr("jupyterhub_agentfarm.fleet.mux.ask", fine)
    monkeypatch.setattr(nodelay, "turn_off", refused)
    made = Connection("micro1", target("root@10.0.0.1"), Files(tmp_path), nothing, lambda: None)
    assert await made.forward(21_000, "/run/x/server.sock")
