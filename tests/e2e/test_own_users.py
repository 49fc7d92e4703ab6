"""As root each agent's server has a user of its own, who reads nothing of another agent's and nothing of the farm's, and reaches neither."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from farmkit import Farm, Person, clean_env

from jupyterhub_agentfarm.fleet.helper import walls
from jupyterhub_agentfarm.fleet.helper.processunits import can_use

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AGENTS = ("first", "second")
# Run as one agent's user: says of each path what came of reading it.
PEEK = """
import json, os, socket, sys
said = {}
for path in sys.argv[1:]:
    try:
        if path.endswith(".sock"):
            socket.socket(socket.AF_UNIX).connect(path)
        elif os.path.isdir(path):
            os.listdir(path)
        else:
            open(path, "rb").read(1)
        said[path] = "read"
    except OSError as error:
        said[path] = type(error).__name__
print(json.dumps(said))
"""


# Run as one agent's user: says of each port on loopback what came of a connection.
REACH = """
import json, socket, sys
said = {}
for port in sys.argv[1:]:
    try:
        socket.create_connection(("127.0.0.1", int(port)), 3).close()
        said[port] = "reached"
    except OSError as error:
        said[port] = type(error).__name__
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def walled_farm(model: str) -> Iterator[Farm]:
    """A farm in a place that everybody may pass."""
    if os.getuid() != 0:
        pytest.skip("only root gives servers users of their own")
    place = Path(tempfile.mkdtemp(prefix="afu-", dir="/tmp"))
    place.chmod(0o711)
    try:
        if not can_use(sys.executable, str(place)):
            pytest.skip(
                f"other users cannot run {sys.executable}: try a checkout in /srv with make test PYTHON=/usr/bin/python3"
            )
        env = clean_env(HF_API_URL=model, HUGGING_FACE_AUTH_TOKEN="none-needed", AGENTFARM_EGRESS="")
        made = Farm(place / "farm", env, database=f"sqlite:///{place}/farm/farm.sqlite", options=("--no-demo",))
        made.start()
        try:
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(place, ignore_errors=True)


def server_of(agent: str) -> psutil.Process:
    """Find the agent's server: the first process of its unit."""
    mine = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("AGENTFARM_AGENT") == agent:
                mine.append(process)
        except psutil.Error:
            continue
    return min(mine, key=lambda one: one.create_time())


def test_each_agent_works_as_a_user_of_its_own_who_reaches_nothing_of_the_others(walled_farm: Farm) -> None:
    alice: Person = walled_farm.person("alice")
    with alice.api() as api:
        for agent in AGENTS:
            draft = {"prompt": "p", "model": {"name": "scripted"}, "tools": [{"name": "calculator"}]}
            api.post("/agents", json={"name": agent, "draft": draft}).raise_for_status()
            api.post(f"/agents/{agent}/publish", json={}).raise_for_status()
            api.post(f"/agents/{agent}/start", json={}).raise_for_status()
            task = alice.submit(agent, json.dumps({"tool": "calculator", "arguments": {"expression": "17*23"}}))
            done = alice.settled(task["task_id"])
            assert done["status"] == "succeeded" and "391" in done["result"], done
    first, second = (server_of(agent) for agent in AGENTS)
    users = [one.uids().real for one in (first, second)]
    assert min(users) >= 200_000 and users[0] != users[1]
    state = walled_farm.state
    (state / "workspaces" / "second" / "notes.txt").write_text("second's own")
    os.chown(state / "workspaces" / "second" / "notes.txt", users[1], users[1])
    others = [
        *(state / "workspaces" / "second" / name for name in ("", "notes.txt")), state, state / "secrets",
        *(path for path in state.rglob("*") if path.is_file() and "workspaces" not in path.parts), state / "fleet.sock",
        *(Path(f"/proc/{second.pid}") / name for name in ("environ", "mem", "fd")),
        *(Path(f"/proc/{child.pid}/environ") for child in second.children(recursive=True)),
        Path(f"/proc/{walled_farm.ready['pids']['service']}/environ"),
    ]  # fmt: skip
    own = str(state / "workspaces" / "first")
    command = [sys.executable, "-I", "-c", PEEK, own, *(str(path) for path in others)]
    said = subprocess.run(
        command, user=users[0], group=users[0], extra_groups=[], cwd="/", capture_output=True, check=True
    )
    told = json.loads(said.stdout)
    assert [path for path, came in told.items() if came == "read"] == [own], told
    assert len(told) > 20
    if why := walls.missing():
        pytest.skip(f"files are walled off; the network is not, and the farm says so: {why}")
    units = {one["agent"]: one["port"] for one in json.loads((state / "fleet.json").read_text())["units"].values()}
    ports = json.loads((state / "ports.json").read_text())
    tried = {"the Hub": ports["hub"], "the service": ports["service"], "another": units["second"], "its own": units["first"], "the proxy": ports["proxy_api"], "the front": ports["public"]}  # fmt: skip
    command = [sys.executable, "-I", "-c", REACH, *map(str, tried.values())]
    said = subprocess.run(
        command, user=users[0], group=users[0], extra_groups=[], cwd="/", capture_output=True, check=True
    )
    came = json.loads(said.stdout)
    assert {name for name, port in tried.items() if came[str(port)] == "reached"} == {
        "the Hub",
        "the service",
        "its own",
    }, came
