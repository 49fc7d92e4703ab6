"""Who asks. The Hub says whose token it is; a run token says which run; our own rows say what they may do.

Never by `admin` of the Hub's user model: that is true for an admin's narrowest token too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from jupyterhub.services.auth import HubOAuth
from sqlalchemy.engine import Connection
from tornado.web import HTTPError

from agentfarm_sdk.waiting import within

from ..errors import Conflict, Forbidden, Transient, Unauthenticated
from ..records import Agent, Run, Task
from ..runtokens import PREFIX, RunClaims, check
from ..store import agents

log = logging.getLogger(__name__)
HUB_CACHE_SECONDS = 30
ACCESS = "access:services!service=agentfarm"
OPERATOR = "custom:agentfarm:admin"
APPROVE = "custom:agentfarm:approve"
ACT = "custom:agentfarm:act"
Rights = Literal["view", "chat", "manage", "owner", "operator"]
RANK: dict[str, int] = {"view": 1, "chat": 2, "manage": 3, "owner": 4, "operator": 5}


@dataclass(frozen=True)
class Asker:
    """`kind`: person, agent (its own server's token), run (a run token) or nobody. `name`: for an agent without "agent-"."""

    kind: Literal["person", "agent", "run", "nobody"]
    name: str = ""
    scopes: frozenset[str] = frozenset()
    via: Literal["token", "cookie", "none"] = "none"
    since: float | None = None  # creation time of the person's hub user, where the Hub tells it
    claims: RunClaims | None = None
    groups: frozenset[str] = frozenset()  # of the Hub

    @property
    def operator(self) -> bool:
        return self.kind == "person" and OPERATOR in self.scopes

    @property
    def may_approve(self) -> bool:
        """A person, at a farm page or with a token that carries the scope; never an agent."""
        return self.kind == "person" and APPROVE in self.scopes

    @property
    def by(self) -> str:
        """Who it is in events."""
        return f"user:{self.hub_name}"

    @property
    def hub_name(self) -> str:
        return f"agent-{self.name}" if self.kind == "agent" else self.name


NOBODY = Asker("nobody")


@dataclass
class Door:
    """Tells who asks. `key` and `epoch` check run tokens; `now` is the clock that judges them."""

    auth: HubOAuth
    key: bytes
    epoch: str
    now: Callable[[], float]
    hub_away: float = field(default=5.0)  # seconds to ask the asker to wait

    async def by_token(self, token: str) -> Asker:
        """Return whose token it is. Raises Unauthenticated, Forbidden, Transient (the Hub is away)."""
        if token.startswith(PREFIX):
            return self.by_run_token(token)
        try:
            model = await within(self.auth.user_for_token(token, sync=False), 15)
        except (HTTPError, asyncio.TimeoutError) as error:
            raise self.away() from error
        if model is None:
            raise Unauthenticated("the Hub does not know this token", hint="make a new one at the Hub's token page")
        return asker_of(model, "token")

    def by_run_token(self, token: str) -> Asker:
        """Return the worker of the token's run. Raises Unauthenticated."""
        claims = check(self.key, token, epoch=self.epoch, now=self.now())
        return Asker("run", claims.r, via="token", claims=claims)

    async def by_cookie(self, handler: Any) -> Asker:
        """Return whose farm page it is; nobody where there is no session, or its request lacks the XSRF header."""
        try:
            model = await within(self.auth.get_user(handler, sync=False), 15)
        except (HTTPError, asyncio.TimeoutError) as error:
            raise self.away() from error
        return NOBODY if model is None else asker_of(model, "cookie")

    def away(self) -> Transient:
        return Transient(
            "the Hub does not answer, so nobody can be recognised",
            hint="try again shortly; runs go on meanwhile",
            retry_after=self.hub_away,
        )


def asker_of(model: Mapping[str, Any], via: Literal["token", "cookie"]) -> Asker:
    """Turn the Hub's user model into an asker. Raises Forbidden: a service, or a token without access to this one."""
    scopes = frozenset(model.get("scopes") or ())
    name = str(model.get("name", ""))
    if model.get("kind") != "user":
        raise Forbidden("only people and agents may ask here", hint="send a person's token")
    if not any(scope == ACCESS or scope == "access:services" for scope in scopes):
        raise Forbidden("this token gives no access to AgentFarm", hint=f"make a token with the scope {ACCESS}")
    if name.startswith("agent-"):
        if f"{ACT}!user={name}" not in scopes and ACT not in scopes:
            raise Forbidden(f"this token may not act as {name}", hint=f"it lacks {ACT}")
        return Asker("agent", name.removeprefix("agent-"), scopes, via)
    groups = frozenset(map(str, model.get("groups") or ()))
    return Asker("person", name, scopes, via, since=_epoch(model.get("created")), groups=groups)


def _epoch(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00")).timestamp() if text else None
    except ValueError:
        return None


# -- rights: rows decide -------------------------------------------------------------------------------------------


def rights(connection: Connection, asker: Asker, agent: Agent) -> Rights | None:
    """Return what the asker may do with the agent, or None: not even know of it."""
    if asker.kind == "agent":
        return "view" if asker.name == agent.name else None
    if asker.kind != "person":
        return None
    same_person = agent.owner_since is None or asker.since is None or abs(agent.owner_since - asker.since) < 1
    if agent.owner == asker.name and same_person:
        return "owner"
    if asker.operator:
        return "operator"
    return agents.grant(connection, agent.name, asker.name)  # type: ignore[return-value]


def reach_agent(connection: Connection, asker: Asker, name: str, need: Rights) -> tuple[Agent, Rights]:
    """Return the agent and the asker's rights. Raises NotFound (also where it may not be seen), Forbidden."""
    agent = agents.show(connection, name)
    has = rights(connection, asker, agent)
    if has is None:
        raise agents.no_agent(name)
    if RANK[has] < RANK[need]:
        hint = f"you have {has}; ask {agent.owner} for {need}"
        raise Forbidden(f"this needs the right {need} on agent {name}", hint=hint)
    return agent, has


def in_use(agent: Agent) -> Agent:
    """Raise Conflict where the agent is retired."""
    if agent.retired_at is not None:
        raise Conflict(f"agent {agent.name} is retired", hint="its records stay; make a new agent for new tasks")
    return agent


def may(connection: Connection, asker: Asker, thing: Task | Run | Mapping[str, Any], need: Rights) -> bool:
    """Say whether the asker may `need` a task, run, thread or inbox item: its owner, or by rights on its agent."""
    values = thing if isinstance(thing, Mapping) else vars(thing)
    owner, agent, run = values["owner"], values.get("agent"), values.get("run_id")
    if asker.kind == "run":
        return asker.name == run and need in ("view", "chat")
    if asker.kind == "agent":
        mine = agent == asker.name or values.get("submitted_by") == asker.hub_name
        return mine and need in ("view", "chat")
    if asker.kind != "person":
        return False
    if asker.operator or owner == asker.name:
        return True
    has = agents.reachable(connection, asker.name).get(str(agent)) if agent else None
    return has is not None and RANK[has] >= RANK[need]


def visible(connection: Connection, asker: Asker) -> tuple[list[str] | None, list[str] | None]:
    """Return owners and agents whose things the asker may list; (None, None) = all."""
    if asker.operator:
        return None, None
    if asker.kind == "agent":
        return [], [asker.name]
    return [asker.name], list(agents.reachable(connection, asker.name))
