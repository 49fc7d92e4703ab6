"""How many servers the members of a pool may have, and for how long an idle one stays. Changes are in the farm's own chain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from agentfarm_sdk.protocol import new_event

from . import ledger
from .db import Tx
from .tables import CLAIMABLE, FARM_RUN, agents, pools, runs


@dataclass(frozen=True)
class Rules:
    """min_servers are kept up, no more than max_servers are started; an idle one is stopped after so many seconds.

    None: no limit; for idle_seconds the farm's, 0: never.
    """

    min_servers: int = 0
    max_servers: int | None = None
    idle_seconds: float | None = None


def of(connection: Connection, names: Iterable[str] | None = None) -> dict[str, Rules]:
    """Return the rules of these pools (None = all that have some)."""
    statement = sa.select(pools)
    if names is not None:
        statement = statement.where(pools.c.name.in_(list(names)))
    return {
        row.name: Rules(row.min_servers, row.max_servers, row.idle_seconds) for row in connection.execute(statement)
    }


def put(tx: Tx, name: str, rules: Rules, by: str) -> None:
    """Set the rules of a pool."""
    tx.execute(pools.delete().where(pools.c.name == name))
    tx.execute(pools.insert().values(name=name, **asdict(rules)))
    ledger.record(tx, FARM_RUN, by, [new_event("pool.changed", {"pool": name, **asdict(rules)})])


def members(connection: Connection) -> dict[str, str | None]:
    """Return the pool of every agent in use."""
    rows = connection.execute(sa.select(agents.c.name, agents.c.pool).where(agents.c.retired_at.is_(None)))
    return {name: pool for name, pool in rows}


def startable(connection: Connection, pool: str) -> list[str]:
    """Return the pool's agents that tasks can be given to."""
    in_use = (agents.c.pool == pool, agents.c.retired_at.is_(None), agents.c.published.is_not(None))
    return list(connection.execute(sa.select(agents.c.name).where(*in_use).order_by(agents.c.name)).scalars())


def at_work(connection: Connection) -> set[str]:
    """Return the agents that have a lease, or runs to be taken up."""
    held = sa.select(runs.c.agent).where(runs.c.lease_until.is_not(None))
    waiting = sa.select(runs.c.agent).where(runs.c.status.in_(CLAIMABLE), ~runs.c.bound)
    return set(connection.execute(sa.union(held, waiting)).scalars())


def held(connection: Connection, agent: str) -> int:
    """Return how many runs of the agent workers hold."""
    found = connection.execute(sa.select(sa.func.count()).where(runs.c.agent == agent, runs.c.lease_until.is_not(None)))
    return int(found.scalar_one())


def started(rules: Mapping[str, Rules], pool: str) -> int | None:
    """Return how many servers the pool may have; None: any number."""
    return rules[pool].max_servers if pool in rules else None
