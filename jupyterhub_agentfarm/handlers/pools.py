"""Pools: who is in them, how many of their servers are up, and how many may be."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from sqlalchemy.engine import Connection

from ..errors import Forbidden, Invalid, NotFound
from ..records import Agent
from ..store import agents, poolrules
from ..store.poolrules import Rules
from .asking import RANK, Asker, rights
from .routes import Call, Page, Route
from .views import Listed

MOST = 500  # servers of a pool
MOST_AGENTS = 100_000  # of the farm


class PoolMember(msgspec.Struct, frozen=True):
    agent: str
    ready: bool
    microserver: str | None


class PoolView(msgspec.Struct, frozen=True, kw_only=True):
    """`up`: servers of its members that are up. `idle_seconds` null: the farm's. `may_change`: the asker manages all its members."""

    name: str
    members: list[PoolMember]
    up: int
    min_servers: int = 0
    max_servers: int | None = None
    idle_seconds: float | None = None
    may_change: bool = False


class PoolRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """min_servers are kept up; max_servers null: any number; idle_seconds null: the farm's, 0: never stopped."""

    min_servers: Annotated[int, msgspec.Meta(ge=0, le=MOST)] = 0
    max_servers: Annotated[int, msgspec.Meta(ge=1, le=MOST)] | None = None
    idle_seconds: Annotated[float, msgspec.Meta(ge=0, le=31_536_000)] | None = None


def _seen(
    connection: Connection, asker: Asker, pool: str | None = None
) -> tuple[dict[str, list[Agent]], dict[str, Rules], set[str]]:
    """Return the pools that the asker sees with the members that they see, their rules, and those that they may change."""
    found: dict[str, list[Agent]] = {}
    others: set[str] = set()
    known = agents.reachable(connection, asker.name) if asker.kind == "person" and not asker.operator else None
    for agent in agents.listed(connection, pool=pool, limit=MOST_AGENTS):
        if agent.pool is None:
            continue
        has = rights(connection, asker, agent) if known is None or agent.name in known else None
        if has is not None:
            found.setdefault(agent.pool, []).append(agent)
        if has is None or RANK[has] < RANK["manage"]:
            others.add(agent.pool)
    return found, poolrules.of(connection, found), {name for name in found if name not in others}


async def listed(call: Call) -> Listed[PoolView]:
    found, rules, mine = await call.read(lambda c: _seen(c, call.asker))
    return Listed(
        [await _view(call, name, found[name], rules.get(name, Rules()), name in mine) for name in sorted(found)]
    )


async def change(call: Call) -> PoolView:
    """Set a pool's rules: who manages all its members, or an operator."""
    name, asked = call.path["name"], call.body
    found, _, mine = await call.read(lambda c: _seen(c, call.asker, name))
    if name not in found:
        raise NotFound(
            f"there is no pool {name}", hint="give an agent that pool: agentfarm agent create NAME --pool POOL"
        )
    if name not in mine:
        raise Forbidden(f"pool {name} has members that you do not manage", hint="ask an operator of the farm")
    if asked.max_servers is not None and asked.min_servers > asked.max_servers:
        raise Invalid(
            "min_servers is more than max_servers - at `$.min_servers`",
            hint="give a max_servers that is at least as much",
        )
    rules = Rules(asked.min_servers, asked.max_servers, asked.idle_seconds)
    await call.write(lambda tx: poolrules.put(tx, name, rules, call.asker.by))
    call.parts.wake()
    return await _view(call, name, found[name], rules, True)


async def _view(call: Call, name: str, members: list[Agent], rules: Rules, may: bool) -> PoolView:
    seen = await call.parts.surroundings.look()
    shown = [PoolMember(one.name, (server := seen.server(one.name)).ready, server.microserver) for one in members]
    told: dict[str, Any] = {
        "min_servers": rules.min_servers,
        "max_servers": rules.max_servers,
        "idle_seconds": rules.idle_seconds,
    }
    return PoolView(name=name, members=shown, up=sum(one.ready for one in shown), may_change=may, **told)


ROUTES = [
    Route("GET", "/pools", listed, "Pools, and which of their members' servers are up", query=Page, answer=Listed[PoolView]),
    Route("PUT", "/pools/{name}", change, "How many servers a pool has", who="person", body=PoolRules, answer=PoolView),
]  # fmt: skip
