"""`agentfarm agent connect`: an agent's server in VS Code; who holds a token for it, and its end."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any
from urllib.parse import quote

from agentfarm_sdk.errors import Invalid
from agentfarm_sdk.farm import Farm

from .show import Adder, Out

START_SECONDS = 200.0  # the Hub gives a server 180 s to start, its turn included
ASK_AGAIN_SECONDS = 1.0
COLUMNS = ("connection_id", "person", "created_at", "expires_at")


def add(verb: Adder) -> None:
    parser = verb("connect", connect, "start the agent's server and get address, user and token for VS Code")
    parser.add_argument("name")
    parser.add_argument("--hours", type=int, default=8, help="how long the token is good for, 1 to 24 (8)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--list", action="store_true", help="only show who holds a token, and until when")
    instead.add_argument("--revoke", metavar="ID", help="end a connection; `all` ends every one")


def connect(farm: Farm, asked: argparse.Namespace, out: Out) -> None:
    agent = f"/agents/{quote(asked.name, safe='')}"
    if asked.list:
        found = farm.request("GET", f"{agent}/connections")["items"]
        out.rows(found, COLUMNS, f"nobody holds a token for an editor of {asked.name}")
        return
    if asked.revoke:
        which = "" if asked.revoke == "all" else f"/{quote(asked.revoke, safe='')}"
        left = farm.request("DELETE", f"{agent}/connections{which}")
        out.line(f"revoked; {len(left['items'])} left", left)
        return
    answer = _when_up(farm, agent, asked.hours)
    if out.as_json:
        out.value(answer)
        return
    out.record(answer, ("url", "user", "token", "expires_at", "connection_id"))
    print(
        '\nVS Code: "Existing JupyterHub Server…", then url, user and, as the password, the token. It is shown this once.'
    )


def _when_up(farm: Farm, agent: str, hours: int) -> dict[str, Any]:
    """Ask until the server is up, and say how far it is. Raises Invalid: it takes too long."""
    until, told = time.monotonic() + START_SECONDS, ""
    while True:
        answer: dict[str, Any] = farm.request("POST", f"{agent}/connect", {"hours": hours})
        if answer["ready"]:
            return answer
        if told != answer["note"]:
            told = answer["note"]
            print(told, file=sys.stderr, flush=True)
        if time.monotonic() > until:
            raise Invalid(
                f"its server is not up after {START_SECONDS:.0f} s: {told}", hint="try again, or: agentfarm doctor"
            )
        time.sleep(ASK_AGAIN_SECONDS)
