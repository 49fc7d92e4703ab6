"""An agent's server in an editor: a token of the agent for a few hours, who holds one, and its end.

The token reaches the agent's own server and nothing else: not the farm's API, no other server, no decision.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Annotated

import msgspec

from ..codeserver import PATH, program
from ..errors import AgentFarmError, Conflict, NotFound
from ..records import Agent, hub_user
from ..store import connections
from ..store.connections import Held
from ..store.db import Tx
from .asking import RANK, in_use, reach_agent
from .routes import Call, Parts, Route
from .views import EditorView, Listed, when

log = logging.getLogger(__name__)
WAIT_SECONDS = 8.0  # after the up to 10 s in which the Hub itself answers a start


class ConnectWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`hours`: how long the token is good for."""

    hours: Annotated[int, msgspec.Meta(ge=1, le=24)] = 8


class Connected(msgspec.Struct, frozen=True, kw_only=True):
    """What an editor needs. While the server is not up (status 202) there is no token yet: `note` says how far it is, ask again."""

    ready: bool
    pending: str | None = None
    note: str = ""
    url: str  # to type into "Remote to JupyterHub"
    user: str
    token: str = ""  # shown this once
    expires_at: str | None = None
    connection_id: str = ""
    server_url: str = ""


class ConnectionView(msgspec.Struct, frozen=True):
    connection_id: str
    person: str
    created_at: str
    expires_at: str


def scopes_of(user: str) -> list[str]:
    """Return what an editor's token may: reach the agent's server, see whether it is up, start it. Not stop it."""
    return [f"{verb}:servers!server={user}/" for verb in ("access", "read", "start")]


def page_of(parts: Parts, user: str) -> str:
    """Return the address of a user's server at the Hub, which sends browsers on to the server's own origin."""
    return f"{parts.public_hub.removesuffix('hub/')}user/{user}/"


def editors(parts: Parts, agent: Agent, rights: str) -> list[EditorView]:
    """Return in what the asker can open the agent's server; nothing for whom the Hub would turn away."""
    if agent.retired_at is not None or RANK.get(rights, 0) < RANK["manage"]:
        return []
    url = page_of(parts, hub_user(agent.name))
    found = [EditorView("lab", "JupyterLab", f"{url}lab"), EditorView("vscode", "VS Code", url)]
    return [*found, EditorView("code-server", "code-server", f"{url}{PATH}/")] if program(os.environ) else found


async def connect(call: Call) -> Connected:
    """Start the agent's server; when it is up, mint a token of the agent that reaches it. Asked again, another token."""
    wish: ConnectWish = call.body
    agent = await _reach(call)
    hub, user, seconds = call.parts.hub, hub_user(in_use(agent).name), wish.hours * 3600
    scopes = scopes_of(user)
    await call.parts.resources.tell(agent.name)
    await hub.start_server(user)
    start = await hub.follow_start(user, WAIT_SECONDS)
    url = page_of(call.parts, user)
    if not start.ready:
        call.status = 202
        call.headers["Retry-After"] = "1"
        return Connected(ready=False, pending="spawn", note=start.said or "its server is starting", url=url, user=user)

    def opened(tx: Tx) -> Held:
        reach_agent(tx.connection, call.asker, agent.name, "manage")  # still
        return connections.open_one(tx, agent.name, call.asker.name, seconds, scopes, call.asker.by)

    held = await call.write(opened)
    try:
        minted = await hub.mint(user, scopes, seconds, _note(held))
    except AgentFarmError:
        await close(call, [held], "no token could be made")
        raise
    if held not in await _listed(call, agent):  # unshared, or retired, between the two
        await hub.drop_tokens(user, lambda note: note == _note(held))
        raise Conflict(f"the connection to {agent.name} was closed while it was made", hint="ask its owner")
    server = await hub.server(user) or {}
    return Connected(
        ready=True, url=url, user=user, token=minted.token, expires_at=when(held.expires_at),
        connection_id=held.connection_id, server_url=str(server.get("full_url") or server.get("url") or url),
    )  # fmt: skip


async def listed(call: Call) -> Listed[ConnectionView]:
    agent = await _reach(call)
    return Listed([_view(one) for one in await _listed(call, agent)])


async def revoke(call: Call) -> Listed[ConnectionView]:
    """End one connection; answer those that are left."""
    agent = await _reach(call)
    held, wanted = await _listed(call, agent), call.path["connection"]
    chosen = [one for one in held if one.connection_id == wanted]
    if not chosen:
        raise NotFound(f"there is no connection {wanted} to {agent.name}", hint="it has ended, or was never there")
    await close(call, chosen, "revoked")
    return Listed([_view(one) for one in held if one not in chosen])


async def revoke_all(call: Call) -> Listed[ConnectionView]:
    """End every connection; answer those that came meanwhile."""
    agent = await _reach(call)
    await close_of(call, agent.name, "revoked")
    return Listed([_view(one) for one in await _listed(call, agent)])


async def close_of(call: Call, agent: str, reason: str, person: str | None = None) -> None:
    """End the connections of a person to the agent (None: everybody's)."""
    held = await call.read(lambda c: connections.listed(c, agent, call.parts.db.now()))
    await close(call, [one for one in held if person in (None, one.person)], reason)


async def close(call: Call, held: Sequence[Held], reason: str) -> None:
    """Delete the tokens at the Hub, then say so: a connection that is not listed is worth nothing.

    Raises:
        Transient: the Hub is away; they are listed still.
    """
    if not held:
        return
    notes = {_note(one) for one in held}
    await call.parts.hub.drop_tokens(hub_user(held[0].agent), lambda note: note in notes)
    await call.write(lambda tx: connections.close(tx, held, reason, call.asker.by))


def _note(held: Held) -> str:
    """Return the note of the Hub's token: whose it is, until when, and by which we find it again."""
    return f"AgentFarm: an editor of {held.person}, until {when(held.expires_at)} ({held.connection_id})"


def _view(held: Held) -> ConnectionView:
    return ConnectionView(held.connection_id, held.person, str(when(held.created_at)), str(when(held.expires_at)))


async def _reach(call: Call) -> Agent:
    agent, _ = await call.read(lambda c: reach_agent(c, call.asker, call.path["name"], "manage"))
    return agent


async def _listed(call: Call, agent: Agent) -> list[Held]:
    return await call.read(lambda c: connections.listed(c, agent.name, call.parts.db.now()))


ROUTES = [
    Route("POST", "/agents/{name}/connect", connect, "Start its server and mint a token for an editor; 202 while it starts", who="person", body=ConnectWish, answer=Connected, keeps=False),
    Route("GET", "/agents/{name}/connections", listed, "Who holds a token for an editor, until when", who="person", answer=Listed[ConnectionView]),
    Route("DELETE", "/agents/{name}/connections", revoke_all, "Revoke all tokens for editors", who="person", answer=Listed[ConnectionView]),
    Route("DELETE", "/agents/{name}/connections/{connection}", revoke, "Revoke one", who="person", answer=Listed[ConnectionView]),
]  # fmt: skip
