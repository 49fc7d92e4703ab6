"""What a farm that has just come up still needs: the command line's token, the demo agents. Asking twice changes nothing."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec

from agentfarm_sdk.errors import AgentFarmError, NotFound
from agentfarm_sdk.farm import Farm
from agentfarm_sdk.task import Task

from .. import demo
from ..errors import StartError
from .state import State, write_atomically

NOTE = "agentfarm command line on this machine"
# Everything that the admin may do at the farm, but for deciding: that takes a person at a page, or their own token.
SCOPES = [
    "access:services!service=agentfarm",
    "custom:agentfarm:admin",
    "custom:agentfarm:manage",
    "access:servers!group=agents",
    "servers!group=agents",
    "read:users!user",
    "servers!user",
    "access:servers!user",
]
DEMO_KEY = "the-first-demo-task"


class Hub:
    """The Hub's REST API with the launcher's own token, which may mint the admin's tokens and fill the proxy."""

    def __init__(self, state: State) -> None:
        self.url = state.url("hub", "/hub/api")
        self.headers = {"Authorization": f"token {state.secret('hub-launcher.token')}"}

    def ask(self, method: str, path: str, body: Any = None, token: str = "") -> httpx.Response:
        headers = {"Authorization": f"token {token}"} if token else self.headers
        with httpx.Client(transport=httpx.HTTPTransport(retries=2), timeout=30) as client:
            return client.request(method, self.url + path, json=body, headers=headers)


def admin_name(state: State) -> str:
    return str(next(iter(json.loads((state.secrets / "passwords.json").read_text())["admin"])))


def client_file(state: State) -> None:
    """Write client.json; a token that still works is kept.

    Raises:
        StartError: the Hub gives none.
    """
    hub, path, admin = Hub(state), state.directory / "client.json", admin_name(state)
    try:
        token = str(json.loads(path.read_text())["token"])
    except (OSError, ValueError, KeyError, TypeError):
        token = ""
    if not token or hub.ask("GET", "/user", token=token).status_code != 200:
        token = _mint(hub, admin)
    content = {"url": state.url("service"), "token": token, "user": admin}
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def _mint(hub: Hub, admin: str) -> str:
    """Make a token of the admin, and drop those that earlier starts made for the same file."""
    made = hub.ask("POST", f"/users/{admin}/tokens", {"note": NOTE, "scopes": SCOPES})
    if made.status_code != 201:
        raise StartError(f"the Hub gives no token for {admin}: {made.text[:300]}", hint="see logs/hub.log")
    answer = made.json()
    listed = hub.ask("GET", f"/users/{admin}/tokens")
    for old in listed.json().get("api_tokens", []) if listed.status_code == 200 else []:
        if old.get("note") == NOTE and old["id"] != answer["id"]:
            hub.ask("DELETE", f"/users/{admin}/tokens/{old['id']}")
    return str(answer["token"])


def farm(state: State) -> Farm:
    client = json.loads((state.directory / "client.json").read_text())
    return Farm(client["url"], client["token"])


def demo_agents(asked: Farm) -> list[str]:
    """Create and publish the demo agents that are not there; what a person made of them since stays."""
    made = []
    for name, definition in demo.agents().items():
        try:
            if asked.agent(name).get("published"):
                continue
        except NotFound:
            asked.request("POST", "/agents", {"name": name, "draft": msgspec.to_builtins(definition)})
        asked.publish(name, "as the demo brings it")
        made.append(name)
    return made


def demo_task(asked: Farm) -> Task | None:
    """Submit the demo's first task, once in a farm's life; None where it was done before."""
    agent, question = demo.TASKS[0]
    task = asked.submit(agent, question, key=DEMO_KEY)
    return task if task.data.get("status") in {"queued", "assigned", "running", "waiting"} else None


def fill_proxy(state: State) -> None:
    """Have the Hub write its routes into a proxy that has just started (it looks only every five minutes by itself)."""
    answer = Hub(state).ask("POST", "/proxy")
    if answer.status_code >= 400:
        raise AgentFarmError(f"the Hub did not fill the proxy: {answer.text[:200]}")
