"""A pytest plugin: runs JupyterHub's own test suites against AgentFarmSpawner and a real fleet daemon.

`pytest -p hubsuite --pyargs jupyterhub.tests.test_spawner`; test_hub_suites.py does so. What the suite's own spawner does
for its tests (a small server, a token that is used again) is kept; how a server is started, polled and stopped is ours.

Where AGENTFARM_SUITE_MICROSERVER says {name, key, ssh, host_keys}, servers go to that microserver, over SSH; its helper is installed.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from jupyterhub.tests import mocking

from jupyterhub_agentfarm.fleet.client import FleetClient
from jupyterhub_agentfarm.fleet.helper.checks import VERSION
from jupyterhub_agentfarm.spawner import AgentFarmSpawner

ELSEWHERE: dict[str, Any] = json.loads(os.environ.get("AGENTFARM_SUITE_MICROSERVER", "{}"))
# The suites' small server, on the socket of its unit in place of a port.
ON_A_SOCKET = """
import os
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_unix_socket
from jupyterhub.tests import mocksu
path = os.environ["RUNTIME_DIRECTORY"] + "/server.sock"
HTTPServer.listen = lambda self, port, address: self.add_socket(bind_unix_socket(path, mode=0o600))
mocksu.main()
"""
MARK = "AGENTFARM_SUITE_MARK"  # a file that a started server leaves: the proof that our spawner was used


class SuiteSpawner(AgentFarmSpawner, mocking.MockSpawner):
    """Our spawner where the suites expect theirs."""

    show_microserver = False  # the suites compare user options with what they gave

    def start(self) -> Any:
        for key in os.environ:
            if key not in self.env_keep and ("JUPYTERHUB" in key or "COVERAGE" in key):
                self.env_keep.append(key)
        if self.use_this_api_token:
            self.api_token = self.use_this_api_token
        elif self.will_resume:
            self.use_this_api_token = self.api_token
        Path(os.environ[MARK]).touch()
        return AgentFarmSpawner.start(self)

    def command(self) -> list[str]:
        words = AgentFarmSpawner.command(self)
        if not ELSEWHERE:
            return words
        if "jupyterhub.tests.mocksu" in words:
            return ["python", "-c", ON_A_SOCKET, *words[3:]]
        return ["jupyterhub-singleuser", *words[3:]]

    def get_state(self) -> dict[str, Any]:
        """The suites compare a server's whole state with what their own spawner keeps: a pid."""
        return {"pid": 1} if self.microserver else {}

    def load_state(self, state: dict[str, Any]) -> None:
        AgentFarmSpawner.load_state(self, {"microserver": ELSEWHERE.get("name", "local")} if state else {})


class FullSpawner(SuiteSpawner, mocking.InstrumentedSpawner):
    """The same with a whole server in place of the suites' small one."""


def pytest_configure(config: pytest.Config) -> None:
    state = Path(tempfile.mkdtemp(prefix="afsuite-", dir="/tmp"))
    os.environ["AGENTFARM_STATE"] = str(state)
    (state / "token").write_text("unused")
    environment = {
        **os.environ,
        "JUPYTERHUB_API_URL": "http://127.0.0.1:1/hub/api",
        "AGENTFARM_FLEET_TOKEN_FILE": str(state / "token"),
    }
    if ELSEWHERE:
        (state / "ssh").mkdir(mode=0o700)
        for name in ("key", "key.pub"):
            shutil.copy(Path(ELSEWHERE["key"]).with_name(name), state / "ssh" / name)
    daemon = subprocess.Popen([sys.executable, "-m", "jupyterhub_agentfarm.fleet.daemon"], env=environment)
    deadline = time.monotonic() + 20
    while not (state / "fleet.sock").exists():
        assert daemon.poll() is None and time.monotonic() < deadline, "the fleet daemon did not start"
        time.sleep(0.05)
    if ELSEWHERE:
        asyncio.run(send_servers_elsewhere(FleetClient(state / "fleet.sock")))
    mocking.MockHub._spawner_class_default = lambda self: SuiteSpawner
    mocking.InstrumentedSpawner = FullSpawner
    config.stash[_DAEMON] = (daemon, state)


async def send_servers_elsewhere(fleet: FleetClient) -> None:
    registration = {"ssh": ELSEWHERE["ssh"], "host_keys": ELSEWHERE["host_keys"]}
    added = await fleet.register(ELSEWHERE["name"], registration)
    assert not added["silent"], added
    await fleet.cordon("local", "servers go elsewhere")
    await fleet.set_settings({"people": {"pin": None}})


async def clear(fleet: FleetClient) -> None:
    for unit in await fleet.units():
        if unit["state"] == "running":
            await fleet.stop(unit["unit"], now=True)
    await fleet.remove(ELSEWHERE["name"], force=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    daemon, state = config.stash[_DAEMON]
    if ELSEWHERE:
        asyncio.run(clear(FleetClient(state / "fleet.sock")))
    for unit in (state / "units").iterdir() if (state / "units").exists() else []:
        request = f'{{"v": {VERSION}, "op": "stop", "unit": "{unit.name}", "now": true}}'
        helper = Path(sys.modules["jupyterhub_agentfarm"].__path__[0]) / "fleet" / "helper"
        command = [sys.executable, "-I", str(helper), "--process", str(state)]
        subprocess.run(command, input=request, text=True, capture_output=True, check=False)
    daemon.terminate()
    daemon.wait(10)
    shutil.rmtree(state, ignore_errors=True)


_DAEMON: pytest.StashKey[tuple[subprocess.Popen[bytes], Path]] = pytest.StashKey()
