"""What a Hub must be told to have a farm: scopes, roles, groups, services, who signs in. For jupyterhub_config.py.

A production Hub calls `configure(c, …)` from its own file and keeps its authenticator: `farm_authenticator(ItsClass)`.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyterhub import orm
from jupyterhub.auth import Authenticator
from sqlalchemy.orm import object_session

from .errors import AgentFarmError, StartError
from .fleet.client import FleetClient

AGENT_PREFIX = "agent-"
SERVICE = "agentfarm"
PAGE_SECONDS = 4.0  # that the admin page waits for the fleet daemon
CULLER = "agentfarm-idle-people"

CUSTOM_SCOPES: dict[str, dict[str, Any]] = {
    "custom:agentfarm:act": {"description": "Act as this agent"},
    "custom:agentfarm:view": {"description": "See an agent's tasks and runs"},
    "custom:agentfarm:chat": {"description": "Give an agent tasks"},
    "custom:agentfarm:manage": {
        "description": "Manage an agent",
        "subscopes": ["custom:agentfarm:view", "custom:agentfarm:chat"],
    },
    "custom:agentfarm:approve": {"description": "Decide approvals and calls in doubt"},
    "custom:agentfarm:admin": {"description": "Administer the farm"},
}

ROLES: list[dict[str, Any]] = [
    # Creating users has no narrower scope than admin:users, so it is the fleet daemon's alone: it makes `agent-*` only.
    # It reads which servers there are, to end units that no server stands for.
    {
        "name": "agentfarm-fleet",
        "services": ["agentfarm-fleet"],
        "scopes": ["admin:users", "groups!group=agents", "read:servers"],
    },
    {
        "name": "agentfarm-service",
        "services": [SERVICE],
        "scopes": [
            "admin:servers!group=agents",
            "tokens!group=agents",
            "shares!group=agents",
            "read:users!group=agents",
            "list:users!group=agents",  # which agents' servers are up, asked once for all
            "access:servers!group=agents",
            "custom:agentfarm:manage!group=agents",
            "read:users:name",
            "read:hub",
        ],
    },
    {"name": "agentfarm-agent", "groups": ["agents"], "scopes": ["custom:agentfarm:act!user"]},
    # By group and not by JupyterHub.extra_user_scopes: that would give it to agents too.
    {"name": "agentfarm-people", "groups": ["people"], "scopes": ["custom:agentfarm:approve"]},
    {
        "name": "agentfarm-admin",
        "groups": ["agentfarm-admins"],
        "scopes": [
            "custom:agentfarm:admin",
            "custom:agentfarm:manage",
            "custom:agentfarm:approve",
            "access:servers!group=agents",
            "servers!group=agents",
        ],
    },
]

# What a page of the farm may do in a person's name (never more than the person may).
PAGE_SCOPES = ["custom:agentfarm:admin", "custom:agentfarm:manage", "custom:agentfarm:approve"]

# What a server's own token may do, as far as its user may: no approving, no managing, no other server.
SERVER_SCOPES = [
    "users:activity!user",
    "access:servers!server",
    "access:services!service=agentfarm",
    "custom:agentfarm:act!user",
]


def configure(
    c: Any, *, service_url: str, service_token: str, fleet_token: str, admins: list[str], pages: str = ""
) -> None:
    """Add the farm to a Hub's configuration.

    Args:
        service_url: the service's own listener, as the proxy reaches it.
        admins: people who administer the farm.
        pages: address of the farm's pages for browsers, which the Hub's navigation links to.
    """
    service = {
        "name": SERVICE,
        "url": service_url,
        "api_token": service_token,
        "display": False,  # not under Services: our page.html puts it into the navigation itself
        "oauth_no_confirm": True,  # a part of this Hub, not a stranger: no "do you allow" page
        "oauth_client_allowed_scopes": PAGE_SCOPES,
    }
    c.JupyterHub.custom_scopes = CUSTOM_SCOPES
    c.JupyterHub.extra_user_scopes = {"access:services!service=agentfarm"}  # agents too: they report to it
    c.JupyterHub.load_groups = {
        "agents": {"users": []},
        "people": {"users": list(admins)},
        "agentfarm-admins": {"users": list(admins)},
    }
    c.JupyterHub.load_roles = [*ROLES]
    c.JupyterHub.template_paths = [str(Path(__file__).parent / "templates")]
    c.JupyterHub.template_vars = {
        "agentfarm_url": pages or f"/services/{SERVICE}/",
        "agentfarm_troubles": lambda user: (
            troubles
        ),  # the Hub calls it at each page; the admin page calls what it gives
    }
    c.JupyterHub.services = [service, {"name": "agentfarm-fleet", "api_token": fleet_token}]
    c.JupyterHub.spawner_class = "jupyterhub_agentfarm.spawner.AgentFarmSpawner"
    c.Spawner.server_token_scopes = SERVER_SCOPES
    c.Authenticator.post_auth_hook = refuse_agents


async def troubles() -> list[dict[str, str]]:
    """Return {name, state, since, why} of each microserver with which something is the matter. For the Hub's admin page; never raises."""
    socket = Path(os.environ.get("AGENTFARM_STATE", ".farm")) / "fleet.sock"
    try:
        found = await FleetClient(socket, timeout=PAGE_SECONDS).microservers()
    except AgentFarmError as error:
        return [{"name": "fleet daemon", "state": "away", "since": "", "why": f"{error.detail}; {error.hint}"}]
    return [trouble for one in found for trouble in troubles_of(one)]


def troubles_of(one: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what is the matter with a microserver, as the fleet daemon tells of it. Pure."""
    name, state = str(one["name"]), str(one["state"])
    if state != "ready":
        return [
            {
                "name": name,
                "state": state,
                "since": _clock(one.get("since") or one.get("at")),
                "why": str(one.get("reason") or ""),
            }
        ]
    return [
        {"name": name, "state": f"tainted {taint}", "since": _clock(told["since"]), "why": str(told["reason"])}
        for taint, told in sorted((one.get("health") or {}).items())
    ]


def _clock(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def cull_people(c: Any, seconds: int) -> None:
    """Have people's servers stopped that nobody has used for so long, by JupyterHub's own culler; call it after `configure`.

    It sees people's servers alone: agents' are the farm's (`c.AgentFarm.idle_seconds`), which knows who works. A run in a notebook
    counts as use. Servers tell the Hub of use every five minutes, so give it more than ten.

    Raises:
        StartError: the package jupyterhub-idle-culler is not installed.
    """
    if importlib.util.find_spec("jupyterhub_idle_culler") is None:
        raise StartError(
            "the package jupyterhub-idle-culler is not installed", hint="pip install jupyterhub-idle-culler"
        )
    words = [sys.executable, "-m", "jupyterhub_idle_culler", f"--timeout={seconds}"]
    c.JupyterHub.services.append({"name": CULLER, "command": words})
    scopes = ["list:users", "read:users:activity", "read:servers", "delete:servers"]
    role = {"name": CULLER, "services": [CULLER], "scopes": [f"{scope}!group=people" for scope in scopes]}
    c.JupyterHub.load_roles.append(role)


def forget_tokens(db: Any, user: orm.User) -> None:
    """Delete the tokens of the user's servers that have stopped.

    The Hub deletes the token that it remembers; one that was killed or started anew in between remembers none.
    """
    kept = {f"Server at {one.server.base_url}" for one in user._orm_spawners if one.server is not None}
    for token in list(user.api_tokens):
        if (token.note or "").startswith("Server at ") and token.note not in kept:
            db.delete(token)
    db.commit()


def is_agent(username: str) -> bool:
    return username.startswith(AGENT_PREFIX)


def refuse_agents(authenticator: Any, handler: Any, authentication: dict[str, Any]) -> dict[str, Any] | None:
    """Refuse a login as an agent: a login session could mint tokens, and nobody is an agent. (A post_auth_hook.)"""
    if is_agent(authentication["name"]):
        authenticator.log.warning("login as %s refused: agents do not log in", authentication["name"])
        return None
    return authentication


def farm_authenticator(base: type[Authenticator]) -> type[Authenticator]:
    """Return the authenticator with one more habit: whoever it knows, and is no agent, belongs to group `people`.

    By group membership in the Hub's database, not by `manage_groups`: that would close the REST API by which agents
    enter their group.
    """

    class FarmAuthenticator(base):  # type: ignore[misc]
        async def add_user(self, user: Any) -> None:
            added = super().add_user(user)
            if inspect.isawaitable(added):
                await added
            known = user if isinstance(user, orm.User) else user.orm_user  # the former while the Hub starts
            db: Any = object_session(known)
            if known is user:
                forget_tokens(db, known)
            if is_agent(known.name):
                return
            people = orm.Group.find(db, "people")
            if people is not None and people not in known.groups:
                known.groups.append(people)
                db.commit()

    FarmAuthenticator.__name__ = f"Farm{base.__name__}"
    return FarmAuthenticator
