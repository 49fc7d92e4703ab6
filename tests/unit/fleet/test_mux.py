"""Requests over a master's control socket, with OpenSSH's own program beside ours: both mean the same by it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from jupyterhub_agentfarm.errors import FleetError
from jupyterhub_agentfarm.fleet import mux
from jupyterhub_agentfarm.fleet.connection import Connection, Files, target

STANDINS = Path(__file__).parents[3] / "benchmarks" / "standins.py"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short enough for a control socket."""
    made = Path(tempfile.mkdtemp(prefix="afm-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def standin(folder: Path) -> Iterator[Path]:
    """A master that answers for a microserver."""
    process = subprocess.Popen(
        [sys.executable, STANDINS, folder, "micro1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin and process.stdout and process.stdout.readline()
    yield Files(folder).control("micro1")
    process.stdin.close()
    process.wait(20)


def connection(folder: Path) -> Connection:
    async def nothing() -> None:
        return

    made = Connection("micro1", target("root@10.0.0.1"), Files(folder), nothing, lambda: None)
    made.open = True
    return made


async def test_a_request_is_answered_as_openssh_s_own_program_is_answered(folder: Path, standin: Path) -> None:
    asked = json.dumps({"v": 2, "op": "facts"}).encode()
    ours = json.loads(await connection(folder).execute("helper", asked, 20))["ok"]
    assert ours["hostname"] == "micro1" and ours["memory"] > 0
    assert await connection(folder).is_there()
    assert await connection(folder).forward(21_000, "/run/x/server.sock")
    if shutil.which("ssh") is None:
        pytest.skip("OpenSSH is not installed")
    words = ["ssh", "-F", "none", "-o", "ProxyCommand=false", "-S", str(standin)]
    there = await asyncio.to_thread(
        subprocess.run, [*words, "micro1", "helper"], input=asked, capture_output=True, timeout=20
    )
    theirs = json.loads(there.stdout)["ok"]
    assert theirs["boot_id"] == ours["boot_id"] and there.returncode == 0
    check = await asyncio.to_thread(subprocess.run, [*words, "-O", "check", "micro1"], capture_output=True, timeout=20)
    assert check.returncode == 0, check.stderr


@asynccontextmanager
async def master(folder: Path, answer: Answer) -> AsyncIterator[Connection]:
    """A master that says hello and then does as told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(mux.packet(mux.HELLO, mux.VERSION))
        for _ in range(2):
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            await reader.readexactly(length)
        await answer(reader, writer)
        writer.close()

    made = connection(folder)
    async with await asyncio.start_unix_server(serve, str(made.control)):
        yield made


async def test_what_a_master_refuses_is_told_in_its_words_and_a_port_is_said_to_be_taken(folder: Path) -> None:
    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(mux.packet(mux.FAILURE, mux.REQUEST, "Session open refused by peer"))

    async with master(folder, refuse) as asked:
        with pytest.raises(FleetError, match="micro1 cannot be asked: Session open refused by peer"):
            await asked.execute("helper", b"{}", 20)
        assert not await asked.forward(21_000, "/run/x/server.sock")


async def test_a_master_that_ends_or_says_nothing_is_no_answer(folder: Path) -> None:
    async def end(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        return

    async def wait(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with master(folder, end) as asked:
        with pytest.raises(FleetError, match="the connection broke off"):
            await asked.execute("helper", b"{}", 20)
        assert not await asked.is_there()
    async with master(folder, wait) as asked:
        with pytest.raises(FleetError, match="does not answer"):
            await asked.execute("helper", b"{}", 0.2)
    with pytest.raises(FleetError, match="cannot be asked"):
        await connection(folder).forward(21_000, "/run/x/server.sock")


def flood(listening: socket.socket, written: list[int]) -> None:
    """Be a master whose session writes without end."""
    sock, _ = listening.accept()
    with sock:
        sock.sendall(mux.packet(mux.HELLO, mux.VERSION))
        for _ in range(2):
            (length,) = struct.unpack("!I", sock.recv(4, socket.MSG_WAITALL))
            sock.recv(length, socket.MSG_WAITALL)
        given, out, said = (socket.recv_fds(sock, 1, 1)[1][0] for _ in range(3))
        os.close(given)
        os.close(said)
        try:
            while True:
                written.append(os.write(out, b"x" * 65536))
        except BrokenPipeError:
            return
        finally:
            os.close(out)


async def test_a_microserver_that_answers_without_end_does_not_fill_the_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mux, "LARGEST_ANSWER", 1 << 20)
    asked, written = connection(folder), list[int]()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(asked.control))
        listening.listen()
        flooding = asyncio.create_task(asyncio.to_thread(flood, listening, written))
        with pytest.raises(FleetError, match="it answers more than 1048576 bytes"):
            await asked.execute("helper", b"{}", 60)
        await asyncio.wait_for(flooding, 20)
    assert sum(written) < 4 << 20
