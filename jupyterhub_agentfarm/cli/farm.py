"""`agentfarm secret|model …` and `status`: the farm itself."""

from __future__ import annotations

import argparse
import getpass
import sys
from typing import Any

from agentfarm_sdk.errors import Forbidden, Invalid, Transient, Unauthenticated
from agentfarm_sdk.farm import Farm

from .microservers import ILL, ill
from .show import Out, cell, command, noun, table


def add(nouns: Any) -> None:
    verb = noun(nouns, "secret", "secrets of tools: written here, never shown again")
    verb("set", set_secret, "set a secret; its value is asked for, or read from standard input").add_argument("name")
    verb("list", list_secrets, "the names of the secrets that are set")
    verb("delete", delete_secret, "forget a secret").add_argument("name")
    noun(nouns, "model", "models that the gateway reaches")("list", list_models, "all of them")
    command(nouns, "status", show_status, "is the farm well?")


def set_secret(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    typed = sys.stdin.isatty()
    value = getpass.getpass(f"value of {asked.name}: ") if typed else sys.stdin.read().rstrip("\n")
    if not value:
        raise Invalid("the value is empty", hint=f"agentfarm secret set {asked.name} < FILE")
    farm.request("PUT", "/secrets", {"name": asked.name, "value": value})
    out.line(f"{asked.name} is set", {"name": asked.name})


def list_secrets(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    answer = farm.request("GET", "/secrets")
    named = [one if isinstance(one, dict) else {"name": one} for one in answer.get("items", [])]
    out.rows(named, ("name",), "no secret is set")


def delete_secret(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    farm.request("DELETE", f"/secrets/{asked.name}")
    out.line(f"{asked.name} is forgotten", {"name": asked.name})


def list_models(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    out.rows(
        farm.models(),
        ("id", "owned_by", "price", "inputs"),
        "the gateway reaches no model: set HF_API_URL (README, Another model)",
    )


def _agents(farm: Farm) -> list[dict[str, Any]]:
    """Return the agents that the asker may see; none to whom the farm does not know."""
    try:
        return list(farm.agents())
    except (Unauthenticated, Forbidden):
        return []


def _microservers(farm: Farm) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the microservers with which something is the matter, and people's own servers; one line of it where the fleet daemon is away."""
    try:
        found = farm.microservers()
    except (Unauthenticated, Forbidden):
        return [], []
    except Transient as error:
        return [{"microserver": "fleet daemon", "state": "away", "since": "", "why": error.detail}], []
    return ill(found), [{**one, "microserver": micro["name"]} for micro in found for one in micro.get("people") or ()]


def show_status(farm: Farm, asked: argparse.Namespace, out: Out) -> int:
    """Print the service's health, what is the matter with which microserver, and where each server runs and why.

    1 where the service is not well.
    """
    health = farm.status()
    servers = [
        {"agent": one["name"], "state": server["pending"] or ("ready" if server["ready"] else "waits"), **server}
        for one in _agents(farm)
        if (server := one.get("server")) and (server["microserver"] or server["pending"] or server["reasons"])
    ]
    troubles, people = _microservers(farm)
    if out.as_json:
        out.record({**health, "servers": servers, "people": people, "microservers": troubles})
        return 0 if health.get("status") == "ok" else 1
    out.record(health)
    if troubles:
        print("\n" + table([[cell(one[name], None) for name in ILL] for one in troubles], ILL))
    rows = [
        *((one["agent"], one["state"], one["microserver"], one["why"] or one["reasons"]) for one in servers),
        *((_persons(one), one["state"], one["microserver"], one["why"]) for one in people),
    ]
    if rows:
        print(
            "\n"
            + table([[cell(one, None) for one in row] for row in rows], ("server of", "state", "microserver", "why"))
        )
    return 0 if health.get("status") == "ok" else 1


def _persons(one: dict[str, Any]) -> str:
    return f"{one['person']}, a person" + (f": {one['server']}" if one["server"] else "")
