"""code-server for an agent's workspace, in a real browser through hub, proxy and Jupyter server; what it is started with."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from browserkit import Desk
from farmkit import PATIENCE, Farm, Person, until
from test_vscode import connect

from jupyterhub_agentfarm.codeserver import program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("scripted_farm", ["sqlite"], indirect=True),
    pytest.mark.skipif(program(os.environ) is None, reason="code-server is not installed here: make code-server"),
]
SLOW = 60_000 * PATIENCE  # ms: the first look at it loads 30 MB of scripts


def of_editor(farm: Farm) -> list[psutil.Process]:
    """Return the processes of this farm's code-servers."""
    found = []
    for process in psutil.process_iter():
        try:
            if any("code-server/node_modules" in word for word in process.cmdline()) and str(farm.state) in str(process.environ()):  # fmt: skip
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture
def agent(scripted_farm: Farm, hands: dict[str, str]) -> Iterator[str]:
    yield hands["store"]
    with scripted_farm.person("alice").api() as api:
        api.post(f"/agents/{hands['store']}/stop", json={}).raise_for_status()


def test_the_workspace_opens_in_the_browser_for_whom_it_is_and_ends_with_the_server(
    browser: Any, scripted_farm: Farm, agent: str
) -> None:
    alice = scripted_farm.person("alice")
    connect(alice, agent)
    workspace = scripted_farm.state / "workspaces" / agent
    (workspace / "notes.txt").write_text("seen in the editor")
    with alice.api() as api:
        offered = {one["name"]: one["url"] for one in api.get(f"/agents/{agent}").json()["editors"]}
    assert of_editor(scripted_farm) == [], "it is started when it is first opened"

    desk = Desk(browser, scripted_farm, "alice")
    page = desk.page
    page.goto(offered["code-server"], timeout=SLOW)
    page.get_by_role("button", name="Authorize").click()  # the Hub asks once whether this server may know who comes
    page.locator(".monaco-workbench").wait_for(timeout=SLOW)
    page.get_by_role("treeitem", name="notes.txt").dblclick(timeout=SLOW)
    page.get_by_text("seen in the editor").wait_for(timeout=SLOW)
    desk.shot("code-server")

    looks_right(of_editor(scripted_farm), workspace, alice)
    bob = Desk(browser, scripted_farm, "bob").page
    answer = bob.goto(offered["code-server"], timeout=SLOW)
    assert answer.status in (403, 404) and "monaco" not in bob.content()
    with alice.api() as api:
        api.post(f"/agents/{agent}/stop", json={}).raise_for_status()
    until(lambda: not of_editor(scripted_farm), 20, "code-server ended with its server")


def looks_right(processes: list[psutil.Process], workspace: Path, alice: Person) -> None:
    """No token and no secret in environment or arguments, no port, a socket of its user's alone, files in the workspace."""
    assert processes
    secrets = [file.read_text().strip() for file in (alice.farm.state / "secrets").glob("*.token")]
    for process in processes:
        environment = process.environ()
        text = json.dumps(environment) + " ".join(process.cmdline())
        assert not [
            name for name in environment if "TOKEN" in name or "SECRET" in name or name.startswith("JUPYTERHUB")
        ]
        assert not [one for one in (*secrets, alice.token) if one in text]
        assert not [one for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        assert process.environ()["AGENTFARM_UNIT"]
    (path,) = {word.partition("=")[2] for one in processes for word in one.cmdline() if word.startswith("--socket=")}
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600 and stat.S_IMODE(os.stat(Path(path).parent).st_mode) == 0o700
    assert (workspace / ".code-server" / "data" / "User" / "settings.json").exists()
